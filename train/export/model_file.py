"""A trained run -> one ONNX file, shown only after its labels were proved equal to the network's.

Windowing, normalization, the choice of neighbours, the network, softmax and the choice of the label are inside the
graph: raw HU in, label values out. What needs the whole scan is written into the metadata.
"""

import logging
import math
import warnings
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from slicemill.common.errors import ModelError
from slicemill.common.files import atomic_write, sha256_of_file, to_json
from slicemill.common.machine import versions
from slicemill.ct.crop import centered, fit, neighbor_step, neighbors
from slicemill.ct.labels import Labels, labels_from_json
from slicemill.ct.pictures import evenly_spaced
from slicemill.ct.window import AIR_HU
from slicemill.store.reader import Store, open_store
from slicemill.store.split import read_split
from slicemill.train.config import Config, read_config
from slicemill.train.export.audit import audit
from slicemill.train.export.graph import DEFAULT, Exported, Flavor
from slicemill.train.network.step import build
from slicemill.train.run.checkpoint import BEST, load_weights, read_state
from slicemill.train.run.setup import CONFIG, SPLIT, run_document

CONTRACT = 1
OPSET = 20
"""The highest that TensorRT 10's parser takes, and the exporter's default (design notes, RUNTIME section 2.1)."""
MAX_DIFFERING = {"batch": 1e-5, "instance": 1e-3}
"""Share of label pixels in which onnxruntime may differ from torch in fp32, by the network's norm (RUNTIME section 7)."""
MAX_DIFFERING_HALF = 1e-3
"""The same for a network in float16 against the one in float32."""
TIE = 1e-4
"""Two logits are a tie when they are this part of the slice's largest winning one apart or less: a thousand roundings of float32."""
PROOF_SLICES = 12
MAX_SIDE = 4096
"""Pixels; `infer` opens nothing larger."""
FLAVORS = (DEFAULT, Flavor(half=True), Flavor(half=True, bytes_in=True), Flavor(bytes_in=True))

Proof = list[tuple[npt.NDArray[np.int16], npt.NDArray[np.int32]]]
"""Slices int16[c, H, W], HU, and the window int32[1, c] of the one that is labelled."""


@dataclass(frozen=True, kw_only=True)
class Postprocess:
    """What the runtime does to a whole label volume."""

    largest_organ: bool
    """Keep only the largest connected component of the organ with its tumors."""
    min_lesion_ml: float
    """Tumors smaller than this become organ (background where there is no organ label)."""

    def as_json(self) -> dict[str, Any]:
        """Return the fields as they stand in the metadata."""
        return {"largest_organ": self.largest_organ, "min_lesion_ml": self.min_lesion_ml}


def export(
    run: Path,
    model: Path,
    *,
    flavors: Sequence[Flavor] = (DEFAULT,),
    store_path: Path | None = None,
    min_lesion_ml: float = 0.0,
    size: tuple[int, int] | None = None,
) -> dict[Path, dict[str, Any]]:
    """Write a run's best network as ONNX, a file a flavor beside `model`, and return the metadata of each.

    Parameters
    ----------
    flavors
        What goes into the files; each name is that of `model` with the flavor's suffix. None is shown before all are proved.
    store_path
        Where the slices for the proof are read; by default the store that the run was trained on.
    size
        Height and width of the slices that the files take; by default those that the run was trained for.

    Raises
    ------
    ModelError
        There is no trained network, it cannot take slices of that size, or onnxruntime's labels differ from torch's.
    """
    trained = read_trained(run, store_path, size)
    postprocess = Postprocess(largest_organ=trained.labels.organ is not None, min_lesion_ml=min_lesion_ml)
    written = {}
    with ExitStack() as shown_together:
        for flavor in (trained.needed(asked) for asked in flavors):
            path = path_of(model, flavor)
            aside = shown_together.enter_context(atomic_write(path))
            graph = trained.graph(flavor)
            to_onnx(graph, trained.proof, aside)
            parity = prove(graph, aside, trained.proof, trained.graph())
            written[path] = describe(run, trained, flavor, parity, postprocess)
            add_metadata(aside, written[path])
            if flavor.bytes_in and (broken := audit(aside)):
                raise ModelError(f"{path}: breaks TensorRT's rules ({'; '.join(broken)}); no model was written.")
    return written


