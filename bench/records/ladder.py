"""The ladder of gains in inference on the CPU, as a picture of records: ``python -m slicemill.bench.records.ladder``.

It writes bench/results/ladder.png. A panel shows one record, because gains of different machines do not multiply. What
a record did not measure is named below its bars.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from slicemill.bench.records.figures import PEER_COLOR, SLICEMILL_COLOR, new_figure
from slicemill.bench.records.markdown import format_processor
from slicemill.bench.schema.base import Document, read_record
from slicemill.bench.schema.networks import OpenvinoRecord, RangeRecord
from slicemill.common.files import read_json

if TYPE_CHECKING:
    from matplotlib.axes import Axes

RANGE_RECORD, NETWORK_RECORDS = "infer-range", ("openvino-avx2", "openvino-avx512", "openvino")
"""Names of the records in bench/results."""
FORMATS = {"f32": "float32", "bf16": "bfloat16"}


@dataclass(frozen=True, kw_only=True)
class Ladder:
    """Gains that one record measured, in the order of the rungs."""

    title: str
    speedups: Mapping[str, float]
    """Rung -> times as fast as the first one, which has 1."""
    left_out: Mapping[str, str] = field(default_factory=dict)
    """Rung that was not measured -> reason."""


def ladder_of_range(document: Document) -> Ladder:
    """Return the rungs of a record of `bench infer --range`: all slices, the organ's range, other engines."""
    record = read_record(RangeRecord, document)
    row = record.rows["trunk"]
    ratios = {"organ's range": row.over_all} | {
        f"organ's range, {name}": engine.over_all for name, engine in row.engines.items()
    }
    gains = {name: ratio.cpu for name, ratio in ratios.items() if ratio.cpu is not None}
    return Ladder(
        title=f"files to files, liver in {row.liver_share:.2f} of the slices, {record.unit}, CPU time, "
        f"{format_processor(record.machine)}",
        speedups={"all slices": 1.0} | gains,
        left_out=record.not_run,
    )


def ladder_of_network(document: Document) -> Ladder:
    """Return the rungs of a record of `slicemill.bench.stages.infer_openvino`: the bare network, by two engines."""
    record = read_record(OpenvinoRecord, document)
    clock, speedup = "CPU time", record.cpu_over_baseline
    if speedup is None:
        clock, speedup = "by the clock", record.over_baseline
    return Ladder(
        title=f"network alone, {record.unit}, {clock}, {format_processor(record.machine)}",
        speedups={"onnxruntime, float32": 1.0, f"OpenVINO, {FORMATS[record.precision]}": speedup},
    )


def draw_ladder(path: Path, ladders: list[Ladder]) -> None:
    """Draw a panel for each record as PNG: a bar a rung, its speedup, and the names of the rungs that are left out."""
    heights = [0.75 + 0.32 * len(ladder.speedups) + 0.2 * len(ladder.left_out) for ladder in ladders]
    most = max(value for ladder in ladders for value in ladder.speedups.values())
    size = (9.0, sum(heights))
    with new_figure(path, nrows=len(ladders), figsize=size, height_ratios=heights, layout="constrained") as (_, panels):
        for ladder, panel in zip(ladders, panels, strict=True):
            _draw_rungs(panel, ladder)
            panel.set_xlim(0, 1.12 * most)


def _draw_rungs(panel: "Axes", ladder: Ladder) -> None:
    colors = [PEER_COLOR] + [SLICEMILL_COLOR] * (len(ladder.speedups) - 1)
    bars = panel.barh(list(ladder.speedups), list(ladder.speedups.values()), color=colors, height=0.66)
    panel.bar_label(bars, fmt="%.2f", padding=4, fontsize=8)
    panel.invert_yaxis()
    panel.set_title(ladder.title, fontsize=9, loc="left")
    panel.set_xlabel("\n".join(f"not measured: {name} ({reason})" for name, reason in ladder.left_out.items()),
                     fontsize=8, loc="left")  # fmt: skip
    panel.tick_params(labelsize=8)
    for side in ("top", "right"):
        panel.spines[side].set_visible(False)


def read_ladders(results: Path) -> list[Ladder]:
    """Return a ladder for each record that the folder has. The last one names the records that are missing."""
    makers = {RANGE_RECORD: ladder_of_range, **dict.fromkeys(NETWORK_RECORDS, ladder_of_network)}
    paths = {name: results / f"{name}.json" for name in makers}
    ladders = [make(read_json(paths[name])) for name, make in makers.items() if paths[name].exists()]
    missing = {f"{name}.json": "no such record" for name, path in paths.items() if not path.exists()}
    last = ladders[-1]
    return [*ladders[:-1], replace(last, left_out={**last.left_out, **missing})]


def main() -> None:
    """Draw the committed records."""
    results = Path(__file__).resolve().parents[1] / "results"
    draw_ladder(results / "ladder.png", read_ladders(results))


if __name__ == "__main__":
    main()
