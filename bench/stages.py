"""Slices per second of each stage on one phantom, one process, beside what bounds it.

| stage | what is timed | bounded by |
|---|---|---|
| copy | the voxels copied once in memory | memory |
| decode | .nii.gz -> int16 slabs | gzip decoding |
| encode | slices through the store's codecs, nothing written | compression |
| ingest | .nii.gz image and mask -> a case of the store, with statistics | decode + encode |
| read | random slices with their labels out of the store | decompression |
| train | optimizer steps on batches streamed from the store | convolutions |
| infer | decoded scan -> labels, onnxruntime on the CPU | convolutions |
"""

import datetime as dt
import itertools
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from bench.clock import interleaved
from ingest.convert import convert_case
from ingest.discover import CaseFiles
from ingest.params import Params
from store.labels import LITS_LABELS
from store.layout import IMAGE, LABEL, codec_of
from store.machine import card
from store.phantom import PhantomSpec, make_phantom, write_nifti
from store.progress import progress
from store.reader import open_store
from store.scan import ScanReader
from store.writer import prepare_store

BATCH = 2
TRAIN_STEPS = 2
INFER_SLICES = 4


def run(folder: Path, *, size: int, slices: int, rounds: int) -> dict[str, Any]:
    """Measure every stage in interleaved rounds and return the record."""
    phantom = make_phantom(PhantomSpec(seed=1, shape=(slices, size, size)))
    image, mask = folder / "volume-1.nii.gz", folder / "segmentation-1.nii.gz"
    write_nifti(image, phantom.image, phantom.spacing_mm)
    write_nifti(mask, phantom.label, phantom.spacing_mm)
    case = CaseFiles(case_id="volume-1", patient_id="volume-1", image=image, mask=mask, root=folder)
    params = Params(labels=LITS_LABELS)
    store = folder / "store"
    prepare_store(store)
    convert_case(case, params, store)
    encoders = [codec_of("compact", name, size * size).encode for name in (IMAGE, LABEL)]
    opened = open_store(store)["volume-1"]
    order = np.random.default_rng(0).permutation(slices).tolist()
    copies, fresh = np.empty_like(phantom.image), itertools.count()

    def read_random() -> None:
        assert opened.label is not None  # noqa: S101 (the phantom has a mask)
        for z in order:
            opened.image.read(z)
            opened.label.read(z)

    def decode() -> None:
        with ScanReader(image, "image") as reader:
            for _ in reader.slabs():
                pass

    def ingest() -> None:
        target = folder / f"again-{next(fresh)}"
        prepare_store(target)
        convert_case(case, params, target)
        shutil.rmtree(target)

    contenders: dict[str, tuple[Callable[[], object], int]] = {
        "copy": (lambda: np.copyto(copies, phantom.image), slices),
        "decode": (decode, slices),
        "encode": (
            lambda: [(encoders[0](a), encoders[1](b)) for a, b in zip(phantom.image, phantom.label, strict=True)],
            slices,
        ),
        "ingest": (ingest, slices),
        "read": (read_random, slices),
        **networks(store, size),
    }
    work = {name: timed for name, (timed, _) in contenders.items()}
    with progress("stages", (rounds + 1) * len(work), "runs") as advance:
        timings = interleaved(work, rounds=rounds, tell=lambda name: advance(1, name))
    return {
        "benchmark": "stages",
        "date": dt.datetime.now(dt.UTC).isoformat(timespec="seconds"),
        "unit": "slices",
        "slice": [size, size],
        "slices": slices,
        "page_cache": "warm",
        "store_bytes_over_gzip": round(
            sum(p.stat().st_size for p in store.rglob("0")) / (image.stat().st_size + mask.stat().st_size), 3
        ),
        "results": {name: timings[name].as_json(contenders[name][1]) for name in contenders},
        "machine": card(),
    }


def networks(store: Path, size: int) -> dict[str, tuple[Callable[[], object], int]]:
    """Return the contenders that run the default network: training steps, and inference with its exported graph."""
    import torch

    from infer.model import open_model
    from infer.single import segment_volume
    from train.config import Config
    from train.dataset import Batches, View
    from train.export import CONTRACT, add_metadata, proof_slices, to_onnx
    from train.graph import Exported
    from train.sampling import Place
    from train.setup import choose_device, choose_precision
    from train.step import build, class_of_value, make_learner, network_input, on_device, one_step

    config = Config(batch=BATCH)
    device = choose_device("cpu")
    learner = make_learner(LITS_LABELS, config, device, choose_precision("auto", device))
    to_class = class_of_value(LITS_LABELS, device)
    path = store.parent / "model.onnx"
    opened = open_store(store)
    graph = Exported(build(LITS_LABELS, config).eval(), config, LITS_LABELS).eval()
    to_onnx(graph, proof_slices(opened, ("volume-1",), config, (size, size)), path)
    postprocess = {"largest_organ": True, "min_lesion_ml": 0.0}
    add_metadata(
        path,
        {
            "contract": CONTRACT,
            "input": "int16",
            "context": config.context,
            "postprocess": postprocess,
            **LITS_LABELS.as_json(),
        },
    )
    model = open_model(path, "cpu")
    volume = opened["volume-1"].image[:INFER_SLICES]
    generator = torch.Generator().manual_seed(0)
    batches = Batches(opened, View(size=(size, size), context=config.context), BATCH)

    def train() -> None:
        places = [Place("volume-1", z % len(opened["volume-1"].image)) for z in range(TRAIN_STEPS * BATCH)]
        learner.network.train()
        with batches.over(places, (0, 0)) as stream:
            for batch in stream:
                given = network_input(on_device(batch, to_class), config, (size, size), generator)
                one_step(learner, given)

    return {
        "train": (train, TRAIN_STEPS * BATCH),
        "infer": (lambda: segment_volume(model, volume, (1.0, 1.0, 1.0)), len(volume)),
    }