def check(run: Path, model: Path, *, store_path: Path | None = None) -> dict[Path, dict[str, Any]]:
    """Prove the files that stand beside `model`, itself among them, against a run's network, and return the parity of each.

    Raises
    ------
    ModelError
        There is no such file, or one that is not the network of this run.
    """
    proved: dict[Path, dict[str, Any]] = {}
    known: dict[tuple[int, int], Trained] = {}
    for flavor in FLAVORS:
        path = path_of(model, flavor)
        if path.exists():
            whole = onnx_checked(path).graph
            size = size_of(whole, path)
            if size not in known:
                known[size] = read_trained(run, store_path, size)
            trained = known[size]
            outputs = {output.name for output in whole.output}
            graph = trained.graph(replace(flavor, probability="probability" in outputs))
            proved[path] = prove(graph, path, trained.proof, trained.graph())
            if flavor.bytes_in and (broken := audit(path)):
                raise ModelError(f"{path}: breaks TensorRT's rules ({'; '.join(broken)}); export it again.")
    if not proved:
        raise ModelError(f"{model}: there is no such file; write it with `slicemill export {run} {model}`.")
    return proved


def path_of(model: Path, flavor: Flavor) -> Path:
    """Return the file of a flavor.

    >>> path_of(Path("liver.onnx"), Flavor(half=True, bytes_in=True)).name
    'liver.bytes.fp16.onnx'
    """
    return model.with_name(model.name.removesuffix(".onnx") + flavor.suffix)


@dataclass(frozen=True, kw_only=True)
class Trained:
    """A run's best network with all that its files are made from."""

    config: Config
    labels: Labels
    document: Mapping[str, Any]
    network: nn.Module
    proof: Proof

    def needed(self, flavor: Flavor) -> Flavor:
        """Return a flavor with the outputs that the network needs: a pixel size wants probabilities, to bring labels back from."""
        return replace(flavor, probability=flavor.probability or self.config.wanted_spacing_mm is not None)

    def graph(self, flavor: Flavor = DEFAULT) -> Exported:
        """Return the graph of a flavor."""
        return Exported(self.network, self.config, self.labels, flavor).eval()


def read_trained(run: Path, store_path: Path | None, size: tuple[int, int] | None = None) -> Trained:
    """Read a run's best network, and slices to prove its files on, of the size that it was trained for or another.

    Raises
    ------
    ModelError
        There is none, or it cannot take slices of that size.
    """
    if not (run / BEST).exists():
        raise ModelError(f"{run}: holds no trained network ({BEST}); run `slicemill train` first.")
    config = read_config(run / CONFIG)
    document = run_document(run)
    labels = labels_from_json(document)
    network = build(labels, config)
    load_weights(run / BEST, network)
    store = open_store(store_path or str(document["store"]))
    split = read_split(run / SPLIT, store.case_ids)
    size = size or (int(document["size"][0]), int(document["size"][1]))
    multiple = 2**config.depth
    if any(side < multiple or side % multiple or side > MAX_SIDE for side in size):
        raise ModelError(
            f"slices of {size[0]}x{size[1]}: the network of {run} halves them {config.depth} times, so that height and width are "
            f"multiples of {multiple}, up to {MAX_SIDE}; larger and smaller scans are tiled and padded by infer."
        )
    return Trained(
        config=config,
        labels=labels,
        document=document,
        network=network.eval(),
        proof=proof_slices(store, split.validation, config, size),
    )


