"""Records of benchmarks as Markdown tables, for the README and the screen."""

from typing import Any

from slicemill.bench.records.plan import HEADER, KNOWN, WORKERS, checked, inputs_of, rows_of


def ingest_table(record: dict[str, Any]) -> str:
    """Return ingest beside its peers and its kernels as Markdown."""
    formats = record["formats"]
    lines = [
        f"| CPU time of one core, times ours | {' | '.join(formats)} | what it does |",
        f"|---|{'---|' * len(formats)}---|",
    ]
    first = next(iter(formats.values()))
    own = [f"1 ({row['milliseconds_a_slice']['ours']:.2f} ms a slice)" for row in formats.values()]
    lines.append(line("slicemill, one case", *own, "lossless, with statistics, lesions, hash, geometry"))
    for name, peer in first["peers"].items():
        lines.append(
            line(name, *(ratio_cell(row["peers"][name]["times_ours"]) for row in formats.values()), peer["what"])
        )
    lines += ["", f"| share of ingest | {' | '.join(formats)} |", f"|---|{'---|' * len(formats)}"]
    for kernel in first["shares"]:
        lines.append(line(kernel, *(f"{row['shares'][kernel]:.0%}" for row in formats.values())))
    lines.append(
        line("ingest over the sum of these", *(ratio_cell(row["cpu_over_kernels"]) for row in formats.values()))
    )
    lines.append(line("two workers over one", *(ratio_cell(row["two_workers"]) for row in formats.values())))
    notes = [
        f"One case of {record['slices']} slices, warm page cache, {record['rounds']} interleaved rounds, on {where(record['machine'])}."
    ]
    threads = record["threads"]
    notes.append(f"One .nii case with {threads['cores']} threads is done {threads['times_sooner']:.2f} times as soon.")
    if "real_size" in record:
        real = record["real_size"]
        shape = "x".join(map(str, real["shape"]))
        notes.append(
            f"A real scan ({real['series']}, {shape}) takes {real['compact']['over_nii_gz']:.2f} of its .nii.gz (gzip 6), "
            f"{real['fast']['over_nii_gz']:.2f} in the fast profile; {real['compact']['files']} files without a mask."
        )
    lines += ["", " ".join(notes)]
    if "memory" in record:
        lines += ["", "| peak memory of a worker, MiB | alone | under Dask |", "|---|---|---|"]
        lines += [
            f"| {name} | {row['alone_mib']} | {row['dask_worker_mib']} |" for name, row in record["memory"].items()
        ]
    return "\n".join(lines)


def constants_table(record: dict[str, Any]) -> str:
    """Return what other values of the tuned constants cost as Markdown."""
    lines = ["| constant | work | time of it, by value; 1 is the one in the code |", "|---|---|---|"]
    for name, row in record["constants"].items():
        cells = []
        for value, found in row["values"].items():
            size = f" ({found['bytes']:.2f} of the bytes)" if "bytes" in found else ""
            chosen = int(value) == row["chosen"]
            cells.append(
                f"**{amount_of(int(value))}: 1**" if chosen else f"{amount_of(int(value))}: {found['time']:.2f}{size}"
            )
        lines.append(line(f"`{name}`", row["what"], ", ".join(cells)))
    note = f"On {record['subject']}, {record['rounds']} interleaved rounds, on {where(record['machine'])}."
    return "\n".join([*lines, "", note])


def amount_of(value: int) -> str:
    """Return a whole number, short where it is one of many twos.

    >>> amount_of(3), amount_of(1 << 19), amount_of(1 << 21)
    ('3', '512 Ki', '2 Mi')
    """
    for unit, name in ((1 << 20, "Mi"), (1 << 10, "Ki")):
        if value >= unit and value % unit == 0:
            return f"{value // unit} {name}"
    return str(value)


