"""Inference on the CPU, end to end and part by part, compared with the network alone and with usual scripts.

Bottleneck: the convolutions. Command: `slicemill bench infer`.

| row | contenders |
|---|---|
| whole | .nii.gz to .nii.gz, report and picture, with and without rules; the network alone (`infer_whole`) |
| host | CPU time of everything around a network that costs almost nothing, and of the usual script (`infer_around`) |
| engines | onnxruntime in fp32; torch eager, NCHW and channels last |
| components | removal of small organs and lesions, by slicemill and by scipy, with equal labels (`infer_around`) |
| many | 64 small scans as a folder, and one call per scan (`infer_many`) |
"""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from slicemill.bench.harness.agreement import differing_share
from slicemill.bench.harness.clock import Log, show_progress, time_on_both_clocks
from slicemill.bench.harness.cores import count_cores, torch_threads
from slicemill.bench.harness.headline import Record
from slicemill.bench.harness.networks import (
    BLUR,
    MARKED,
    HuThresholdNetwork,
    default_network,
    export_network,
    make_small_unet,
    write_marked_scans,
)
from slicemill.bench.harness.subject import phantom_subject
from slicemill.bench.schema.base import Headline, Limit, Peer, origin
from slicemill.bench.schema.networks import EngineRates, InferRecord, InferResults, WholeRun, WholeStages
from slicemill.bench.stages.infer_around import measure_components, measure_host
from slicemill.bench.stages.infer_many import measure_many
from slicemill.bench.stages.infer_session import LANES_ALONE, SESSION_ALONE, SESSION_SENTENCE, open_on_all_cores
from slicemill.bench.stages.infer_whole import LANES, SESSION, WAYS, WITH_RULES, WITHOUT_RULES, WholeWork
from slicemill.ct.labels import LITS_LABELS
from slicemill.train.export.audit import gflop_a_slice
from slicemill.train.export.graph import ExportGraph

SIZE = 512
FEW, MANY = 4, 12
"""Scans for the default network, and for faster ones, so that start and end of a run weigh equally in both."""
CONTENDERS = 20
"""Contenders of all rows, for the progress bar."""
ENGINE, EAGER, EAGER_LAST = "onnxruntime", "torch eager", "torch eager, channels last"


def run(folder: Path, *, slices: int, rounds: int) -> Record:
    """Measure every row and return the record.

    Parameters
    ----------
    slices
        Slices of 512x512 that pass the default network in a round, as FEW scans. Faster networks get MANY scans of
        that length.
    """
    subject = phantom_subject(max(8, slices // FEW), size=SIZE)
    scans, more = folder / "scans", folder / "more"
    write_marked_scans(scans, subject, FEW)
    write_marked_scans(more, subject, MANY)
    with show_progress("infer", CONTENDERS, rounds) as log:
        light = export_network(folder / "light.onnx", make_small_unet(), MARKED, SIZE)
        default = export_network(folder / "default.onnx", default_network(), MARKED, SIZE)
        results = InferResults(
            whole={
                "default": measure_whole(default, scans, rounds, log),
                "light": measure_whole(light, more, rounds, log),
            },
            host=measure_host(folder, more, SIZE, rounds, log),
            engines=measure_engines(default, rounds, log),
            components=measure_components(subject.label, rounds, log),
            many=measure_many(folder, rounds, log),
        )
    return InferRecord(
        **origin(),
        unit=f"slices of {SIZE}x{SIZE}",
        slices=slices,
        rounds=rounds,
        page_cache="warm",
        clock="wall",
        results=results,
        headline=make_headline(results),
    ).as_json()


def make_headline(results: InferResults) -> Headline:
    """Return the headline: the default network with post-processing, from files to files."""
    whole, engines = results.whole["default"], results.engines
    rates = {name: row.per_second for name, row in {**whole.results, **engines.results}.items()}
    session, lanes = (over[WITH_RULES].wall for over in (whole.over_bare_session, whole.over_bare_lanes))
    alone = "the network alone, nothing read or written, beside onnxruntime's in the same rounds"
    torch_peers = {
        name: Peer(per_second=rates[name], times=round(rates[ENGINE] / rates[name], 3), what=alone)
        for name in (EAGER, EAGER_LAST)
    }
    return Headline(
        ours=f"default network {WITH_RULES}, files to files",
        per_second=rates[WITH_RULES],
        bound="convolutions in onnxruntime",
        gflop=whole.gflop_a_slice,
        arithmetic="float32",
        limit=Limit(name=LANES_ALONE, per_second=rates[LANES], fraction=lanes),
        peers={SESSION_ALONE: Peer(per_second=rates[SESSION], times=session, what=SESSION_SENTENCE), **torch_peers},
        verified=f"every scan was done; {engines.labels_differing:.1e} of the labels differ from torch's",
    )


def measure_whole(path: Path, scans: Path, rounds: int, log: Log) -> WholeRun:
    """Measure complete runs from files to files, with and without post-processing, and the network alone."""
    work = WholeWork(model=path, scans=scans)
    stages: WholeStages = {}
    times = time_on_both_clocks({name: work.contender(name, stages) for name in WAYS}, rounds, log)
    return WholeRun(
        results=times.rates(work.slices),
        case_costs=work.case_costs(times),
        over_bare_session={key: times.speedup(key, SESSION) for key in (LANES, WITHOUT_RULES, WITH_RULES)},
        over_bare_lanes={key: times.speedup(key, LANES) for key in (WITHOUT_RULES, WITH_RULES)},
        gflop_a_slice=round(gflop_a_slice(path), 3),
        stages=stages,
    )


def measure_engines(path: Path, rounds: int, log: Log) -> EngineRates:
    """Measure onnxruntime and torch eager on a batch of two slices of noise, on all cores."""
    model = open_on_all_cores(path)
    # two networks with equal weights, since the memory format of shared weights would change for both
    graph, last = (
        ExportGraph(HuThresholdNetwork(default_network()).eval(), MARKED, LITS_LABELS).eval() for _ in range(2)
    )
    last = last.to(memory_format=torch.channels_last)  # type: ignore[call-overload] # missing in torch's annotations
    rng = np.random.default_rng(0)
    coarse = rng.integers(-1000, 4000, (4, SIZE // BLUR, SIZE // BLUR))
    image = coarse.repeat(BLUR, axis=1).repeat(BLUR, axis=2).astype(np.int16)
    window = np.array([[0, 1, 2], [1, 2, 3]], dtype=np.int32)
    inputs = [torch.from_numpy(array) for array in graph.feed(image, window).values()]

    def run_torch(module: nn.Module) -> Any:
        with torch.inference_mode():
            return module(*inputs)

    def run_onnxruntime() -> Any:
        return model.run(image, window, ("label", "tumor"))

    contenders = {ENGINE: run_onnxruntime, EAGER: lambda: run_torch(graph), EAGER_LAST: lambda: run_torch(last)}
    with torch_threads(count_cores()):
        expected = run_torch(graph)[0].numpy()
        differing = differing_share(run_onnxruntime().label, expected)
        times = time_on_both_clocks(contenders, rounds, log)
    return EngineRates(
        results=times.rates(2),
        labels_differing=differing,
        over_torch=times.speedup(ENGINE, EAGER),
        over_torch_channels_last=times.speedup(ENGINE, EAGER_LAST),
    )
