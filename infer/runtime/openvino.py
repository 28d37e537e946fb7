"""OpenVINO as a provider: a session with the methods of onnxruntime's that `infer` uses; bfloat16 where possible.

onnxruntime still reads the file: it reads the metadata, and its labels are the reference of the parity
check.
"""

import io
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from slicemill.common.errors import ModelError, ProviderError
from slicemill.common.extras import explain_import
from slicemill.infer.runtime.messages import find_cause

NAME = "OpenVINO"


class OpenvinoSession:
    """A model compiled by OpenVINO for this processor."""

    def __init__(self, content: bytes, path: Path, described: Any) -> None:
        self._described = described
        core = _openvino().Core()
        capabilities = core.get_property("CPU", "OPTIMIZATION_CAPABILITIES")
        self.precision = "bf16" if "BF16" in capabilities else "f32"
        settings = {
            "INFERENCE_PRECISION_HINT": self.precision,
            "INFERENCE_NUM_THREADS": len(os.sched_getaffinity(0)),
        }
        try:
            self._compiled = core.compile_model(core.read_model(io.BytesIO(content)), "CPU", settings)
        except RuntimeError as error:
            raise ModelError(f"{path}: OpenVINO cannot run it ({find_cause(error)}).") from error

    def get_providers(self) -> list[str]:
        """Return the runtime's name, as onnxruntime does."""
        return [NAME]

    def get_modelmeta(self) -> Any:
        """Return the metadata of the file."""
        return self._described.get_modelmeta()

    def get_inputs(self) -> Any:
        """Return names, types and shapes of the inputs."""
        return self._described.get_inputs()

    def get_outputs(self) -> Any:
        """Return names, types and shapes of the outputs."""
        return self._described.get_outputs()

    def request(self) -> "OpenvinoRequest":
        """Return a request, which runs one batch at a time; several may run at once."""
        return OpenvinoRequest(self._compiled.create_infer_request())

    def run(self, names: Sequence[str], feed: Mapping[str, npt.NDArray[Any]]) -> list[npt.NDArray[Any]]:
        """Return outputs by name for inputs by name."""
        outputs = self.request().run(names, feed)
        return [outputs[name].copy() for name in names]


class OpenvinoRequest:
    """The buffers of one batch."""

    def __init__(self, request: Any) -> None:
        self._request = request

    def run(self, names: Sequence[str], feed: Mapping[str, npt.NDArray[Any]]) -> dict[str, npt.NDArray[Any]]:
        """Return outputs by name, valid until the next run; inputs are not copied."""
        tensor = _openvino().Tensor
        for name, array in feed.items():
            self._request.set_tensor(name, tensor(np.ascontiguousarray(array), shared_memory=True))
        self._request.infer()
        return {name: self._request.get_tensor(name).data for name in names}


def _openvino() -> Any:
    missing = ProviderError("--provider openvino: the package is not installed; pip install 'slicemill[openvino]'.")
    with explain_import("openvino", missing):
        import openvino
    return openvino
