"""How far rules without learning get on synthetic chests: the best of 200 settings must stay below a CPM of 0.45.

A rule takes the lung mask. Voxels at or above a threshold in it are opened by a ball; connected components whose
diameter lies in a range are candidates, ranked by their roundness, alone or with their size. All combinations of
five thresholds, four balls, five ranges and two ranks are scored by LUNA16's rules on the same scans, and the best is
chosen on these scans, which flatters it. If a rule did well, a network that does well would have shown nothing.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from typing import Literal

import numpy as np
import numpy.typing as npt

from slicemill.bench.schema.base import origin
from slicemill.bench.schema.nodules import NoduleRulesRecord, RuleScore
from slicemill.common.progress import progress
from slicemill.ct.chest.collection import annotate
from slicemill.ct.chest.drawer import AIRWAY
from slicemill.ct.chest.phantom import ChestPhantom, make_chest
from slicemill.ct.chest.plan import make_plan
from slicemill.ct.chest.spec import ChestSpec
from slicemill.measure.evaluation.froc import ScanHits, make_curve
from slicemill.measure.evaluation.luna16 import find_hits

Floats = npt.NDArray[np.float64]
Rank = Literal["roundness", "roundness and size"]
THRESHOLDS_HU = (-700, -600, -500, -400, -250)
BALLS_MM = (0.0, 1.4, 2.0, 2.9)
"""Radii of the opening."""
RANGES_MM = ((2.0, 10.0), (3.0, 15.0), (3.0, 35.0), (5.0, 35.0), (7.0, 35.0))
RANKS: tuple[Rank, ...] = ("roundness", "roundness and size")
LIMIT = 0.45
"""CPM that the best setting must stay below."""


@dataclass(frozen=True, kw_only=True)
class Setting:
    """One rule."""

    threshold_hu: int
    ball_mm: float
    range_mm: tuple[float, float]
    rank: Rank

    @property
    def name(self) -> str:
        """Return the rule in words."""
        low, high = self.range_mm
        return f"{self.threshold_hu} HU, opened by {self.ball_mm:g} mm, {low:g} to {high:g} mm, by {self.rank}"


@dataclass(frozen=True, kw_only=True)
class Components:
    """The connected components of a scan after a threshold and an opening."""

    centers: Floats
    """float64[n, 3]: x, y, z, mm."""
    diameters: Floats
    """float64[n]: of the ball of equal volume, mm."""
    roundness: Floats
    """float64[n], 0 to 1: shortest over longest axis, times the share of the ellipsoid of equal axes that is filled."""

    def rank(self, range_mm: tuple[float, float], rank: Rank) -> Floats:
        """Return the candidates float64[m, 4]: x, y, z, score."""
        chosen = (self.diameters >= range_mm[0]) & (self.diameters <= range_mm[1])
        score = self.roundness[chosen]
        if rank == "roundness and size":
            score = score * np.log(self.diameters[chosen])
        return np.column_stack([self.centers[chosen], score])


def all_settings() -> list[Setting]:
    """Return the 200 settings."""
    return [
        Setting(threshold_hu=threshold, ball_mm=ball, range_mm=limits, rank=rank)
        for threshold, ball, limits, rank in product(THRESHOLDS_HU, BALLS_MM, RANGES_MM, RANKS)
    ]


def run(cases: int, seed: int, size: int) -> NoduleRulesRecord:
    """Score all settings on synthetic chests."""
    settings = all_settings()
    hits: dict[Setting, list[ScanHits]] = {setting: [] for setting in settings}
    findings = 0
    with progress("rules", cases, "cases") as advance:
        for number in range(cases):
            spec = ChestSpec(seed=(seed, number), size=size)
            plan = make_plan(spec)
            rows = annotate(spec, plan)
            included = np.array([[row.coordX, row.coordY, row.coordZ, row.diameter_mm] for row in rows]).reshape(-1, 4)
            findings += len(included)
            for setting, candidates in find_candidates(make_chest(spec, plan), settings):
                hits[setting].append(find_hits(candidates, included, np.empty((0, 4))))
            advance(1, spec.name)
    scores = sorted((score_rule(setting, scans) for setting, scans in hits.items()), key=lambda score: -score.cpm)
    return NoduleRulesRecord(
        cases=cases, seed=seed, size=size, findings=findings, limit=LIMIT, settings=scores, **origin()
    )


def score_rule(setting: Setting, scans: list[ScanHits]) -> RuleScore:
    """Return the sensitivities of a rule."""
    sensitivity = make_curve(scans).between()
    return RuleScore(
        rule=setting.name,
        cpm=round(float(sensitivity.mean()), 4),
        sensitivity=[round(float(value), 4) for value in sensitivity],
    )


def find_candidates(chest: ChestPhantom, settings: list[Setting]) -> Iterator[tuple[Setting, Floats]]:
    """Yield the candidates of each setting in a scan: float64[n, 4], x, y, z, score."""
    for threshold, ball in product(THRESHOLDS_HU, BALLS_MM):
        components = find_components(chest, threshold, ball)
        for setting in settings:
            if (setting.threshold_hu, setting.ball_mm) == (threshold, ball):
                yield setting, components.rank(setting.range_mm, setting.rank)


def find_components(chest: ChestPhantom, threshold_hu: int, ball_mm: float) -> Components:
    """Find the components of the voxels in the lungs at or above a threshold, opened by a ball."""
    from scipy import ndimage

    lungs = (chest.lungs > 0) & (chest.lungs != AIRWAY)
    box = ndimage.find_objects(lungs.astype(np.uint8))[0]
    dense = lungs[box] & (chest.image[box] >= threshold_hu)
    spacing = np.linalg.norm(chest.affine[:3, :3], axis=0)[::-1]
    if ball_mm:
        dense = ndimage.binary_opening(dense, make_ball(ball_mm, spacing))
    numbers, count = ndimage.label(dense, structure=np.ones((3, 3, 3)))
    where = np.nonzero(numbers)
    owner = numbers[where] - 1
    voxels = np.bincount(owner, minlength=count).astype(np.float64)
    points = np.stack([place + side.start for place, side in zip(where, box, strict=True)], axis=-1)[:, ::-1]
    points = points @ chest.affine[:3, :3].T + chest.affine[:3, 3]
    centers = _sums(owner, points, count) / voxels[:, None]
    offsets = points - centers[owner]
    spread = _sums(owner, (offsets[:, :, None] * offsets[:, None, :]).reshape(-1, 9), count) / voxels[:, None]
    spread = spread.reshape(-1, 3, 3) + np.diag(spacing[::-1] ** 2) / 12
    axes = np.sqrt(5 * np.linalg.eigvalsh(spread)) if count else np.ones((0, 3))
    volume = voxels * np.prod(spacing)
    filled = np.minimum(volume / (4 / 3 * np.pi * axes.prod(axis=1)), 1)
    return Components(
        centers=centers, diameters=np.cbrt(6 * volume / np.pi), roundness=axes[:, 0] / axes[:, 2] * filled
    )


def _sums(owner: npt.NDArray[np.int64], values: Floats, count: int) -> Floats:
    """Return the sums of float64[n, k] by owner: float64[count, k]."""
    return np.stack([np.bincount(owner, column, minlength=count) for column in values.T], axis=-1)


def make_ball(radius_mm: float, spacing_mm: Floats) -> npt.NDArray[np.bool_]:
    """Return a ball as bool[z, y, x] for voxels of a spacing z, y, x."""
    reach = (radius_mm / spacing_mm).astype(int)
    z, y, x = np.ogrid[tuple(slice(-count, count + 1) for count in reach)]
    return np.asarray((z * spacing_mm[0]) ** 2 + (y * spacing_mm[1]) ** 2 + (x * spacing_mm[2]) ** 2 <= radius_mm**2)