def size_of(graph: Any, path: Path) -> tuple[int, int]:
    """Return height and width of the slices that an ONNX graph takes: int16[n, H, W] or, as bytes, uint8[n, 1, H, W, 2].

    Raises
    ------
    ModelError
        It takes something else.
    """
    sides = [side.dim_value for side in graph.input[0].type.tensor_type.shape.dim]
    if len(sides) not in (3, 5):
        raise ModelError(f"{path}: takes arrays of {len(sides)} axes; it is no file of slicemill export.")
    height, width = sides[1:3] if len(sides) == 3 else sides[2:4]
    return height, width


def proof_slices(store: Store, cases: tuple[str, ...], config: Config, size: tuple[int, int]) -> Proof:
    """Return real slices of the validation cases, each with its neighbours: int16[c, H, W] and int32[1, c]."""
    places = [(case_id, z) for case_id in cases for z in range(len(store[case_id].image))]
    proof: Proof = []
    for case_id, z in evenly_spaced(places, PROOF_SLICES):
        array = store[case_id].image
        apart = neighbor_step(config.window_spacing_mm, store[case_id].info.spacing_mm[0])
        around = neighbors(z, len(array), config.context, apart)
        image = np.empty((config.context, *size), dtype=np.int16)
        for out, neighbor in zip(image, around, strict=True):
            section = array.read(neighbor)
            fit(section, centered(section.shape, size), AIR_HU, out)
        proof.append((image, np.arange(config.context, dtype=np.int32)[None]))
    return proof


def to_onnx(graph: Exported, proof: Proof, path: Path) -> None:
    """Export with dynamic numbers of slices; height and width are fixed."""
    image, window = (np.concatenate([array, array]) for array in proof[0])
    feed = graph.feed(image, window)
    several = {"image": torch.export.Dim("n", min=1, max=65536), "neighbors": torch.export.Dim("b", min=1, max=65536)}
    example = tuple(torch.from_numpy(array) for array in feed.values())
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            graph,
            example,
            path,
            input_names=list(feed),
            output_names=graph.outputs,
            dynamic_shapes=tuple({0: several[name]} for name in feed),
            opset_version=OPSET,
            dynamo=True,
            external_data=False,
            verbose=False,
        )
    with_short_indices(path)


def with_short_indices(path: Path) -> None:
    """Let Gather take the int32 indices of ``neighbors``, as ONNX allows: the exporter makes them int64, which TensorRT would compute with."""
    import onnx

    model = onnx.load(path)
    makers = {name: node for node in model.graph.node for name in node.output}
    for node in model.graph.node:
        cast = makers.get(node.input[1]) if node.op_type == "Gather" else None
        if cast is not None and cast.op_type == "Cast":
            node.input[1] = cast.input[0]
            model.graph.node.remove(cast)
            for value in [value for value in model.graph.value_info if value.name == cast.output[0]]:
                model.graph.value_info.remove(value)
    onnx.save(model, path)


@torch.no_grad()
def prove(graph: Exported, path: Path, proof: Proof, reference: Exported | None = None) -> dict[str, Any]:
    """Compare onnxruntime with torch on real slices; a graph in float16 with the one in float32, its `reference`.

    Where torch's own logit of the label that onnxruntime gives is TIE or less below its best, either label is right: such a pixel is
    counted as a tie and not held against the file. A network that hardly trained can have whole fields of air there.

    Raises
    ------
    ModelError
        More of the label pixels differ than MAX_DIFFERING allows.
    """
    session = cpu_session(path)
    reference = reference or graph
    differing = ties = pixels = 0
    class_of = np.zeros(256, dtype=np.int64)
    class_of[graph.values] = np.arange(len(graph.values))
    worst = 0.0
    for image, window in proof:
        label, *others = session.run(graph.outputs, graph.feed(image, window))
        logits = reference.logits(*(torch.from_numpy(array) for array in reference.feed(image, window).values()))
        expected, *wanted = (output.numpy() for output in reference.told(logits))
        other = label != expected
        tied = other & tie(logits, torch.from_numpy(class_of[label])).numpy()
        differing += int(np.count_nonzero(other)) - int(np.count_nonzero(tied))
        ties += int(np.count_nonzero(tied))
        pixels += label.size
        worst = max([worst, *(apart(one, other) for one, other in zip(others, wanted, strict=False))])
    limit = MAX_DIFFERING_HALF if graph.flavor.half else MAX_DIFFERING[graph.norm]
    if differing > limit * pixels:
        raise ModelError(
            f"{path.name}: onnxruntime's labels differ from torch's in {differing:,} of {pixels:,} pixels (at most {limit:g} of them may); "
            "no model was written. Please report this with the versions that `slicemill doctor` prints."
        )
    return {
        "slices": len(proof),
        "pixels": pixels,
        "labels_differing": differing,
        "ties": ties,
        "max_probability_difference": worst,
        "limit": limit,
    }