def store_table(record: dict[str, Any]) -> str:
    """Return the readers as Markdown."""
    lines = ["| random image and label slice | pairs/s of one core |", "|---|---|"]
    lines += [f"| {name} | {row['per_second']:,.0f} |" for name, row in record["results"].items()]
    ratios = ", ".join(f"{value:.2f} {name}" for name, value in record["ratios"].items())
    sizes = record["bytes"]
    note = (
        f"Ours: {ratios} (medians of ratios in one round). Bytes of {sizes['raw'] / 1e6:.0f} MB of voxels: compact {sizes['compact'] / 1e6:.0f} MB, "
        f"fast {sizes['fast'] / 1e6:.0f} MB. Warm page cache, on {where(record['machine'])}."
    )
    return "\n".join([*lines, "", note])


def loader_table(record: dict[str, Any]) -> str:
    """Return the loaders as Markdown."""
    lines = ["| training pairs, image and label slice | pairs a CPU-second |", "|---|---|"]
    lines += [line(name, f"{row['per_second']:,.0f}") for name, row in record["results"].items()]
    ratios = ", ".join(f"{value:.2f} {name}" for name, value in record["ratios"].items())
    waited = record["waited"]
    note = (
        f"The ring with one thread: {ratios} (medians of ratios in one round). "
        f"A network that takes {waited['milliseconds_of_work']:.0f} ms with a batch "
        f"waited {waited['share_of_time']:.2%} of its time for {waited['batches']} batches, {waited['longest_wait_milliseconds']:.1f} ms at most. "
        f"Warm page cache, on {where(record['machine'])}."
    )
    return "\n".join([*lines, "", note])


def infer_table(record: dict[str, Any]) -> str:
    """Return inference on the CPU as Markdown."""
    results = record["results"]
    lines = ["| inference on the CPU | by the clock | by CPU time |", "|---|---|---|"]

    def row(name: str, ratios: dict[str, float]) -> None:
        lines.append(line(name, *(f"{ratios[clock]:.2f}" if clock in ratios else "-" for clock in ("wall", "cpu"))))

    for network, measured in results["whole"].items():
        own = measured["results"]["bare session"]
        work = f"{network} network, {1000 / own['per_second']:.1f} ms a slice"
        for name, ratios in measured["of the bare session"].items():
            row(
                f"{work}: {'a batch on each core' if name == 'bare lanes' else f'from files to files {name}'}, of its bare session",
                ratios,
            )
        for name, ratios in measured["of the bare lanes"].items():
            row(f"{work}: from files to files {name}, of a batch on each core", ratios)
    host, engines, many = results["host"], results["engines"], results["many"]
    row("usual script over ours, everything around the network", {"cpu": host["times_less"]})
    row("torch eager over onnxruntime", engines["over torch eager"])
    row("torch eager, channels last, over onnxruntime", engines["over torch eager, channels last"])
    row("scipy over ours, largest organ and small lesions", results["components"]["over scipy"])
    row("64 small scans: a session scan by scan over one folder", many["over a session called scan by scan"])
    row("64 small scans: a command each over one command", many["over the command called scan by scan"])
    around = host["cpu_milliseconds_a_slice"]
    note = (
        f"Times, medians of ratios in one round. Around the network ours takes {around['ours']:.2f} ms of a core a slice, with report and picture; "
        f"the script (get_fdata, window, argmax, scipy components, nib.save) {around['usual script']:.1f}. Its components and scipy's are "
        f"{'equal' if results['components']['equal'] else 'NOT EQUAL'}. {record['rounds']} rounds, warm page cache, on {where(record['machine'])}."
    )
    return "\n".join([*lines, "", note])


def train_table(record: dict[str, Any]) -> str:
    """Return training steps beside the bare network as Markdown."""
    lines = ["| training | slices/s | of the bare network |", "|---|---|---|"]
    shares = record["of the bare forward and backward"]
    lines += [
        line(name, f"{row['per_second']:.1f}", ratio_cell(shares.get(name, 1.0)))
        for name, row in record["results"].items()
    ]
    network = record["network"]
    waited = record["share of time spent waiting for the loader"]
    note = (
        f"{record['unit'][0].upper()}{record['unit'][1:]}, network of width {network['width']} and depth {network['depth']}, {record['precision']} "
        f"on {record['device']}; {waited:.1%} of the time was spent waiting for the loader; "
        f"medians of ratios in one round, warm page cache, on {where(record['machine'])}."
    )
    return "\n".join([*lines, "", note])


