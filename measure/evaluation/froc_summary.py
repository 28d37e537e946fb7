"""What `slicemill froc` prints."""

from collections.abc import Mapping

from slicemill.common.terminal import format_table
from slicemill.measure.evaluation.findings import Findings
from slicemill.measure.evaluation.froc import RATES, RESAMPLES, FreeResponse, NoFindings
from slicemill.measure.evaluation.luna16 import PROBABILITY, Luna16Result
from slicemill.measure.evaluation.malignancy import describe_malignancy


def describe_result(result: Luna16Result, response: FreeResponse, findings: Findings) -> list[str]:
    """Return the lines: the curve, CPM with its interval, what is not scored, the parts, and malignancy."""
    low, high = response.cpm_interval
    rates = [f"{rate:g}" for rate in response.rates]
    reads = (
        ["sensitivity_between", *response.sensitivity_between],
        ["sensitivity_at_or_above", *response.sensitivity_at_or_above],
    )
    lines = [
        format_table(["false positives per scan", *rates], reads),
        (
            f"CPM {response.cpm:.4f} by linear interpolation (95 % interval {low:.4f} to {high:.4f} over resampled "
            f"{result.resampled})"
        ),
    ]
    if result.ranked_by != PROBABILITY:
        lines.append(f"candidates ranked by {result.ranked_by}")
    if response.resamples < RESAMPLES:
        lines.append(
            f"{RESAMPLES - response.resamples} of {RESAMPLES} samples of {result.resampled} had no finding and are "
            "left out"
        )
    lines += [
        (
            f"CPM {response.cpm_at_or_above:.4f} at the first point at or above each rate; "
            f"{response.cpm_of_mean_curve:.4f} of the mean bootstrap curve"
        ),
        (
            f"{response.findings} findings in {response.scans} scans; "
            f"{result.unlisted_candidates} candidates in unlisted scans"
        ),
    ]
    return [
        *lines,
        *findings.describe_uncounted(),
        *_describe_parts(result.parts),
        *describe_malignancy(result.malignancy),
    ]


def _describe_parts(parts: Mapping[str, FreeResponse | NoFindings]) -> list[str]:
    rows: list[list[object]] = []
    for name, one in parts.items():
        if isinstance(one, NoFindings):
            rows.append([name, 0, *[None] * (len(RATES) + 4)])
        else:
            rows.append([name, one.findings, *one.sensitivity_between, one.cpm, *one.cpm_interval, one.resamples])
    rates = [f"{rate:g}" for rate in RATES]
    return ["", format_table(["findings", "n", *rates, "CPM", "low", "high", "samples"], rows)]
