"""Records of single benchmarks as Markdown tables, for the documentation and the screen."""

from collections.abc import Callable, Mapping
from typing import Any

from slicemill.bench.records.dicom import dicom_table
from slicemill.bench.records.infer_table import infer_table
from slicemill.bench.records.markdown import format_processor, format_ratio, table_lines, table_text
from slicemill.bench.records.nodules import nodule_context_table, nodule_rules_table, nodules_table
from slicemill.bench.records.viewer_table import viewer_table
from slicemill.bench.records.volumes import volumes_table
from slicemill.bench.schema.base import BenchmarkRecord, ClockRatios, LimitsRecord
from slicemill.bench.schema.data import (
    ComponentsRecord,
    ConstantsRecord,
    ConstantTrials,
    DocumentsRecord,
    IngestRecord,
    InstructionsRecord,
    LitsRecord,
    LoaderRecord,
    ReadingRecord,
    ScaleRecord,
    StoreRecord,
    ViewerRecord,
    VolumesRecord,
)
from slicemill.bench.schema.dicom import DicomIngestRecord
from slicemill.bench.schema.networks import (
    ExportRecord,
    InferRecord,
    MeasureRecord,
    PeersInferenceRecord,
    PeersRecord,
    TrainRecord,
)
from slicemill.bench.schema.nodules import NoduleContextRecord, NoduleRulesRecord, NodulesRecord


def _on(record: BenchmarkRecord) -> str:
    return f"on {format_processor(record.machine)}"


def ingest_table(record: IngestRecord) -> str:
    """Format the CPU time of an ingest with its peers and its kernels."""
    formats = record.formats.values()
    first = next(iter(formats))
    own = [f"1 ({row.milliseconds_a_slice['ours']:.2f} ms a slice)" for row in formats]
    lines = table_lines(
        ["CPU time of one core, times ours", *record.formats, "what it does"],
        [
            ["slicemill, one case", *own, "lossless, with statistics, lesions, hash, geometry"],
            *(
                [name, *(format_ratio(row.peers[name].times_ours) for row in formats), peer.what]
                for name, peer in first.peers.items()
            ),
        ],
    )
    lines += ["", *table_lines(["share of ingest", *record.formats], [
        *([kernel, *(f"{row.shares[kernel]:.0%}" for row in formats)] for kernel in first.shares),
        ["ingest over the sum of these", *(format_ratio(row.cpu_over_kernels) for row in formats)],
        ["two workers over one", *(format_ratio(row.two_workers) for row in formats)],
    ])]  # fmt: skip
    lines += ["", _ingest_note(record)]
    if record.memory is not None:
        rows = [(name, str(row.alone_mib), str(row.dask_worker_mib)) for name, row in record.memory.items()]
        lines += ["", *table_lines(["peak memory of a worker, MiB", "alone", "under Dask"], rows)]
    return "\n".join(lines)


def _ingest_note(record: IngestRecord) -> str:
    threads = record.threads
    note = (
        f"One case of {record.slices} slices, warm page cache, {record.rounds} interleaved rounds, "
        f"{_on(record)}. "
        f"One .nii case with {threads.cores} threads is done {threads.times_sooner:.2f} times as soon."
    )
    if (real := record.real_size) is not None:
        note += (
            f" A real scan ({real.series}, {'x'.join(map(str, real.shape))}) takes "
            f"{real.compact.over_nii_gz:.2f} of its .nii.gz (gzip 6), {real.fast.over_nii_gz:.2f} in the fast profile; "
            f"{real.compact.files} files without a mask."
        )
    return note


def constants_table(record: ConstantsRecord) -> str:
    """Format the cost of other values of the tuned constants."""
    rows = [(f"`{name}`", trials.what, _trials_cell(trials)) for name, trials in record.constants.items()]
    note = f"On {record.subject}, {record.rounds} interleaved rounds, {_on(record)}."
    header = ["constant", "work", "time of it, by value; 1 is the one in the code"]
    return table_text(header, rows, note)


def _trials_cell(trials: ConstantTrials) -> str:
    cells = []
    for value, trial in trials.values.items():
        amount = format_amount(int(value))
        if int(value) == trials.chosen:
            cells.append(f"**{amount}: 1**")
        else:
            size = "" if trial.bytes is None else f" ({trial.bytes:.2f} of the bytes)"
            cells.append(f"{amount}: {trial.time:.2f}{size}")
    return ", ".join(cells)