def measure_table(record: dict[str, Any]) -> str:
    """Return the surface distances of a whole case as Markdown."""
    depth, height, width = record["shape_zyx"]
    one = " and ".join(f"{value:.0f}" for value in record["seconds_medpy_an_object"])
    own = record["seconds_ours"]
    lines = [
        f"| all surface distances of {record['objects']} objects | CPU seconds | times ours |",
        "|---|---|---|",
        line("slicemill: k-d trees of the surfaces", f"{own:.2f}", "1"),
        line(
            "transforms of the box around both masks", f"{record['seconds_boxes']:.2f}", f"{record['times_boxes']:.1f}"
        ),
        line(
            "transforms of the whole scan, as medpy",
            f"{own * record['times_medpy']:,.0f}",
            f"{record['times_medpy']:,.0f}",
        ),
    ]
    note = (
        f"A phantom of {width}x{height}x{depth} voxels, a liver and {record['objects'] - 1} lesions; the last row is counted up from "
        f"{len(record['seconds_medpy_an_object'])} objects of {one} s. Largest difference of any distance "
        f"{record['largest_difference_mm']:.1g} mm. Ours takes {record['memory_mib']:.0f} MiB "
        f"beside two masks of {record['scan_mib']:.0f} MiB; medians of {record['rounds']} rounds, on {where(record['machine'])}."
    )
    return "\n".join([*lines, "", note])


def lits_table(record: dict[str, Any]) -> str:
    """Return a run of LiTS's size as Markdown."""
    return (
        f"{record['cases']} cases of 74 to 987 slices, {record['slices']:,} slices of 512x512 with masks, "
        f"{record['raw_gb']:.1f} GB of voxels from "
        f"{record['source_gb']:.1f} GB of {record['format']} ({record['page_cache']}): "
        f"{record['seconds'] / 60:.1f} minutes on {record['workers']} workers, "
        f"{record['slices_per_second']:,.0f} slices/s, {record['raw_gb_per_second']:.2f} GB/s of voxels, store {record['store_gb']:.1f} GB, "
        f"peak memory of a worker {record['peak_worker_mib']} MiB, on {where(record['machine'])}."
    )


def limits_table(record: dict[str, Any]) -> str:
    """Return the limits of a machine as Markdown."""
    lines = ["| limit of this machine | at most |", "|---|---|"]
    lines += [line(name, f"{row['most']:,.1f} {row['unit']}") for name, row in record["results"].items()]
    return "\n".join([*lines, "", f"Best of the rounds, on {where(record['machine'])}."])


def export_table(record: dict[str, Any]) -> str:
    """Return the export as Markdown."""
    lines = ["| export | seconds |", "|---|---|"]
    lines += [line(name, f"{row['seconds_median']:.2f}") for name, row in record["results"].items()]
    note = (
        f"A model file of {record['model_mb']} MB, proved on {record['proof_slices']} slices; "
        f"{record['headline']['verified']}; on {where(record['machine'])}."
    )
    return "\n".join([*lines, "", note])


def instructions_table(record: dict[str, Any]) -> str:
    """Return the counts of the hot loops as Markdown."""
    lines = ["| loop | what | million instructions a slice |", "|---|---|---|"]
    lines += [
        line(name, row["what"], f"{row['instructions_a_slice'] / 1e6:.2f}") for name, row in record["results"].items()
    ]
    return "\n".join([*lines, "", f"{record['unit']}, counted by {record['counter']}, on {where(record['machine'])}."])