def tie(logits: torch.Tensor, given: torch.Tensor) -> torch.Tensor:
    """Return where the given classes int64[b, y, x] are as good as the best of logits [b, k, y, x], but for rounding: bool[b, y, x]."""
    wide = logits.float()
    best = wide.amax(dim=1)
    return best - wide.gather(1, given[:, None])[:, 0] <= TIE * best.abs().amax(dim=(1, 2), keepdim=True)


def apart(one: npt.NDArray[Any], other: npt.NDArray[Any]) -> float:
    """Return the largest difference of two arrays of probabilities, which bytes give in 255ths."""
    scale = 255 if one.dtype == np.uint8 else 1
    return float(np.abs(one.astype(np.float64) - other.astype(np.float64)).max()) / scale


def cpu_session(path: Path) -> Any:
    """Return an onnxruntime session on the CPU.

    Raises
    ------
    ModelError
        onnxruntime is not installed.
    """
    try:
        import onnxruntime
    except ImportError as error:
        raise ModelError(
            "export proves its labels with onnxruntime, which is missing: pip install 'slicemill[cpu]' (or [gpu])."
        ) from error
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def describe(
    run: Path, trained: Trained, flavor: Flavor, parity: dict[str, Any], postprocess: Postprocess
) -> dict[str, Any]:
    """Return the metadata ``slicemill`` of the model file."""
    import onnxruntime

    document, config = trained.document, trained.config
    state = read_state(run)
    best = next((row for row in state.rows if row.get("epoch") == state.best_epoch), None)
    if best is None:
        raise ModelError(f"{run}: no epoch of it is finished yet; run `slicemill train` again.")
    return {
        "contract": CONTRACT,
        "labels": document["labels"],
        "organ": document["organ"],
        "tumor": document["tumor"],
        "window_hu": [config.window_low, config.window_high],
        "context": config.context,
        "context_spacing_mm": config.window_spacing_mm,
        "spacing_mm": config.wanted_spacing_mm,
        "size_multiple": 2**config.depth,
        "input": "bytes" if flavor.bytes_in else "int16",
        "precision": flavor.precision,
        "postprocess": postprocess.as_json(),
        "parity": parity,
        "training": {
            "epochs": state.epoch,
            "minutes": round(state.seconds / 60, 2),
            "best_epoch": state.best_epoch,
            "validation": {
                name: value for name, value in best.items() if name.startswith("validation_") and _is_number(value)
            },
        },
        "store_sha256": document["store_sha256"],
        "license": "research use; not a medical device",
        "weights_sha256": sha256_of_file(run / BEST),
        "versions": {
            **{name: number for name, number in versions().items() if name in ("slicemill", "torch", "onnx")},
            "onnxruntime": onnxruntime.__version__,
        },
    }


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


def onnx_checked(path: Path) -> Any:
    """Return an ONNX file that the checker of onnx finds whole."""
    import onnx

    model = onnx.load(path)
    onnx.checker.check_model(model, full_check=True)
    return model


def add_metadata(path: Path, metadata: dict[str, Any]) -> None:
    """Check the ONNX file and put the metadata into it."""
    import onnx

    model = onnx_checked(path)
    del model.metadata_props[:]
    entry = model.metadata_props.add()
    entry.key, entry.value = "slicemill", to_json(metadata)
    for node in model.graph.node:
        del node.metadata_props[:]
        node.doc_string = ""
    onnx.save(model, path)
