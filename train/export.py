"""A trained run -> one ONNX file, shown only after its labels were proved equal to the network's.

Windowing, normalization, the choice of neighbours, the network, softmax and the choice of the label are inside the
graph: raw HU in, label values out. What needs the whole scan is written into the metadata.
"""

import logging
import math
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from store.errors import ModelError
from store.files import to_json, written_whole
from store.framing import centered, fit, neighbor_step, neighbors
from store.labels import Labels, labels_from_json
from store.layout import AIR_HU
from store.picture import spread
from store.reader import Store, open_store
from train.checkpoint import BEST, load_weights, read_state
from train.config import Config, read_config
from train.setup import CONFIG, SPLIT, run_document
from train.split import read_split
from train.step import build
from train.unet import UNet, normalize

CONTRACT = 1
OPSET = 20
"""The highest that TensorRT 10's parser takes, and the exporter's default (design notes, RUNTIME section 2.1)."""
MAX_DIFFERING = {"batch": 1e-5, "instance": 1e-3}
"""Share of label pixels in which onnxruntime may differ from torch in fp32, by the network's norm (RUNTIME section 7)."""
PROOF_SLICES = 12


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


class Exported(nn.Module):
    """The whole graph: int16[n, H, W] HU and int32[b, c] neighbours -> uint8[b, H, W] labels, float32[b, k, H, W]."""

    def __init__(self, network: UNet, config: Config, labels: Labels) -> None:
        super().__init__()
        self.network = network
        self.low, self.high = config.window_low, config.window_high
        self.norm = config.norm
        self.values = [int(value) for value in labels.table()]

    def forward(self, image: Tensor, neighbors: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Return labels and probabilities."""
        normal = normalize(image, self.low, self.high)
        windows = normal[:, None] if neighbors is None else normal[neighbors.long()]
        logits = self.network(windows)
        label = torch.zeros_like(logits[:, 0])
        best = logits[:, 0]
        for index, value in enumerate(self.values[1:], start=1):
            better = logits[:, index] > best
            label = torch.where(better, torch.full_like(label, float(value)), label)
            best = torch.maximum(best, logits[:, index])
        return label.to(torch.uint8), logits.softmax(dim=1)


def export(run: Path, model: Path, *, store_path: Path | None = None, min_lesion_ml: float = 0.0) -> dict[str, Any]:
    """Write a run's best network as ONNX and return its metadata.

    Parameters
    ----------
    store_path
        Where the slices for the proof are read; by default the store that the run was trained on.

    Raises
    ------
    ModelError
        There is no trained network, or onnxruntime's labels differ from torch's.
    """
    if not (run / BEST).exists():
        raise ModelError(f"{run}: holds no trained network ({BEST}); run `slicemill train` first.")
    config = read_config(run / CONFIG)
    document = run_document(run)
    labels = labels_from_json(document)
    size = (document["size"][0], document["size"][1])
    network = build(labels, config)
    load_weights(run / BEST, network)
    store = open_store(store_path or str(document["store"]))
    split = read_split(run / SPLIT, store.case_ids)
    graph = Exported(network.eval(), config, labels).eval()
    proof = proof_slices(store, split.validation, config, size)
    with written_whole(model) as aside:
        to_onnx(graph, proof, aside)
        parity = prove(graph, aside, proof)
        metadata = describe(
            run,
            document,
            config,
            parity,
            Postprocess(largest_organ=labels.organ is not None, min_lesion_ml=min_lesion_ml),
        )
        add_metadata(aside, metadata)
    return metadata


Proof = list[tuple[npt.NDArray[np.int16], npt.NDArray[np.int32]]]


def proof_slices(store: Store, cases: tuple[str, ...], config: Config, size: tuple[int, int]) -> Proof:
    """Return real slices of the validation cases, each with its neighbours: int16[c, H, W] and int32[1, c]."""
    places = [(case_id, z) for case_id in cases for z in range(len(store[case_id].image))]
    proof: Proof = []
    for case_id, z in spread(places, PROOF_SLICES):
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
    image, window = (torch.from_numpy(array) for array in proof[0])
    several = torch.export.Dim("n", min=1, max=65536)
    labelled = torch.export.Dim("b", min=1, max=65536)
    example: tuple[Tensor, ...]
    if image.shape[0] > 1:
        example, names = (torch.cat([image, image]), torch.cat([window, window])), ["image", "neighbors"]
        shapes: tuple[dict[int, Any], ...] = ({0: several}, {0: labelled})
    else:
        example, names, shapes = (torch.cat([image, image]),), ["image"], ({0: several},)
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            graph,
            example,
            path,
            input_names=names,
            output_names=["label", "probability"],
            dynamic_shapes=shapes,
            opset_version=OPSET,
            dynamo=True,
            external_data=False,
            verbose=False,
        )


@torch.no_grad()
def prove(graph: Exported, path: Path, proof: Proof) -> dict[str, Any]:
    """Compare onnxruntime with torch on real slices.

    Raises
    ------
    ModelError
        More of the label pixels differ than MAX_DIFFERING allows.
    """
    session = cpu_session(path)
    names = [given.name for given in session.get_inputs()]
    differing = pixels = 0
    worst = 0.0
    for image, window in proof:
        arrays = (image, window)[: len(names)]
        label, probability = session.run(["label", "probability"], dict(zip(names, arrays, strict=True)))
        expected, expected_probability = graph(*(torch.from_numpy(array) for array in arrays))
        differing += int(np.count_nonzero(label != expected.numpy()))
        pixels += label.size
        worst = max(worst, float(np.abs(probability - expected_probability.numpy()).max()))
    limit = MAX_DIFFERING[graph.norm]
    if differing > limit * pixels:
        raise ModelError(
            f"{path.name}: onnxruntime's labels differ from torch's in {differing:,} of {pixels:,} pixels (at most {limit:g} of them may); "
            "no model was written. Please report this with the versions that `slicemill doctor` prints."
        )
    return {
        "slices": len(proof),
        "pixels": pixels,
        "labels_differing": differing,
        "max_probability_difference": worst,
        "limit": limit,
    }


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
    run: Path, document: Mapping[str, Any], config: Config, parity: dict[str, Any], postprocess: Postprocess
) -> dict[str, Any]:
    """Return the metadata ``slicemill`` of the model file."""
    import onnxruntime

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
        "input": "int16",
        "precision": "fp32",
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
        "versions": {"torch": torch.__version__, "onnxruntime": onnxruntime.__version__},
    }


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


def add_metadata(path: Path, metadata: dict[str, Any]) -> None:
    """Check the ONNX file and put the metadata into it."""
    import onnx

    model = onnx.load(path)
    onnx.checker.check_model(model, full_check=True)
    del model.metadata_props[:]
    entry = model.metadata_props.add()
    entry.key, entry.value = "slicemill", to_json(metadata)
    for node in model.graph.node:
        del node.metadata_props[:]
        node.doc_string = ""
    onnx.save(model, path)
