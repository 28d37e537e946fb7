"""Export of a trained run to ONNX files. Files are written only after their labels were compared with the network's."""

import math
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from slicemill.common.documents import to_document
from slicemill.common.errors import ModelError
from slicemill.common.files import atomic_write, sha256_of_file, to_json
from slicemill.common.machine import versions
from slicemill.common.telemetry import turn_off_telemetry
from slicemill.store.model_card import METADATA_KEY, ModelCard, Parity, PostprocessRules, TrainingSummary
from slicemill.store.training_scans import TRAINING_SCANS_KEY, TrainingScans
from slicemill.train.export.audit import find_tensorrt_breaches
from slicemill.train.export.graph import DEFAULT, Flavor
from slicemill.train.export.onnx_graph import load_checked_onnx, slice_size, write_onnx
from slicemill.train.export.parity import measure_parity
from slicemill.train.export.trained import TrainedNetwork, describe_training_scans, read_trained, require_trained
from slicemill.train.run.checkpoint import BEST, read_state
from slicemill.train.run.claim import claim_to_read

FLAVORS = (DEFAULT, Flavor(half=True), Flavor(half=True, bytes_in=True), Flavor(bytes_in=True))
EXPORTED_RULES = ("largest_organ", "min_lesion_ml")
"""Post-processing rules in an exported file; `slicemill tune` writes all of them."""
LICENSE = "research use; not a medical device"
VERSIONED = ("slicemill", "torch", "onnx")


@dataclass(frozen=True, kw_only=True)
class Origin:
    """Where the weights of a model come from."""

    training: TrainingSummary
    weights_sha256: str
    """Hash of the file of the run's best weights."""


def export(
    run: Path,
    model: Path,
    *,
    flavors: Sequence[Flavor] = (DEFAULT,),
    store_path: Path | None = None,
    min_lesion_ml: float = 0.0,
    size: tuple[int, int] | None = None,
) -> dict[Path, ModelCard]:
    """Write a run's best network as ONNX, one file per flavor next to `model`, and return the metadata of each.

    Parameters
    ----------
    flavors
        Flavors to write; each file has the name of `model` with the flavor's suffix. No file appears before all have
        passed the parity check.
    store_path
        Store with the slices for the parity check; by default the one that the run was trained on.
    min_lesion_ml
        Smallest lesion that `infer` keeps, ml; written to the file.
    size
        Height and width of the input slices, pixels; by default those of the training.

    Raises
    ------
    ModelError
        There is no trained network, it does not support that size, or onnxruntime's labels differ from torch's.
    ConfigError
        The run is being trained.
    """
    require_trained(run)
    with claim_to_read(run):
        trained, origin = read_trained(run, store_path, size), read_origin(run)
        scans = describe_training_scans(run, store_path)
    rules = PostprocessRules(largest_organ=trained.labels.organ is not None, min_lesion_ml=min_lesion_ml)
    written = {}
    with ExitStack() as appear_together:
        for flavor in (trained.with_required_outputs(requested) for requested in flavors):
            path = flavor_path(model, flavor)
            aside = appear_together.enter_context(atomic_write(path))
            graph = trained.graph(flavor)
            write_onnx(graph, trained.parity_slices, aside)
            parity = measure_parity(graph, aside, trained.parity_slices, trained.graph())
            written[path] = describe_model(origin, trained, flavor, parity, rules)
            add_metadata(aside, written[path].as_json(), scans)
            if flavor.bytes_in and (broken := find_tensorrt_breaches(aside)):
                raise ModelError(
                    f"{path}: does not pass the static TensorRT checks ({'; '.join(broken)}); no model was written."
                )
    return written


