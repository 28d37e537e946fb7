"""Inference on the CPU, end to end and part by part, beside the bare session and beside what people write.

What bounds it: the convolutions. The limit of the whole is the bare session, the same network on the same number of slices that lie in
memory, in the same batches, with the same outputs: once as people call it, one batch after the other on all cores, and once as
`infer` does, a batch on each core. The network has random weights, but its labels are the phantom's liver and tumors: their HU
are raised out of the range of all else (`marked`), so that post-processing, report and picture have the work of a real scan.

| row | contenders |
|---|---|
| whole | .nii.gz in, .nii.gz, report and picture out, with and without post-processing, over the bare session and the bare network on each core |
| host | CPU time of everything around a network that costs next to nothing, against the usual script's |
| engines | onnxruntime in fp32 against torch eager, NCHW and channels last |
| components | largest organ and small lesions away, against scipy, with equal labels |
| many | 64 small scans as a folder, against a session called scan by scan by 8; the command on the folder, against the command for each |
"""

import datetime as dt
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

import nibabel as nib
import numpy as np
import numpy.typing as npt
import onnxruntime as ort
import torch
from scipy import ndimage
from torch import Tensor, nn

from slicemill.bench.harness.clock import Timing, ratio, timed
from slicemill.common.documents import to_document
from slicemill.common.files import Location, write_json
from slicemill.common.machine import machine_info
from slicemill.common.progress import progress
from slicemill.ct.formats.nifti.write import write_volume
from slicemill.ct.geometry import Grid
from slicemill.ct.labels import LITS_LABELS
from slicemill.ct.phantom import PhantomSpec, make_phantom, write_nifti
from slicemill.ct.pictures import save_png
from slicemill.ct.window import Window
from slicemill.infer.inputs.gather import gather
from slicemill.infer.inputs.jobs import Job, load
from slicemill.infer.network.lanes import make_lane
from slicemill.infer.network.model import Model, open_model
from slicemill.infer.postprocess import postprocess
from slicemill.infer.report import make_report, overlay
from slicemill.infer.run.options import InferOptions
from slicemill.infer.run.pipeline import DEFAULTS, infer
from slicemill.infer.runtime.capacity import capacity_of, lanes_on
from slicemill.infer.slices.assembly import plan_of
from slicemill.infer.slices.batches import Filler, Scan
from slicemill.store.model_card import CONTRACT, PostprocessRules
from slicemill.train.config import Config
from slicemill.train.export.audit import gflop_a_slice
from slicemill.train.export.graph import DEFAULT, Exported, Flavor
from slicemill.train.export.model_file import add_metadata
from slicemill.train.export.onnx_graph import to_onnx
from slicemill.train.network.step import build

SIZE = 512
FEW, MANY = 4, 12
"""Scans."""
MIN_LESION_ML = 0.2
BLUR = 8
WINDOW = Window(-200, 2300)
MARKED = Config(window_low=WINDOW.low, window_high=WINDOW.high)
"""Settings of a `Guided` network."""
LIVER_FROM, TUMOR_FROM = 550, 1585
"""HU: halfway between the tissues in which the network finds liver and tumor."""
SMALL, SMALL_SIDE, SMALL_SLICES = 64, 128, 12
FIXED_BATCH = 8
SPECKS = 400
COMMANDS = 4
"""Scans that are segmented by a command each; their mean stands for all 64."""
CONTENDERS = 20
"""Of all rows."""
Record = dict[str, Any]
LANES_ALONE = "bare network, a batch on each core"
SESSION_ALONE = "bare session, one batch on all cores"
SESSION_SENTENCE = "the network alone, on slices in memory, one batch after the other"


