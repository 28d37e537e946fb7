"""A GPU's memory through the CUDA runtime that onnxruntime itself has loaded: pinned rooms, and copies that let go of Python.

Pinned memory is copied by the card alone; from other memory the driver first copies through a buffer of its own. ctypes releases
Python's lock for each call, so that one lane is copied while another is filled.
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
"""cudaMemcpyDefault: the addresses tell which way."""


class CudaDevice:
    """One GPU."""

    def __init__(self, library: Any, device: int) -> None:
        self._library = library
        self._device = ctypes.c_int(device)

    def room(self, shape: Sequence[int], dtype: Any) -> npt.NDArray[Any]:
        """Return zeros in pinned memory, freed with the last view of them.

        Raises
        ------
        ProviderError
            There is not enough memory that may be pinned.
        """
        size = math.prod(shape) * np.dtype(dtype).itemsize
        place = ctypes.c_void_p()
        self._call("cudaSetDevice", self._device)
        self._call("cudaHostAlloc", ctypes.byref(place), ctypes.c_size_t(size), ctypes.c_uint(PORTABLE))
        memory = (ctypes.c_char * size).from_address(place.value or 0)
        weakref.finalize(memory, self._library.cudaFreeHost, place).atexit = False
        array = np.frombuffer(memory, dtype=dtype).reshape(shape)
        array[:] = 0
        return array

    def copy(self, target: int, source: int, size: int) -> None:
        """Copy bytes between addresses, of which one is the GPU's; they have arrived when this returns.

        Raises
        ------
        ProviderError
            The device failed.
        """
        self._call("cudaSetDevice", self._device)
        addresses = ctypes.c_void_p(target), ctypes.c_void_p(source)
        self._call("cudaMemcpy", *addresses, ctypes.c_size_t(size), ctypes.c_int(BY_ADDRESS))
        self._call(
            "cudaStreamSynchronize", ctypes.c_void_p()
        )  # the copy of a small upload may return before it arrives

    def _call(self, name: str, *given: Any) -> None:
        if code := getattr(self._library, name)(*given):
            self._library.cudaGetErrorString.restype = ctypes.c_char_p
            said = self._library.cudaGetErrorString(ctypes.c_int(code)).decode(errors="replace")
            raise ProviderError(f"{name} failed on GPU {self._device.value}: {said} (error {code}).")


def open_card(runtime: Any, device: int) -> CudaDevice:
    """Return a GPU by its number; `runtime` is the module onnxruntime, which says what CUDA it was built for.

    Raises
    ------
    ProviderError
        The CUDA runtime cannot be loaded.
    """
    name = f"libcudart.so.{str(runtime.cuda_version).split('.')[0]}"
    try:
        return CudaDevice(ctypes.CDLL(name), device)
    except OSError as error:
        raise ProviderError(
            f"{name} cannot be loaded ({error}); install the CUDA libraries that onnxruntime-gpu names."
        ) from error