def check(run: Path, model: Path, *, store_path: Path | None = None) -> dict[Path, Parity]:
    """Compare `model` and its other flavors in the same folder with a run's network, and return the parity of each.

    Raises
    ------
    ModelError
        There is no such file, or one is not the network of this run.
    ConfigError
        The run is being trained.
    """
    parities: dict[Path, Parity] = {}
    trained_by_size: dict[tuple[int, int], TrainedNetwork] = {}
    for flavor in FLAVORS:
        path = flavor_path(model, flavor)
        if path.exists():
            onnx_graph = load_checked_onnx(path).graph
            size = slice_size(onnx_graph, path)
            if size not in trained_by_size:
                require_trained(run)
                with claim_to_read(run):
                    trained_by_size[size] = read_trained(run, store_path, size)
            trained = trained_by_size[size]
            outputs = {output.name for output in onnx_graph.output}
            graph = trained.graph(replace(flavor, probability="probability" in outputs))
            parities[path] = measure_parity(graph, path, trained.parity_slices, trained.graph())
            if flavor.bytes_in and (broken := find_tensorrt_breaches(path)):
                raise ModelError(
                    f"{path}: does not pass the static TensorRT checks ({'; '.join(broken)}); export it again."
                )
    if not parities:
        raise ModelError(f"{model}: does not exist; write it with `slicemill export {run} {model}`.")
    return parities


def flavor_path(model: Path, flavor: Flavor) -> Path:
    """Return the file of a flavor.

    >>> flavor_path(Path("liver.onnx"), Flavor(half=True, bytes_in=True)).name
    'liver.bytes.fp16.onnx'
    """
    return model.with_name(model.name.removesuffix(".onnx") + flavor.suffix)


def describe_model(
    origin: Origin, trained: TrainedNetwork, flavor: Flavor, parity: Parity, rules: PostprocessRules
) -> ModelCard:
    """Return the metadata of a model file."""
    turn_off_telemetry()
    import onnxruntime

    labels, config = trained.labels, trained.config
    installed = {name: number for name, number in versions().items() if name in VERSIONED}
    return ModelCard(
        labels=dict(labels.values),
        organ=labels.organ,
        tumor=labels.tumor,
        window_hu=(config.window_low, config.window_high),
        context=config.context,
        context_spacing_mm=config.window_spacing_mm,
        spacing_mm=config.network_spacing_mm,
        size_multiple=config.size_multiple,
        input=flavor.input,
        precision=flavor.precision,
        postprocess={name: value for name, value in rules.as_json().items() if name in EXPORTED_RULES},
        parity=parity,
        training=origin.training,
        store_sha256=trained.document["store_sha256"],
        license=LICENSE,
        weights_sha256=origin.weights_sha256,
        versions={**installed, "onnxruntime": onnxruntime.__version__},
    )


def read_origin(run: Path) -> Origin:
    """Read where the weights of a run come from.

    Raises
    ------
    ModelError
        No epoch of the run is finished.
    """
    return Origin(training=summarize_training(run), weights_sha256=sha256_of_file(run / BEST))


def summarize_training(run: Path) -> TrainingSummary:
    """Return a summary of the training of a run's best network.

    Raises
    ------
    ModelError
        No epoch of the run is finished.
    """
    state = read_state(run)
    best = next((row for row in state.rows if row.get("epoch") == state.best_epoch), None)
    if best is None:
        raise ModelError(f"{run}: has no finished epoch; run `slicemill train` again.")
    return {
        "epochs": state.epoch,
        "minutes": round(state.seconds / 60, 2),
        "best_epoch": state.best_epoch,
        "validation": {
            name: value for name, value in best.items() if name.startswith("validation_") and _is_finite(value)
        },
    }


def _is_finite(value: object) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


def add_metadata(path: Path, metadata: Mapping[str, Any], scans: TrainingScans | None = None) -> None:
    """Check an ONNX file, and write the metadata and what the training scans are like into it; remove machine paths."""
    import onnx

    model = load_checked_onnx(path)
    del model.metadata_props[:]
    entry = model.metadata_props.add()
    entry.key, entry.value = METADATA_KEY, to_json(metadata)
    if scans is not None:
        entry = model.metadata_props.add()
        entry.key, entry.value = TRAINING_SCANS_KEY, to_json(to_document(scans))
    for node in model.graph.node:
        del node.metadata_props[:]
        node.doc_string = ""
    onnx.save(model, path)
