"""Free-response (FROC) curves: sensitivity against false positives per scan, and its mean at seven rates (CPM).

A curve starts at (0, 0) and has a point for each distinct threshold. Sensitivity is read at 1/8, 1/4, 1/2, 1, 2, 4 and
8 false positives per scan. Publications use two definitions: linear interpolation between points, constant beyond the
last (LUNA16); and the first point at or above the rate (several copies of LUNA16's program). The second value is never
lower than the first.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Interval = tuple[float, float]
RATES = (0.125, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0)
"""False positives per scan at which curves are read."""
RESAMPLES = 1000
GRID = np.linspace(RATES[0], RATES[-1], 10_000)
"""Rates at which bootstrap curves are averaged."""
THINNING = 50
"""Records keep every 50th rate of GRID."""
READ_OFF = "cpm: by a line between points; cpm_at_or_above: at the first point at or above each rate"


@dataclass(frozen=True, kw_only=True)
class ScanHits:
    """The scores of one scan's candidates, divided into hits and false positives."""

    found: tuple[float, ...] = ()
    """The best score of each detected finding."""
    missed: int = 0
    """Findings without a hit."""
    false: tuple[float, ...] = ()
    """The score of each false positive."""


@dataclass(frozen=True, kw_only=True)
class Curve:
    """A free-response curve, in order of increasing false positives."""

    false_per_scan: Floats
    """float64[n]: false positives per scan."""
    sensitivity: Floats
    """float64[n]: share of detected findings."""

    def between(self, rates: npt.ArrayLike = RATES) -> Floats:
        """Return the sensitivity at the rates by linear interpolation, constant beyond the last point."""
        return np.interp(np.asarray(rates, dtype=np.float64), self.false_per_scan, self.sensitivity)

    def at_or_above(self, rates: npt.ArrayLike = RATES) -> Floats:
        """Return the sensitivity of the first point at or above each rate, or else of the last point."""
        indices = np.searchsorted(self.false_per_scan, np.asarray(rates, dtype=np.float64), side="left")
        return np.asarray(self.sensitivity[np.minimum(indices, len(self.sensitivity) - 1)], dtype=np.float64)


@dataclass(frozen=True, kw_only=True)
class Band:
    """The 95 % bootstrap interval of a curve over scans or patients."""

    false_per_scan: Floats
    low: Floats
    high: Floats


@dataclass(frozen=True, kw_only=True)
class FreeResponse:
    """A free-response curve with its summary."""

    scans: int
    findings: int
    rates: tuple[float, ...]
    """False positives per scan at which the sensitivity is reported."""
    sensitivity_between: Floats
    """Sensitivity at the rates, by linear interpolation."""
    sensitivity_at_or_above: Floats
    """Sensitivity at the rates, at the first point at or above each."""
    cpm: float
    """Mean of `sensitivity_between`."""
    cpm_at_or_above: float
    """Mean of `sensitivity_at_or_above`."""
    cpm_interval: Interval
    """95 % bootstrap interval of `cpm` over scans, or over patients if they are known."""
    resamples: int
    """Bootstrap samples with a finding, of RESAMPLES. The others have no sensitivity and are left out."""
    cpm_of_mean_curve: float
    """CPM of the mean bootstrap curve."""
    curve: Curve
    band: Band
    read_off: str = READ_OFF
    """Explanation of the two CPM values."""


@dataclass(frozen=True, kw_only=True)
class NoFindings:
    """Written instead of a curve if the scans have no findings."""

    cpm: None = None
    findings: int = 0
    scans: int


@dataclass(frozen=True, kw_only=True)
class _Samples:
    """The scores of all scans in descending order."""

    scans: int
    findings: npt.NDArray[np.int64]
    """int64[scans]: findings of each scan."""
    scan: npt.NDArray[np.int64]
    """int64[n]: the scan of each score."""
    true: npt.NDArray[np.bool_]
    """bool[n]: whether the score belongs to a hit."""
    ends: npt.NDArray[np.int64]
    """Last index of each distinct score."""

    def curve(self, weights: npt.NDArray[np.int64]) -> Curve:
        """Return the curve with each scan weighted by int64[scans]."""
        count = weights[self.scan]
        true, false = np.cumsum(count * self.true)[self.ends], np.cumsum(count * ~self.true)[self.ends]
        findings = max(1, int((weights * self.findings).sum()))  # of make_curve, which may have no finding
        return Curve(
            false_per_scan=np.concatenate([[0.0], false / max(1, int(weights.sum()))]),
            sensitivity=np.concatenate([[0.0], true / findings]),
        )