class Guided(nn.Module):
    """A network with all its work and the labels that `marked` HU ask for: float[b, c, y, x] -> logits float[b, 3, y, x]."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> Tensor:
        """Return logits: organ above LIVER_FROM, tumor above TUMOR_FROM, coarsely."""
        coarse = nn.functional.avg_pool2d(x[:, x.shape[1] // 2, None], BLUR)
        middle = nn.functional.interpolate(coarse, scale_factor=float(BLUR), mode="nearest")
        liver, tumor = (2 * (hu - WINDOW.low) / (WINDOW.high - WINDOW.low) - 1 for hu in (LIVER_FROM, TUMOR_FROM))
        guide = torch.cat([middle * 0, middle - liver, 2 * (middle - liver) - (tumor - liver)], dim=1)
        logits: Tensor = 60 * guide + 1e-3 * self.network(x)
        return logits


class Sampled(Exported):
    """A whole graph that costs next to nothing: the labels of every eighth pixel, by the same HU as `Guided`."""

    def __init__(self, config: Config) -> None:
        super().__init__(nn.Identity(), config, LITS_LABELS)

    def forward(self, image: Tensor, neighbors: Tensor | None = None) -> tuple[Tensor, ...]:  # noqa: ARG002 (a slice is its own window)
        """Return label and tumor, uint8[b, y, x], of slices int16[b, y, x], HU."""
        few = image[:, ::BLUR, ::BLUR].float()
        tumor = (few > TUMOR_FROM).float()
        label = (few > LIVER_FROM).float() + tumor
        return tuple(self.large(map_.to(torch.uint8)) for map_ in (label, 255 * tumor))

    def large(self, map_: Tensor) -> Tensor:
        """Return a map [b, y, x] with each pixel BLUR times as wide and high."""
        b, y, x = map_.shape
        return map_[:, :, None, :, None].expand(b, y, BLUR, x, BLUR).reshape(b, y * BLUR, x * BLUR)


class Light(nn.Module):
    """A network of about 10 ms a slice: a small U-Net at a quarter of the resolution."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.network = build(LITS_LABELS, replace(config, width=16, depth=2))

    def forward(self, x: Tensor) -> Tensor:
        """Return logits."""
        small = self.network(nn.functional.avg_pool2d(x, 4))
        large: Tensor = nn.functional.interpolate(small, scale_factor=4.0, mode="nearest")
        return large


def exported(path: Path, network: nn.Module, config: Config, size: int, flavor: Flavor = DEFAULT) -> Path:
    """Write a network as a model file without a proof."""
    return written(path, Exported(Guided(network).eval(), config, LITS_LABELS, flavor).eval(), config, size, flavor)


def written(path: Path, graph: Exported, config: Config, size: int, flavor: Flavor = DEFAULT) -> Path:
    """Write a whole graph as a model file without a proof."""
    window = np.arange(config.context, dtype=np.int32)[None]
    to_onnx(graph, [(np.zeros((config.context, size, size), dtype=np.int16), window)], path)
    rules = PostprocessRules(largest_organ=True, min_lesion_ml=MIN_LESION_ML)
    add_metadata(
        path,
        {
            "contract": CONTRACT,
            "input": "bytes" if flavor.bytes_in else "int16",
            "precision": flavor.precision,
            "context": config.context,
            "postprocess": rules.as_json(),
            **LITS_LABELS.as_json(),
        },
    )
    return path