def peers_table(record: dict[str, Any]) -> str:
    """Return the peers as Markdown."""
    found = record["headline"]
    lines = [
        "| training slices with labels, one core | slices/s | ours, times as fast | what it does |",
        "|---|---|---|---|",
    ]
    lines.append(
        line(
            found["ours"],
            f"{found['per_second']:,.0f}",
            "1",
            "compressed HU, checked, at random, from a store of any size",
        )
    )
    limit = found["limit"]
    lines.append(
        line(
            limit["name"],
            f"{limit['per_second']:,.0f}",
            f"{limit['fraction']:.2f}",
            "our codecs alone, on bytes in memory",
        )
    )
    lines += [
        line(name, f"{row['per_second']:,.0f}", f"{row['times']:.2f}", row["what"])
        for name, row in found["peers"].items()
    ]
    lines += [line(name, "not run", "-", reason) for name, reason in record["not_run"].items()]
    note = f"{record['cases']} scans of {record['slices']} slices of 512x512, {record['page_cache']} page cache, on {where(record['machine'])}."
    return "\n".join([*lines, "", note])


def peers_inference_table(record: dict[str, Any]) -> str:
    """Return the peers of inference as Markdown."""
    found, dice = record["headline"], record["dice"]
    lines = [
        "| .nii.gz to masks, all cores | scans/min | slices/s | CPU ms a slice | ours, times as fast | least Dice with ours | what it does |",
        "|---|---|---|---|---|---|---|",
    ]

    def row(name: str, times: str, least: str, sentence: str) -> None:
        own = record["results"][name]
        rates = (60 * own["scans_per_second"], own["per_second"], own["cpu_milliseconds"])
        lines.append(line(name, *(f"{rate:,.1f}" for rate in rates), times, least, sentence))

    row(found["ours"], "1", "1", "largest organ, small lesions away, a report and a picture of every scan")
    row(found["limit"]["name"], f"{found['limit']['fraction']:.2f}", "-", "the network alone, on slices in memory")
    for name, peer in found["peers"].items():
        row(name, f"{peer['times']:.2f}", f"{min(dice[name].values()):.4f}" if name in dice else "-", peer["what"])
    lines += [line(name, "not run", "-", "-", "-", "-", reason) for name, reason in record["not_run"].items()]
    note = (
        f"{record['cases']} scans of {record['slices']} slices, the same network in all, "
        f"{record['page_cache']} page cache, on {where(record['machine'])}."
    )
    return "\n".join([*lines, "", note])


def scale_table(record: dict[str, Any]) -> str:
    """Return how cost grows as Markdown."""
    slices, cases, workers = record["slices"], record["cases"], record["workers"]
    time, memory = slices["cpu_seconds"], slices["peak_mib"]
    lengths, counts = list(slices["measured"]), list(cases["measured"])
    lines = ["| what grows | measured | fitted line | R² |", "|---|---|---|---|"]
    lines += [
        line(
            "CPU of an ingest with slices",
            f"{lengths[0]} to {lengths[-1]} slices",
            f"{time['start']:.2f} s + {1000 * time['slope']:.2f} ms a slice",
            f"{time['r2']:.4f}",
        ),
        line(
            "peak memory with slices",
            f"{lengths[0]} to {lengths[-1]} slices",
            f"{memory['start']:.0f} MiB + {1000 * memory['slope']:.1f} MiB a thousand slices",
            "-",
        ),
        line(
            "time of the command with small scans",
            f"{counts[0]} to {counts[-1]} scans",
            f"{cases['seconds']['start']:.2f} s + {1000 * cases['seconds']['slope']:.0f} ms a scan",
            f"{cases['seconds']['r2']:.4f}",
        ),
    ]
    if "2" in workers:
        lines.append(
            line("two workers over one, small scans", f"{counts[-1]} scans", f"{workers['1'] / workers['2']:.2f}", "-")
        )
    scheduler = record["scheduler"]
    each = f"{scheduler['milliseconds_a_task']:.3f} ms a task"
    lines.append(line("Dask's scheduler, tasks that do nothing", f"{scheduler['tasks']:,} tasks", each, "-"))
    return "\n".join([*lines, "", f"On {where(record['machine'])}."])