def make_curve(scans: Sequence[ScanHits]) -> Curve:
    """Return the free-response curve of scans.

    >>> curve = make_curve([ScanHits(found=(0.9,), false=(0.8,)), ScanHits(missed=1)])
    >>> curve.false_per_scan.tolist(), curve.sensitivity.tolist()
    ([0.0, 0.0, 0.5], [0.0, 0.5, 0.5])
    """
    return _sort_scores(scans).curve(np.ones(len(scans), dtype=np.int64))


def _sort_scores(scans: Sequence[ScanHits]) -> _Samples:
    rows = [
        (score, number, is_hit)
        for number, hits in enumerate(scans)
        for is_hit, scores in ((True, hits.found), (False, hits.false))
        for score in scores
    ]
    rows.sort(key=lambda row: -row[0])
    scores = np.array([row[0] for row in rows], dtype=np.float64)
    return _Samples(
        scans=len(scans),
        findings=np.array([len(hits.found) + hits.missed for hits in scans], dtype=np.int64),
        scan=np.array([row[1] for row in rows], dtype=np.int64),
        true=np.array([row[2] for row in rows], dtype=bool),
        ends=np.flatnonzero(np.diff(scores, append=-np.inf)),
    )


def analyze_free_response(
    scans: Sequence[ScanHits], patients: Sequence[str] | None = None
) -> FreeResponse | NoFindings:
    """Compute curve, sensitivities, CPM, and 95 % intervals from RESAMPLES bootstrap samples.

    The samples are of the scans, or of their patients if `patients` names that of each scan: all scans of a patient are
    drawn together. A sample without a finding has no sensitivity: it is left out.
    """
    samples = _sort_scores(scans)
    if not samples.findings.sum():
        return NoFindings(scans=len(scans))
    curve = make_curve(scans)
    owner, count = _number_patients(len(scans), patients)
    rng = np.random.default_rng(0)
    lines, means, kept = np.empty((RESAMPLES, len(GRID)), dtype=np.float32), np.empty(RESAMPLES), 0
    for _ in range(RESAMPLES):
        weights = np.bincount(rng.integers(0, count, count), minlength=count)[owner]
        if not (weights * samples.findings).any():
            continue
        drawn = samples.curve(weights)
        lines[kept], means[kept] = drawn.between(GRID), drawn.between().mean()
        kept += 1
    lines, means = lines[:kept], means[:kept]
    low, high = np.percentile(means, (2.5, 97.5))
    band_low, band_high = np.percentile(lines, (2.5, 97.5), axis=0)
    return FreeResponse(
        scans=len(scans),
        findings=int(samples.findings.sum()),
        rates=RATES,
        sensitivity_between=curve.between(),
        sensitivity_at_or_above=curve.at_or_above(),
        cpm=float(curve.between().mean()),
        cpm_at_or_above=float(curve.at_or_above().mean()),
        cpm_interval=(float(low), float(high)),
        resamples=kept,
        cpm_of_mean_curve=float(np.interp(RATES, GRID, lines.mean(axis=0)).mean()),
        curve=curve,
        band=Band(false_per_scan=GRID[::THINNING], low=band_low[::THINNING], high=band_high[::THINNING]),
    )


@dataclass(frozen=True, kw_only=True)
class CpmDifference:
    """The CPM of one list of candidates minus that of another one for the same scans."""

    difference: float
    interval: Interval
    """95 % bootstrap interval over scans, or over patients if they are known."""


def compare_cpm(
    scans: Sequence[ScanHits], reference: Sequence[ScanHits], patients: Sequence[str] | None = None
) -> CpmDifference:
    """Compare two lists of candidates: RESAMPLES bootstrap samples, the same for both.

    `scans` and `reference` have the same scans in the same order, with a finding in one of them at least. The samples
    are of the scans, or of their patients if `patients` names that of each scan.

    >>> compare_cpm([ScanHits(found=(0.9,))] * 2, [ScanHits(missed=1)] * 2)
    CpmDifference(difference=1.0, interval=(1.0, 1.0))
    """
    one, other = _sort_scores(scans), _sort_scores(reference)
    owner, count = _number_patients(len(scans), patients)
    rng, found = np.random.default_rng(0), []
    for _ in range(RESAMPLES):
        weights = np.bincount(rng.integers(0, count, count), minlength=count)[owner]
        if (weights * one.findings).any():
            found.append(float(one.curve(weights).between().mean() - other.curve(weights).between().mean()))
    low, high = np.percentile(found, (2.5, 97.5))
    difference = float(make_curve(scans).between().mean() - make_curve(reference).between().mean())
    return CpmDifference(difference=difference, interval=(float(low), float(high)))


def _number_patients(scans: int, patients: Sequence[str] | None) -> tuple[npt.NDArray[np.int64], int]:
    """Return the number of the patient of each scan, int64[scans], and how many there are; None: one for each scan."""
    names = range(scans) if patients is None else patients
    owner = np.unique(np.array(list(names)), return_inverse=True)[1]
    return owner, int(owner.max()) + 1