def format_amount(value: int) -> str:
    """Format an integer, with a binary prefix where it is a multiple.

    >>> format_amount(3), format_amount(1 << 19), format_amount(1 << 21)
    ('3', '512 Ki', '2 Mi')
    """
    for unit, name in ((1 << 20, "Mi"), (1 << 10, "Ki")):
        if value >= unit and value % unit == 0:
            return f"{value // unit} {name}"
    return str(value)


def store_table(record: StoreRecord) -> str:
    """Format the rates of store readers."""
    sizes = record.bytes
    note = (
        f"Bytes of {sizes.raw / 1e6:.0f} MB of voxels: "
        f"compact {sizes.compact / 1e6:.0f} MB, fast {sizes.fast / 1e6:.0f} MB."
    )
    return _reading_table(record, ["random image and label slice", "pairs/s of one core"], "Ours", note)


def loader_table(record: LoaderRecord) -> str:
    """Format the rates of training loaders."""
    waited = record.waited
    note = (
        f"A network that takes {waited.milliseconds_of_work:.0f} ms with a batch waited {waited.share_of_time:.2%} "
        f"of its time for {waited.batches} batches, {waited.longest_wait_milliseconds:.1f} ms at most."
    )
    header = ["training pairs, image and label slice", "pairs a CPU-second"]
    return _reading_table(record, header, "The ring with one thread", note)


def _reading_table(record: ReadingRecord, header: list[str], own: str, note: str) -> str:
    rows = [(name, f"{row.per_second:,.0f}") for name, row in record.results.items()]
    ratios = ", ".join(f"{value:.2f} {name}" for name, value in record.ratios.items())
    note = f"{own}: {ratios} (medians of ratios in one round). {note} Warm page cache, {_on(record)}."
    return table_text(header, rows, note)


def train_table(record: TrainRecord) -> str:
    """Format the rates of training steps and of the bare network."""
    shares = record.of_bare
    rows = [
        (name, f"{row.per_second:.1f}", format_ratio(shares.get(name, 1.0))) for name, row in record.results.items()
    ]
    note = (
        f"{record.unit[0].upper()}{record.unit[1:]}, network of width {record.network.width} and depth "
        f"{record.network.depth}, {record.precision} on {record.device}; "
        f"{record.waiting:.1%} of the time was spent waiting for the loader; "
        f"medians of ratios in one round, warm page cache, {_on(record)}."
    )
    return table_text(["training", "slices/s", "of the bare network"], rows, note)


def measure_table(record: MeasureRecord) -> str:
    """Format the time of all surface distances of a case."""
    depth, height, width = record.shape_zyx
    tried = record.seconds_medpy_an_object
    rows = [
        ("slicemill: k-d trees of the surfaces", f"{record.seconds_ours:.2f}", "1"),
        ("transforms of the box around both masks", f"{record.seconds_boxes:.2f}", f"{record.times_boxes:.1f}"),
        (
            "transforms of the whole scan, as medpy",
            f"{record.seconds_ours * record.times_medpy:,.0f}",
            f"{record.times_medpy:,.0f}",
        ),
    ]
    note = (
        f"A phantom of {width}x{height}x{depth} voxels, a liver and {record.objects - 1} lesions; "
        f"the last row is counted up from {len(tried)} objects of {' and '.join(f'{value:.0f}' for value in tried)} s. "
        f"Largest difference of any distance {record.largest_difference_mm:.1g} mm. "
        f"Ours takes {record.memory_mib:.0f} MiB beside two masks of {record.scan_mib:.0f} MiB; "
        f"medians of {record.rounds} rounds, {_on(record)}."
    )
    header = [f"all surface distances of {record.objects} objects", "CPU seconds", "times ours"]
    return table_text(header, rows, note)


def lits_table(record: LitsRecord) -> str:
    """Format the ingest of a collection as large as LiTS, as one paragraph."""
    return (
        f"{record.cases} cases of 74 to 987 slices, {record.slices:,} slices of 512x512 with masks, "
        f"{record.raw_gb:.1f} GB of voxels from {record.source_gb:.1f} GB of {record.format} ({record.page_cache}): "
        f"{record.seconds / 60:.1f} minutes on {record.workers} workers, "
        f"{record.slices_per_second:,.0f} slices/s, {record.raw_gb_per_second:.2f} GB/s of voxels, "
        f"store {record.store_gb:.1f} GB, peak memory of a worker {record.peak_worker_mib} MiB, "
        f"{_on(record)}."
    )


