"""The choice of `--provider auto` on a processor with bfloat16: OpenVINO, if its labels are those of float32.

1. The processor has instructions for bfloat16, and OpenVINO is installed.
2. OpenVINO runs the model, and computes in bfloat16.
3. It labels the middle slices of a small phantom as onnxruntime does in float32.

Otherwise onnxruntime runs the model, and the reason says why. Before the first scan, its own slices are compared as
with every other provider (`slicemill.infer.parity_check`).
"""

from collections.abc import Callable
from importlib.util import find_spec
from typing import Any, Protocol, TypeVar

import numpy as np
import numpy.typing as npt

from slicemill.common.errors import InputError
from slicemill.common.machine import processor_flags
from slicemill.ct.phantom import make_phantom
from slicemill.ct.phantom_canvas import PhantomSpec
from slicemill.infer.runtime.messages import find_cause
from slicemill.store.label_differences import compare_labels
from slicemill.store.model_card import ModelInfo

FLAGS = {"avx512_bf16", "amx_bf16"}
"""Features of a processor that multiplies numbers in bfloat16; one is enough."""
BFLOAT16 = "bf16"
"""OpenVINO's name of the number format."""
SLICES = 2
MAX_DIFFERENCE = 5e-4
"""Share of label pixels that may differ from float32, ties excluded."""
TIE = 1e-2
"""Limit of `slicemill.store.label_differences.compare_labels`: bfloat16 rounds to 8 bits, a network adds up several."""
SPACING_MM, MIDDLE_MM = 5.0, 20.0
"""Distance of the phantom's slices, and its middle above that of the abdomen: in the liver."""


class Runnable(Protocol):
    """What is needed of a model (`slicemill.infer.network.model.Model`)."""

    reason: str
    info: ModelInfo
    session: Any

    def run(self, image: npt.NDArray[np.int16], neighbors: npt.NDArray[np.int32]) -> Any:
        """Run the network where it was opened."""

    def run_on_cpu(self, image: npt.NDArray[np.int16], neighbors: npt.NDArray[np.int32]) -> tuple[Any, Any]:
        """Return labels and logits by onnxruntime on the processor, in float32."""


M = TypeVar("M", bound=Runnable)


def has_bfloat16() -> bool:
    """Return whether the processor computes in bfloat16."""
    return not FLAGS.isdisjoint(processor_flags())


def choose_bfloat16(model: M, open_openvino: Callable[[], M]) -> M:
    """Return the model on OpenVINO if that computes in bfloat16 here and labels alike, else `model`, with the reason.

    Parameters
    ----------
    model
        The model on onnxruntime, on the processor.
    open_openvino
        Opens the same model on OpenVINO.
    """
    if not has_bfloat16():
        return model
    if find_spec("openvino") is None:
        model.reason += "; bfloat16 needs OpenVINO, which is not installed (pip install 'slicemill[openvino]')"
        return model
    try:
        faster = open_openvino()
        share = compare_with_float32(faster, model) if faster.session.precision == BFLOAT16 else None
    except (InputError, RuntimeError) as error:  # OpenVINO raises the latter
        model.reason += f"; OpenVINO does not run it: {find_cause(error)}"
        return model
    if share is None:
        model.reason += f"; OpenVINO would compute in {faster.session.precision}, not in bfloat16"
        return model
    if share > MAX_DIFFERENCE:
        model.reason += (
            f"; in bfloat16 {share:.2%} of the labels of two synthetic slices differ (limit {MAX_DIFFERENCE:.2%})"
        )
        return model
    faster.reason = f"bfloat16 by OpenVINO: {share:.3%} of the labels of two synthetic slices differ from float32"
    return faster


def compare_with_float32(model: Runnable, reference: Runnable) -> float:
    """Return the share of label pixels of a phantom's middle slices in which two models differ, ties excluded."""
    context = model.info.context
    volume = draw_slices(SLICES + context - 1, model.info.size)
    window = np.arange(context, dtype=np.int32)[None]
    pixels = differing = 0
    for first in range(SLICES):
        image = volume[first : first + context]
        label, (expected, logits) = model.run(image, window).label, reference.run_on_cpu(image, window)
        if label.shape != expected.shape:
            return 1.0
        found = compare_labels(label, expected, logits, model.info.labels.table(), TIE)
        pixels, differing = pixels + found.pixels, differing + found.differing
    return differing / pixels


def draw_slices(count: int, size: tuple[int, int]) -> npt.NDArray[np.int16]:
    """Return slices of a phantom's liver: int16[count, height, width], HU."""
    spec = PhantomSpec(seed=0, shape=(count, *size), height_mm=count * SPACING_MM, middle_mm=MIDDLE_MM)
    return make_phantom(spec).image
