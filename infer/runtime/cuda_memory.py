"""Pinned host memory and copies to a GPU, through the CUDA runtime that onnxruntime has loaded.

The GPU copies pinned memory directly; the driver copies other memory through a buffer. ctypes releases Python's lock
during each call, so that one lane is copied while another is filled.
"""

import ctypes
import math
import weakref
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from slicemill.common.errors import ProviderError

PORTABLE = 1
"""cudaHostAllocPortable: pinned for every GPU of the process."""
BY_ADDRESS = 4
"""cudaMemcpyDefault: the addresses determine the direction."""


class CudaCallError(ProviderError):
    """A call of the CUDA runtime failed; the message names the call, and whoever made it adds the way out."""


class CudaDevice:
    """One GPU."""

    def __init__(self, library: Any, device: int) -> None:
        self._library = library
        self._device = ctypes.c_int(device)

    def allocate_pinned(self, shape: Sequence[int], dtype: Any) -> npt.NDArray[Any]:
        """Return an array of zeros in pinned memory, which is freed with its last view.

        Raises
        ------
        CudaCallError
            Not enough memory can be pinned.
        """
        size = math.prod(shape) * np.dtype(dtype).itemsize
        address = ctypes.c_void_p()
        self._call("cudaSetDevice", self._device)
        self._call("cudaHostAlloc", ctypes.byref(address), ctypes.c_size_t(size), ctypes.c_uint(PORTABLE))
        memory = (ctypes.c_char * size).from_address(address.value or 0)
        weakref.finalize(memory, self._library.cudaFreeHost, address).atexit = False
        array = np.frombuffer(memory, dtype=dtype).reshape(shape)
        array[:] = 0
        return array

    def copy(self, target: int, source: int, size: int) -> None:
        """Copy bytes between addresses, one of which is on the GPU; the copy is complete on return.

        Raises
        ------
        CudaCallError
            The device failed.
        """
        self._call("cudaSetDevice", self._device)
        addresses = ctypes.c_void_p(target), ctypes.c_void_p(source)
        self._call("cudaMemcpy", *addresses, ctypes.c_size_t(size), ctypes.c_int(BY_ADDRESS))
        # cudaMemcpy of a small upload may return before the bytes arrive
        self._call("cudaStreamSynchronize", ctypes.c_void_p())

    def _call(self, name: str, *arguments: Any) -> None:
        if code := getattr(self._library, name)(*arguments):
            self._library.cudaGetErrorString.restype = ctypes.c_char_p
            reason = self._library.cudaGetErrorString(ctypes.c_int(code)).decode(errors="replace")
            self._library.cudaGetLastError()  # clears it; else the next kernel of onnxruntime reports it as its own
            raise CudaCallError(f"{name} failed on GPU {self._device.value}: {reason} (error {code})")


def open_cuda_device(onnxruntime: Any, device: int) -> CudaDevice:
    """Return a GPU by its number; the module `onnxruntime` reports the CUDA version that it was built for.

    Raises
    ------
    ProviderError
        The CUDA runtime cannot be loaded.
    """
    name = f"libcudart.so.{str(onnxruntime.cuda_version).split('.')[0]}"
    try:
        return CudaDevice(ctypes.CDLL(name), device)
    except OSError as error:
        raise ProviderError(
            f"{name} cannot be loaded ({error}); install the CUDA libraries that onnxruntime-gpu names."
        ) from error