def limits_table(record: LimitsRecord) -> str:
    """Format the limits of a machine."""
    rows = [(name, f"{row.most:,.1f} {row.unit}") for name, row in record.results.items()]
    note = f"Best of the rounds, {_on(record)}."
    return table_text(["limit of this machine", "at most"], rows, note)


def export_table(record: ExportRecord) -> str:
    """Format the time of an export."""
    rows = [(name, f"{row.seconds_median:.2f}") for name, row in record.results.items()]
    note = (
        f"A model file of {record.model_mb} MB, checked on {record.proof_slices} slices; "
        f"{record.headline.verified}; {_on(record)}."
    )
    return table_text(["export", "seconds"], rows, note)


def instructions_table(record: InstructionsRecord) -> str:
    """Format the instruction counts of the hot loops."""
    rows = [(name, row.what, f"{row.instructions_a_slice / 1e6:.2f}") for name, row in record.results.items()]
    note = f"{record.unit}, counted by {record.counter}, {_on(record)}."
    return table_text(["loop", "what", "million instructions a slice"], rows, note)


def peers_table(record: PeersRecord) -> str:
    """Format the loading rates of other tools."""
    headline, limit = record.headline, record.headline.limit
    own = "compressed HU, checked, at random, from a store of any size"
    rows = [
        (headline.ours, f"{headline.per_second:,.0f}", "1", own),
        (limit.name, f"{limit.per_second:,.0f}", f"{limit.fraction:.2f}", "our codecs alone, on bytes in memory"),
        *((name, f"{row.per_second:,.0f}", f"{row.times:.2f}", row.what) for name, row in headline.peers.items()),
        *((name, "not run", "-", reason) for name, reason in record.not_run.items()),
    ]
    note = f"{record.cases} scans of {record.slices} slices of 512x512, {record.page_cache} page cache, {_on(record)}."
    header = ["training slices with labels, one core", "slices/s", "ours, times as fast", "what it does"]
    return table_text(header, rows, note)


def peers_inference_table(record: PeersInferenceRecord) -> str:
    """Format the inference rates of other tools."""
    headline, dice = record.headline, record.dice

    def rates(name: str) -> list[str]:
        row = record.results[name]
        return [f"{rate:,.1f}" for rate in (60 * row.scans_per_second, row.per_second, row.cpu_milliseconds)]

    own = "largest organ, small lesions away, a report and a picture of every scan"
    limit = headline.limit
    rows = [
        [headline.ours, *rates(headline.ours), "1", "1", own],
        [limit.name, *rates(limit.name), f"{limit.fraction:.2f}", "-", "the network alone, on slices in memory"],
        *(
            [
                name,
                *rates(name),
                f"{peer.times:.2f}",
                f"{min(dice[name].values()):.4f}" if name in dice else "-",
                peer.what,
            ]
            for name, peer in headline.peers.items()
        ),
        *([name, "not run", "-", "-", "-", "-", reason] for name, reason in record.not_run.items()),
    ]
    header = [".nii.gz to masks, all cores", "scans/min", "slices/s", "CPU ms a slice", "ours, times as fast",
              "least Dice with ours", "what it does"]  # fmt: skip
    note = (
        f"{record.cases} scans of {record.slices} slices, the same network in all, "
        f"{record.page_cache} page cache, {_on(record)}."
    )
    return table_text(header, rows, note)


