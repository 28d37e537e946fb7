"""slicemill: from a folder of CT scans to trained tumor segmentation and back.

>>> import slicemill
>>> slicemill.ingest_scans("lits", "lits-store")                       # doctest: +SKIP
>>> store = slicemill.open_store("lits-store")                         # doctest: +SKIP
>>> store["volume-17"].image[20]                                       # doctest: +SKIP
>>> slicemill.train_network("lits-store", "run", epochs=100)           # doctest: +SKIP
>>> slicemill.export_model("run", "liver.onnx")                        # doctest: +SKIP
>>> slicemill.infer_scans("liver.onnx", "scans", "segmented")          # doctest: +SKIP
>>> slicemill.Model("liver.onnx").segment("ct.nii.gz").lesions         # doctest: +SKIP

Each name is imported when it is first used, so that ``import slicemill`` takes milliseconds and needs none of the
extras. The functions that run a command have two words, like `ingest_scans`: `slicemill.ingest`, `slicemill.train`,
`slicemill.infer` and `slicemill.measure` are packages, and a function of the same name would be replaced by the package
as soon as anything imports from it.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from slicemill import errors, metrics
    from slicemill.api.inference import infer_scans
    from slicemill.api.lesions import find_lesions
    from slicemill.api.measurements import compare_evaluations, evaluate_masks, measure_masks
    from slicemill.api.model import Model, segment
    from slicemill.api.segmentation import Segmentation
    from slicemill.api.stages import TrainedRun, check_model, export_model, find_scans, ingest_scans, train_network
    from slicemill.api.store import Store, open_store
    from slicemill.api.volumes import VolumeItems
    from slicemill.common.errors import InputError
    from slicemill.train.data.slice_dataset import SliceDataset

    __version__: str

__all__ = [
    "InputError",
    "Model",
    "Segmentation",
    "SliceDataset",
    "Store",
    "TrainedRun",
    "VolumeItems",
    "__version__",
    "check_model",
    "compare_evaluations",
    "errors",
    "evaluate_masks",
    "export_model",
    "find_lesions",
    "find_scans",
    "infer_scans",
    "ingest_scans",
    "measure_masks",
    "metrics",
    "open_store",
    "segment",
    "train_network",
]

_NAMES = {
    "slicemill.api.inference": ("infer_scans",),
    "slicemill.api.lesions": ("find_lesions",),
    "slicemill.api.measurements": ("compare_evaluations", "evaluate_masks", "measure_masks"),
    "slicemill.api.model": ("Model", "segment"),
    "slicemill.api.segmentation": ("Segmentation",),
    "slicemill.api.stages": (
        "TrainedRun",
        "check_model",
        "export_model",
        "find_scans",
        "ingest_scans",
        "train_network",
    ),
    "slicemill.api.store": ("Store", "open_store"),
    "slicemill.common.errors": ("InputError",),
    "slicemill.api.volumes": ("VolumeItems",),
    "slicemill.train.data.slice_dataset": ("SliceDataset",),
}
"""Module -> the public names that it defines."""
_MODULE_OF = {name: module for module, names in _NAMES.items() for name in names}


if not TYPE_CHECKING:  # otherwise a type checker would accept every name

    def __getattr__(name: str) -> object:
        if name == "__version__":
            from importlib.metadata import version

            return version("slicemill")
        if name in ("errors", "metrics"):
            return import_module(f"slicemill.{name}")
        if name not in _MODULE_OF:
            raise AttributeError(f"module 'slicemill' has no attribute {name!r}")
        from slicemill.common.extras import name_missing_extras

        with name_missing_extras():
            return getattr(import_module(_MODULE_OF[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