def plan_table(scale: dict[str, Any], store: dict[str, Any], infer: dict[str, Any], lits: dict[str, Any]) -> str:
    """Return what known collections cost as Markdown, from records of one machine."""
    inputs = inputs_of(scale, store, infer)
    lines = [line(*HEADER), line(*["---"] * len(HEADER))]
    lines += [line(str(row[0]), *map(number, row[1:])) for row in rows_of(KNOWN, inputs, WORKERS)]
    note = (
        f"Inputs: {1000 * inputs.slice_seconds:.2f} ms of a core a slice and {inputs.scan_seconds:.2f} s a scan, "
        f"a worker beside another at {inputs.share:.2f} of its pace alone, {1000 * inputs.task_seconds:.2f} ms a task of the scheduler, "
        f"{inputs.slice_bytes / 1000:,.0f} kB a slice in the store, {inputs.reads_per_second:,.0f} reads/s of a core, "
        f"{number(inputs.labelled_per_second)} slices/s through the default network on the {inputs.cores} cores of a machine without a GPU. "
        f"The ingest of LiTS's size, measured whole, took {checked(inputs, lits):.2f} of what the model says. On {where(scale['machine'])}."
    )
    return "\n".join([*lines, "", note])


def all_table(record: dict[str, Any]) -> str:
    """Return every stage beside its limit and its peers as Markdown."""
    lines = ["| stage | a second | limit | of the limit | times as fast as |", "|---|---|---|---|---|"]
    limits = record["limits"] or {"results": {}}
    peaks = []
    for name, stage in record["stages"].items():
        found = stage["headline"]
        peers = ", ".join(f"{peer} {row['times']:.1f}" for peer, row in found["peers"].items())
        unit = stage.get("unit", "slices").split(",")[0]
        rate = f"{found['per_second']:,.4g} {unit}{' of one core' if stage.get('clock', '').startswith('CPU') else ''}"
        lines.append(line(name, rate, found["limit"]["name"], f"{found['limit']['fraction']:.2f}", peers or "-"))
        if (share := of_the_peak(found, limits["results"])) is not None:
            peaks.append(f"{name} {share:.2f} of the measured convolution in {found['arithmetic']}")
        lines += [
            line(f"{name}: {peer}", f"not run: {reason}", "-", "-", "-")
            for peer, reason in stage.get("not_run", {}).items()
        ]
    lines += [line(name, f"failed: {reason}", "-", "-", "-") for name, reason in record["failed"].items()]
    told = ", ".join(f"{name} {row['most']:,.1f} {row['unit']}" for name, row in limits["results"].items())
    note = (
        f"{'Quick run. ' if record['quick'] else ''}Arithmetic reached: {', '.join(peaks) or 'not known'}. "
        f"Limits of the machine: {told or 'not measured'}; on {where(record['machine'])}."
    )
    return "\n".join([*lines, "", note])


def of_the_peak(found: dict[str, Any], limits: dict[str, Any]) -> float | None:
    """Return a stage's arithmetic over that of the bare convolution of `bench limits`; None where either is not known."""
    limit = limits.get(f"convolution, {found.get('arithmetic')}")
    return None if limit is None else float(found["per_second"] * found["gflop"] / limit["most"])


def line(*cells: str) -> str:
    """Return a row of a Markdown table."""
    return f"| {' | '.join(cells)} |"


def ratio_cell(value: float | None) -> str:
    """Return a ratio, or a dash where it could not be measured."""
    return "-" if value is None else f"{value:.2f}"


def number(value: float | None) -> str:
    """Return a figure with three digits that count, a dash for None.

    >>> number(1234.5), number(0.031), number(None)
    ('1,234', '0.031', '-')
    """
    if value is None:
        return "-"
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def where(machine: dict[str, Any]) -> str:
    """Return a machine in a few words."""
    return f"{machine['cores']} cores of {machine['cpu']}"