def scale_table(record: ScaleRecord) -> str:
    """Format the growth of cost with slices, scans, workers and tasks."""
    time, memory, command = record.slices.cpu_seconds, record.slices.peak_mib, record.cases.seconds
    lengths, counts = list(record.slices.measured), list(record.cases.measured)
    slices, scans = f"{lengths[0]} to {lengths[-1]} slices", f"{counts[0]} to {counts[-1]} scans"
    per_slice = f"{time.start:.2f} s + {1000 * time.slope:.2f} ms a slice"
    per_thousand = f"{memory.start:.0f} MiB + {1000 * memory.slope:.1f} MiB a thousand slices"
    per_scan = f"{command.start:.2f} s + {1000 * command.slope:.0f} ms a scan"
    rows = [
        ("CPU of an ingest with slices", slices, per_slice, f"{time.r2:.4f}"),
        ("peak memory with slices", slices, per_thousand, "-"),
        ("time of the command with small scans", scans, per_scan, f"{command.r2:.4f}"),
    ]
    if record.files is not None:
        numbers, line = list(record.files.measured), record.files.seconds
        per_file = f"{line.start:.2f} s + {1e6 * line.slope:.0f} µs a file"
        rows.append(("CPU until files are found", f"{numbers[0]} to {numbers[-1]} files", per_file, f"{line.r2:.4f}"))
    for name, by_cases in (record.growth or {}).items():
        numbers, time, memory = list(by_cases.measured), by_cases.cpu_seconds, by_cases.peak_mib
        measured = f"{numbers[0]} to {numbers[-1]} tiny cases"
        per_case = f"{time.start:.2f} s + {1000 * time.slope:.2f} ms a case"
        per_thousand = f"{memory.start:.0f} MiB + {1000 * memory.slope:.1f} MiB a thousand cases"
        rows.append((f"CPU, {name}", measured, per_case, f"{time.r2:.4f}"))
        rows.append((f"peak memory, {name}", measured, per_thousand, f"{memory.r2:.4f}"))
    if "2" in record.workers:
        speedup = f"{record.workers['1'] / record.workers['2']:.2f}"
        rows.append(("two workers over one, small scans", f"{counts[-1]} scans", speedup, "-"))
    per_task = f"{record.scheduler.milliseconds_a_task:.3f} ms a task"
    rows.append(("Dask's scheduler, tasks that do nothing", f"{record.scheduler.tasks:,} tasks", per_task, "-"))
    header = ["what grows", "measured", "fitted line", "R²"]
    return table_text(header, rows, f"On {format_processor(record.machine)}.")


def components_table(record: ComponentsRecord) -> str:
    """Format the times of connected components."""
    rows = [
        (mask, neighbors, f"{row.components:,}", f"{row.seconds['runs']:.4f}", *_cpu_cells(row.over_runs))
        for mask, by_neighbors in record.masks.items()
        for neighbors, row in by_neighbors.items()
    ]
    shape = "x".join(map(str, record.shape_zyx[::-1]))
    note = f"Volumes of {shape}, {record.rounds} interleaved rounds, {_on(record)}."
    header = ["mask", "neighbors", "components", "runs, s", "cc3d over runs, CPU", "cc3d without sizes over runs, CPU"]
    return table_text(header, rows, note)


def _cpu_cells(ratios: Mapping[str, ClockRatios]) -> list[str]:
    return [format_ratio(over.cpu) for over in ratios.values()]


def documents_table(record: DocumentsRecord) -> str:
    """Format the start time of typed documents."""
    rows = [(name, f"{milliseconds:.1f}") for name, milliseconds in record.added_ms.items()]
    ratio = "pydantic is not installed" if record.ratio is None else f"pydantic over msgspec {record.ratio:.2f}"
    note = f"{ratio}; medians of {record.rounds} rounds, {_on(record)}."
    return table_text(["library", "ms added to the start of Python"], rows, note)


TABLES: dict[type[BenchmarkRecord], Callable[[Any], str]] = {
    ComponentsRecord: components_table,
    ConstantsRecord: constants_table,
    DicomIngestRecord: dicom_table,
    DocumentsRecord: documents_table,
    ExportRecord: export_table,
    InferRecord: infer_table,
    IngestRecord: ingest_table,
    InstructionsRecord: instructions_table,
    LimitsRecord: limits_table,
    LitsRecord: lits_table,
    LoaderRecord: loader_table,
    MeasureRecord: measure_table,
    NodulesRecord: nodules_table,
    NoduleContextRecord: nodule_context_table,
    NoduleRulesRecord: nodule_rules_table,
    PeersInferenceRecord: peers_inference_table,
    PeersRecord: peers_table,
    ScaleRecord: scale_table,
    StoreRecord: store_table,
    TrainRecord: train_table,
    ViewerRecord: viewer_table,
    VolumesRecord: volumes_table,
}
"""The table of each kind of record."""
