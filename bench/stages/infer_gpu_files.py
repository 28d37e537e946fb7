"""Row ``files`` of the GPU benchmark `infer_gpu`: complete runs from .nii.gz, .nii and a store."""

import json
import math
import shutil
import tempfile
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import numpy.typing as npt

from slicemill.bench.harness.clock import Work
from slicemill.bench.harness.cores import count_cores
from slicemill.bench.harness.headline import Record, TimedContender, check
from slicemill.bench.harness.networks import mark_labels
from slicemill.bench.harness.subject import phantom_subject
from slicemill.bench.stages.infer_gpu_contenders import (
    HALF,
    Keep,
    Workload,
    make_noise,
    open_network,
    run_with_copies,
    time_and_keep,
    workload_capacity,
)
from slicemill.ct.labels import LITS_LABELS
from slicemill.ct.phantom import write_nifti
from slicemill.infer.inputs.gather import gather
from slicemill.infer.network.model import Model, open_model
from slicemill.infer.run.options import InferOptions
from slicemill.infer.run.pipeline import infer
from slicemill.ingest.convert import convert_case
from slicemill.ingest.discover import CaseFiles
from slicemill.ingest.params import Params
from slicemill.store.writer import prepare_store

BARE = "network with copies"


def measure_files(folder: Path, work: Workload, _results: Record, keep: Keep) -> Record:
    """Measure complete runs of the default network in float16, from scans to masks and reports."""
    model = open_network(folder, work, work.widths[0], HALF)
    sources = write_sources(folder, work)
    summaries: dict[str, Record] = {}

    def segment(name: str) -> Work:
        jobs, _ = gather([sources[name]])

        def run() -> None:
            with tempfile.TemporaryDirectory(dir=folder) as out:
                summary = infer(model, jobs, Path(out), InferOptions(batch=work.batch, z_range="all"))
                check("all scans were segmented", holds=summary.count("done") == len(jobs))
                summaries[name] = json.loads((Path(out) / "summary.json").read_text())

        return run

    contenders = {BARE: run_with_copies(model, work), **{name: segment(name) for name in sources}}
    timings = time_and_keep(
        contenders, max(1, work.rounds // 2), lambda part: keep({**part, "summaries": without_outcomes(summaries)})
    )
    amounts = dict.fromkeys(sources, work.scans * work.slices) | {
        BARE: workload_capacity(model, work).labels * work.batches
    }
    times = {name: TimedContender(timing=timing, amount=amounts[name]) for name, timing in timings.items()}
    return {
        "cores": count_cores(),
        **compare_with_network(times, cpu_check_seconds(model, work)),
        "summaries": without_outcomes(summaries),
    }


def without_outcomes(summaries: Mapping[str, Record]) -> dict[str, Record]:
    """Return the summaries of runs without the lines of their scans."""
    return {
        name: {key: value for key, value in summary.items() if key != "outcomes"} for name, summary in summaries.items()
    }


def compare_with_network(times: Mapping[str, TimedContender], check_seconds: float) -> Record:
    """Return the rates and their ratios over the network with copies, also without the time of the CPU comparison."""
    bare = times[BARE]
    runs = {name: timed for name, timed in times.items() if name != BARE}
    return {
        "results": {name: timed.rate() for name, timed in times.items()},
        "over the network with copies": {name: timed.speedup(bare) for name, timed in runs.items()},
        "comparison with the CPU, once a run, seconds": round(check_seconds, 3),
        "over the network with copies, without that comparison": {
            name: round(timed.amount / max(1e-9, timed.timing.median - check_seconds) / round(bare.per_second, 2), 3)
            for name, timed in runs.items()
        },
    }


def cpu_check_seconds(model: Model, work: Workload) -> float:
    """Return the approximate time of labeling two slices on the CPU, which a run does before its first scan."""
    noise = make_noise(work, 2)
    start = time.perf_counter()
    open_model(model.path, "cpu").run(noise.image, noise.neighbors)
    return time.perf_counter() - start if work.on_gpu else 0.0


def repeat_slices(image: npt.NDArray[np.int16], slices: int) -> npt.NDArray[np.int16]:
    """Return int16[slices, y, x]: the volume over and over, each time rolled further to the side."""
    turns = math.ceil(slices / len(image))
    side = image.shape[2] // max(1, turns)
    return np.concatenate([np.roll(image, turn * side, axis=2) for turn in range(turns)])[:slices]


def write_sources(folder: Path, work: Workload) -> dict[str, Path]:
    """Write the scans, copies of one phantom, as .nii.gz, .nii and a store."""
    subject = phantom_subject(min(work.slices, work.drawn), size=work.size)
    image = repeat_slices(mark_labels(subject.image, subject.label), work.slices)
    sources = {suffix: folder / suffix.replace(".", "") for suffix in (".nii.gz", ".nii")}
    for suffix, scans in sources.items():
        scans.mkdir()
        first = scans / f"scan-0{suffix}"
        write_nifti(first, image, subject.spacing_mm)
        for number in range(1, work.scans):
            shutil.copyfile(first, scans / f"scan-{number}{suffix}")
    store, params = folder / "store", Params(labels=LITS_LABELS)
    prepare_store(store)

    def convert(path: Path) -> None:
        case = CaseFiles(case_id=path.stem, patient_id=path.stem, image=path, mask=None, root=path.parent)
        convert_case(case, params, store)

    with ThreadPoolExecutor(count_cores()) as threads:
        list(threads.map(convert, sorted(sources[".nii"].iterdir())))
    return {**sources, "store": store}