def run(folder: Path, *, slices: int, rounds: int) -> Record:
    """Measure every row and return the record.

    Parameters
    ----------
    slices
        Slices of 512x512 that go through the default network in a round, as FEW scans; MANY scans of as many slices each go through
        those that are faster, so that beginning and end, which a run has once, are as small a part there.
    """
    scans, label = made_scans(folder / "scans", slices // FEW, FEW)
    more, _ = made_scans(folder / "more", slices // FEW, MANY)
    results: dict[str, Any] = {}
    with progress("infer", (rounds + 1) * CONTENDERS, "runs") as advance:

        def tell(name: str) -> None:
            advance(1, name)

        given = {"default": scans, "light": more}
        results["whole"] = {name: whole(folder, name, place, rounds, tell) for name, place in given.items()}
        results["host"] = host(folder, more, rounds, tell)
        results["engines"] = engines(folder, rounds, tell)
        results["components"] = components(label, rounds, tell)
        results["many"] = many(folder, rounds, tell)
    return {
        "benchmark": "infer",
        "date": dt.datetime.now(dt.UTC).isoformat(timespec="seconds"),
        "unit": f"slices of {SIZE}x{SIZE}",
        "slices": slices,
        "rounds": rounds,
        "page_cache": "warm",
        "clock": "wall",
        "results": results,
        "headline": headline_of(results),
        "machine": machine_info(),
    }


def headline_of(results: Record) -> Record:
    """Return what it comes down to: the default network with post-processing, from files to files."""
    whole, engines = results["whole"]["default"], results["engines"]
    name, bare, session = "with post-processing", "bare lanes", "bare session"
    rates = {key: row["per_second"] for key, row in engines["results"].items()}
    return {
        "ours": f"default network {name}, files to files",
        "per_second": whole["results"][name]["per_second"],
        "bound": "convolutions in onnxruntime",
        "gflop": whole["gflop_a_slice"],
        "arithmetic": "float32",
        "limit": {
            "name": LANES_ALONE,
            "per_second": whole["results"][bare]["per_second"],
            "fraction": whole["of the bare lanes"][name]["wall"],
        },
        "peers": {
            SESSION_ALONE: {
                "per_second": whole["results"][session]["per_second"],
                "times": whole["of the bare session"][name]["wall"],
                "what": SESSION_SENTENCE,
            },
            **{
                key: {
                    "per_second": rates[key],
                    "times": round(rates["onnxruntime"] / rates[key], 3),
                    "what": "the network alone, nothing read or written, beside onnxruntime's in the same rounds",
                }
                for key in ("torch eager", "torch eager, channels last")
            },
        },
        "verified": f"every scan was done; {engines['labels_differing']:.1e} of the labels differ from torch's",
    }


def made_scans(folder: Path, slices: int, count: int) -> tuple[Path, npt.NDArray[np.uint8]]:
    """Write scans of so many slices of one phantom, of two axis orders, and return them with its labels."""
    folder.mkdir()
    phantom = make_phantom(PhantomSpec(seed=1, shape=(max(8, slices), SIZE, SIZE)))
    raised = marked(phantom.image, phantom.label)
    for number in range(count):
        image = np.roll(raised, 3 * number, axis=0)
        write_nifti(folder / f"scan-{number}.nii.gz", image, phantom.spacing_mm, ("LPS", "RAS")[number % 2])
    return folder, phantom.label


def marked(image: npt.NDArray[np.int16], label: npt.NDArray[np.uint8]) -> npt.NDArray[np.int16]:
    """Return int16[z, y, x], HU, those of the liver raised by 1000 and those of tumors by 2000: what a `Guided` network finds."""
    return image + 1000 * label.astype(np.int16)


def network_of(name: str) -> tuple[nn.Module, Config]:
    """Return a network with random weights: the default one, or a light one."""
    torch.manual_seed(0)
    return (build(LITS_LABELS, MARKED) if name == "default" else Light(MARKED)), MARKED


def whole(folder: Path, name: str, scans: Path, rounds: int, tell: Callable[[str], None]) -> Record:
    """Measure the way from files to files over the bare session, with and without post-processing."""
    network, config = network_of(name)
    path = exported(folder / f"{name}.onnx", network, config, SIZE)
    model = open_model(path, "cpu")
    jobs, _ = gather([scans])
    stages: dict[str, Record] = {}
    total = sum(nib.load(job.path).shape[2] for job in jobs)

    contenders = {
        "bare session": bare(all_cores(path), scans, total),
        "bare lanes": bare(model, scans, total, lanes_on("cpu")),
        "without post-processing": lambda: stages.update(
            {"without post-processing": bulk(model, jobs, folder, InferOptions(postprocess=False))}
        ),
        "with post-processing": lambda: stages.update({"with post-processing": bulk(model, jobs, folder)}),
    }
    times = timed(contenders, rounds, tell)
    return {
        "results": times.as_json(total),
        "of the bare session": {key: times.faster(key, "bare session") for key in list(contenders)[1:]},
        "of the bare lanes": {key: times.faster(key, "bare lanes") for key in list(contenders)[2:]},
        "gflop_a_slice": round(gflop_a_slice(path), 3),
        "stages": stages,
    }


def bulk(model: Model, jobs: Sequence[Job], folder: Path, options: InferOptions = DEFAULTS) -> Record:
    """Segment scans into a folder that is thrown away, all of them; return where the time went, `slicemill.infer.run.timing`."""
    with tempfile.TemporaryDirectory(dir=folder) as out:
        summary = infer(model, jobs, Path(out), options)
    assert summary.count("done") == len(jobs), summary.outcomes  # noqa: S101 (a benchmark of failures measures nothing)
    return {stage: to_document(time) for stage, time in summary.stages.items()}


def all_cores(path: Path) -> Model:
    """Open a model as people do: one run takes all cores."""
    model = open_model(path, "cpu")
    options = ort.SessionOptions()
    options.intra_op_num_threads = len(os.sched_getaffinity(0))
    model.session = ort.InferenceSession(path.read_bytes(), options, providers=["CPUExecutionProvider"])
    return model


def bare(model: Model, scans: Path, total: int, at_once: int = 1) -> Callable[[], object]:
    """Return the network alone on so many slices of a real batch that lies in memory, with the outputs bound.

    `at_once` is how many batches are labelled at a time: as many as `infer` does, or one by a session that takes all cores.
    """
    loaded = load(gather([scans])[0][0])
    nz, ny, nx = loaded.volume.shape
    plan = plan_of(model.info, (nz, ny, nx), loaded.grid.spacing_mm)
    capacity = capacity_of(model.info, model.provider)
    filler = Filler(capacity)
    filler.add(Scan(plan, loaded.volume))
    batch = filler.next()
    while filler.waiting > nz // 2:
        batch = filler.next()
    lanes = [make_lane(model, capacity, plan.wanted) for _ in range(at_once)]
    images = [batch.show(lane.image) for lane in lanes]
    rounds = -(-total // len(batch.units))

    def drive(number: int) -> None:
        for _ in range(number, rounds, at_once):
            lanes[number].run(images[number], batch.neighbors, nullcontext())

    def work() -> None:
        with ThreadPoolExecutor(at_once) as pool:
            list(pool.map(drive, range(at_once)))

    return work


def host(folder: Path, scans: Path, rounds: int, tell: Callable[[str], None]) -> Record:
    """Measure the CPU time of what is done around a network, ours (with report and picture) and a script's (without)."""
    config = replace(MARKED, context=1)
    model = open_model(written(folder / "sampled.onnx", Sampled(config).eval(), config, SIZE), "cpu")
    jobs, _ = gather([scans])
    depth = nib.load(jobs[0].path).shape[2]
    total = depth * len(jobs)
    rng = np.random.default_rng(0)
    logits = ndimage.gaussian_filter(rng.standard_normal((depth, 3, SIZE, SIZE), dtype=np.float32), (2, 0, 8, 8))

    def theirs() -> None:
        with tempfile.TemporaryDirectory(dir=folder) as out:
            for job in jobs:
                usual_script(Path(str(job.path)), Path(out) / job.name, logits)

    times = timed(
        {
            "ours": lambda: bulk(model, jobs, folder),
            "its network": bare(model, scans, total, lanes_on("cpu")),
            "usual script": theirs,
        },
        rounds,
        tell,
    )
    around = [
        1000 * (one - other) / total
        for one, other in zip(times.cpu["ours"].seconds, times.cpu["its network"].seconds, strict=True)
    ]
    script = [1000 * seconds / total for seconds in times.cpu["usual script"].seconds]
    return {
        "results": times.as_json(total),
        "cpu_milliseconds_a_slice": {"ours": round(median(around), 3), "usual script": round(median(script), 3)},
        "times_less": round(median(b / a for a, b in zip(around, script, strict=True)), 2),
    }


def usual_script(scan: Path, out: Path, logits: npt.NDArray[np.float32]) -> None:
    """Segment a scan as most scripts do; the network's answer float32[z, k, y, x] is there already and costs nothing."""
    picture = nib.load(scan)
    volume = picture.get_fdata()
    windowed = (np.clip(volume, -200, 300) + 200) / 500
    label = np.zeros(volume.shape, dtype=np.uint8)
    for z in range(volume.shape[2]):
        np.ascontiguousarray(windowed[:, :, z], dtype=np.float32)[None, None]
        label[:, :, z] = np.argmax(logits[z], axis=0)
    nib.save(nib.Nifti1Image(naive_components(label, 20.0), picture.affine), out)


def naive_components(label: npt.NDArray[np.uint8], least: float) -> npt.NDArray[np.uint8]:
    """Return labels with the largest organ only, and tumors of fewer than `least` voxels as organ, by scipy."""
    label = label.copy()
    found, count = ndimage.label(label > 0, structure=np.ones((3, 3, 3)))
    if count:
        sizes = ndimage.sum_labels(label > 0, found, range(1, count + 1))
        label[found != 1 + int(np.argmax(sizes))] = 0
    found, count = ndimage.label(label == 2, structure=np.ones((3, 3, 3)))
    if count:
        sizes = ndimage.sum_labels(label == 2, found, range(1, count + 1))
        label[np.isin(found, 1 + np.flatnonzero(sizes < least))] = 1
    return label


def engines(folder: Path, rounds: int, tell: Callable[[str], None]) -> Record:
    """Measure onnxruntime against torch eager on a batch of two slices of noise, all cores."""
    network, config = network_of("default")
    model = all_cores(folder / "default.onnx")
    graph = Exported(Guided(network).eval(), config, LITS_LABELS).eval()
    rng = np.random.default_rng(0)
    image = (
        rng.integers(-1000, 4000, (4, SIZE // BLUR, SIZE // BLUR))
        .repeat(BLUR, axis=1)
        .repeat(BLUR, axis=2)
        .astype(np.int16)
    )
    window = np.array([[0, 1, 2], [1, 2, 3]], dtype=np.int32)
    given = [torch.from_numpy(array) for array in graph.feed(image, window).values()]
    before = torch.get_num_threads()
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    last = Exported(Guided(network).eval(), config, LITS_LABELS).eval()
    last = last.to(memory_format=torch.channels_last)  # type: ignore[call-overload] # torch leaves this one out

    def eager(module: nn.Module) -> Callable[[], Any]:
        def work() -> Any:
            with torch.inference_mode():
                return module(*given)

        return work

    def ours() -> Any:
        return model.run(image, window, ("label", "tumor"))

    expected = eager(graph)()[0].numpy()
    differing = int(np.count_nonzero(ours().label != expected))
    times = timed(
        {"onnxruntime": ours, "torch eager": eager(graph), "torch eager, channels last": eager(last)}, rounds, tell
    )
    torch.set_num_threads(before)
    return {
        "results": times.as_json(2),
        "labels_differing": differing / expected.size,
        "over torch eager": times.faster("onnxruntime", "torch eager"),
        "over torch eager, channels last": times.faster("onnxruntime", "torch eager, channels last"),
    }


def specked(label: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    """Return labels uint8[z, y, x] with SPECKS of liver and tumor of two voxels a side."""
    rng = np.random.default_rng(0)
    out = label.copy()
    for z, y, x in zip(*(rng.integers(0, side, SPECKS) for side in label.shape), strict=True):
        out[z : z + 2, y : y + 2, x : x + 2] = rng.integers(1, 3)
    return out


def cleaned(label: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    """Return labels uint8[z, y, x] with their largest organ alone, and without lesions of less than 10 voxels."""
    grid = Grid(shape=label.shape[::-1], affine=np.diag([-10.0, -10.0, 10.0, 1.0]))  # a voxel is 1 ml
    out = label.copy()
    postprocess(out, LITS_LABELS, PostprocessRules(largest_organ=True, min_lesion_ml=10.0), grid)
    return out


def components(label: npt.NDArray[np.uint8], rounds: int, tell: Callable[[str], None]) -> Record:
    """Measure largest organ and small lesions away, on a phantom's labels with specks, against scipy."""
    noisy = specked(label)
    equal = bool(np.array_equal(cleaned(noisy), naive_components(noisy, 10.0)))
    assert equal  # noqa: S101 (what gives other labels is no rival)
    times = timed({"ours": lambda: cleaned(noisy), "scipy": lambda: naive_components(noisy, 10.0)}, rounds, tell)
    return {"results": times.as_json(len(label)), "equal": equal, "over scipy": times.faster("ours", "scipy")}


def many(folder: Path, rounds: int, tell: Callable[[str], None]) -> Record:
    """Measure 64 small scans as one folder, scan by scan in one session, by one command, and by a command each."""
    network, config = network_of("default")
    path = exported(folder / "small.onnx", network, config, SMALL_SIDE)
    scans = folder / "small"
    scans.mkdir()
    phantom = make_phantom(PhantomSpec(seed=2, shape=(SMALL_SLICES, SMALL_SIDE, SMALL_SIDE)))
    raised = marked(phantom.image, phantom.label)
    for number in range(SMALL):
        image = np.roll(raised, number, axis=2)
        write_nifti(scans / f"scan-{number:02}.nii.gz", image, phantom.spacing_mm)
    model, usual = open_model(path, "cpu"), all_cores(path)
    jobs, _ = gather([scans])

    def one_by_one() -> None:
        with tempfile.TemporaryDirectory(dir=folder) as out:
            for job in jobs:
                alone(usual, job, Path(out))

    def command(*inputs: Location) -> None:
        with tempfile.TemporaryDirectory(dir=folder) as out:
            for given in inputs:
                words = ["infer", str(path), str(given), "--out", out, "--provider", "cpu"]
                subprocess.run([sys.executable, "-m", "slicemill", *words], check=True, capture_output=True)  # noqa: S603 (our own command)

    times = timed(
        {
            "folder": lambda: bulk(model, jobs, folder),
            "session, scan by scan": one_by_one,
            "command, folder": lambda: command(scans),
            "command, scan by scan": lambda: command(*(job.path for job in jobs[:COMMANDS])),
        },
        rounds,
        tell,
    )
    each = Timing(
        name="command, scan by scan",
        seconds=tuple(seconds * SMALL / COMMANDS for seconds in times.wall["command, scan by scan"].seconds),
    )
    return {
        "scans": SMALL,
        "results": {
            "folder": times.wall["folder"].as_json(SMALL),
            "session, scan by scan": times.wall["session, scan by scan"].as_json(SMALL),
            "command, folder": times.wall["command, folder"].as_json(SMALL),
            "command, scan by scan": each.as_json(SMALL),
        },
        "over a session called scan by scan": times.faster("folder", "session, scan by scan"),
        "over the command called scan by scan": {"wall": round(ratio(each, times.wall["command, folder"]), 2)},
    }


def alone(model: Model, job: Job, out: Path) -> None:
    """Segment a scan by itself: read, label in batches of FIXED_BATCH whose last is padded, post-process, report, write."""
    loaded, info = load(job), model.info
    nz, ny, nx = loaded.volume.shape
    plan = plan_of(info, (nz, ny, nx), loaded.grid.spacing_mm)
    scan = Scan(plan, loaded.volume)
    capacity = capacity_of(info, model.provider, FIXED_BATCH)
    filler = Filler(capacity)
    filler.add(scan)
    image = np.zeros((capacity.labels + info.context - 1, *info.size), dtype=np.int16)
    while filler.waiting:
        batch = filler.next()
        batch.show(image)
        window = np.zeros((capacity.labels, info.context), dtype=np.int32)
        window[: len(batch.units)] = batch.neighbors
        batch.put(model.run(image, window, plan.wanted))
    segmented = scan.canvas.segmented()
    postprocess(segmented.label, info.labels, info.rules, loaded.grid, segmented.tumor_probability)
    report = make_report(model, loaded, segmented, job.name)
    write_json(out / f"{job.stem}.json", to_document(report))
    save_png(out / f"{job.stem}.png", overlay(loaded.volume, segmented.label, info.labels, report.lesions, job.name))
    write_volume(out / job.name, loaded.header, np.uint8, loaded.grid.to_file(segmented.label))
