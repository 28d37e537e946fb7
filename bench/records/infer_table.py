"""The tables of `bench infer`: what a case costs, and ratios of the contenders."""

from collections.abc import Mapping

from slicemill.bench.records.markdown import (
    format_processor,
    format_ratio,
    format_three_digits,
    table_lines,
    table_text,
)
from slicemill.bench.schema.base import ClockRatios
from slicemill.bench.schema.networks import CaseCosts, InferRecord, WholeRun

CONTENDERS = {"bare session": "bare session", "bare lanes": "a batch on each core"}
"""Names of the contenders that are not runs from files to files."""
COSTS = ("seconds a case", "CPU seconds a case", "peak memory, MiB")


def infer_table(record: InferRecord) -> str:
    """Format rates, cost of a case, and ratios of inference on the CPU."""
    results = record.results
    host, engines, many = results.host, results.engines, results.many
    rows = [row for name, network in results.whole.items() for row in _network_rows(name, network)]
    rows += [
        ("usual script over ours, everything around the network", "-", format_ratio(host.times_less)),
        _clock_row("torch eager over onnxruntime", engines.over_torch),
        _clock_row("torch eager, channels last, over onnxruntime", engines.over_torch_channels_last),
        _clock_row("scipy over ours, largest organ and small lesions", results.components.over_scipy),
        _clock_row("64 small scans: a session scan by scan over one folder", many.over_session),
        _clock_row("64 small scans: a command each over one command", many.over_command),
    ]
    around = host.cpu_milliseconds_a_slice
    note = (
        f"Times, medians of ratios in one round. Around the network ours takes {around['ours']:.2f} ms of a core "
        f"a slice, with report and picture; the script (get_fdata, window, argmax, scipy components, nib.save) "
        f"{around['usual script']:.1f}. Its components and scipy's are "
        f"{'equal' if results.components.equal else 'NOT EQUAL'}. "
        f"{record.rounds} rounds, warm page cache, on {format_processor(record.machine)}."
    )
    ratios = table_text(["inference on the CPU", "by the clock", "by CPU time"], rows, note)
    return "\n".join([*_case_lines(results.whole), "", ratios])


def _case_lines(networks: Mapping[str, WholeRun]) -> list[str]:
    """Format what a case costs, by network and contender; dashes stand for costs that an early record does not hold."""
    rows = [
        (
            f"{name} network: {CONTENDERS.get(contender, f'from files to files {contender}')}",
            f"{rate.per_second:.1f}",
            *_cost_cells(network.case_costs, contender),
        )
        for name, network in networks.items()
        for contender, rate in network.results.items()
    ]
    lines = table_lines(["inference on the CPU", "slices/s", *COSTS], rows)
    sizes = [
        f"{costs.cases} cases of {costs.slices / costs.cases:.0f} slices with the {name} network"
        for name, network in networks.items()
        if (costs := network.case_costs) is not None
    ]
    if sizes:
        lines += ["", f"{', '.join(sizes)}. Memory is that of a process that runs all cases."]
    return lines


def _cost_cells(costs: CaseCosts | None, contender: str) -> tuple[str, ...]:
    if costs is None:
        return ("-",) * len(COSTS)
    cost = costs.contenders[contender]
    return tuple(map(format_three_digits, (cost.seconds, cost.cpu_seconds, cost.peak_mib)))


def _network_rows(name: str, network: WholeRun) -> list[tuple[str, ...]]:
    milliseconds = 1000 / network.results["bare session"].per_second
    work = f"{name} network, {milliseconds:.1f} ms a slice"
    rows = [
        _clock_row(
            f"{work}: {'a batch on each core' if kind == 'bare lanes' else f'from files to files {kind}'}, "
            "of its bare session",
            ratios,
        )
        for kind, ratios in network.over_bare_session.items()
    ]
    rows += [
        _clock_row(f"{work}: from files to files {kind}, of a batch on each core", ratios)
        for kind, ratios in network.over_bare_lanes.items()
    ]
    return rows


def _clock_row(name: str, ratios: ClockRatios) -> tuple[str, ...]:
    return name, format_ratio(ratios.wall), format_ratio(ratios.cpu)
