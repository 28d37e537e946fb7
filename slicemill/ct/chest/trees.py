"""Vessels and airways of a lung: trees that fill a volume, as those of Tawhai and others (J Appl Physiol 2004).

Each tree supplies points spread over the lung. A branch runs part of the way to the middle of its points, where they
are divided into two halves, each with a branch of its own, down to single points. A branch's flow is its number of
points, and its radius the cube root of the flow, which is Murray's law: r(parent)^3 = sum of r(child)^3.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from slicemill.ct.chest.patient import SIDES, Patient, Side, lung_distance
from slicemill.ct.chest.shapes import capsule_distance

Floats = npt.NDArray[np.float64]
ENDS_PER_LITER = 460
"""Points that a tree supplies per liter of lung: its last branches are 7 mm long and 0.5 mm thick, as fine as the
vessels that CT shows."""
ROOT_MM = {"artery": 6.6, "vein": 5.8}
"""Radius of a tree's first branch."""
SMALLEST_BRONCHUS_MM = 0.85
"""Radius of the smallest artery whose bronchus is drawn: CT shows none below 2 mm."""
LARGE_AIRWAYS = 3
"""Trachea and main bronchi are the first tubes of a patient's airways."""
SHARE_OF_WAY = 0.42
FREE_OF_VESSELS_MM = 2.5
"""Distance of the last branches from the pleura."""


@dataclass(frozen=True, kw_only=True)
class Tubes:
    """Straight pieces of vessels or airways."""

    starts: Floats
    """float64[n, 3]: x, y, z, mm."""
    ends: Floats
    radii: Floats
    """float64[n], mm."""

    def __len__(self) -> int:
        return len(self.radii)

    def pick(self, chosen: npt.NDArray[np.bool_] | npt.NDArray[np.int64]) -> "Tubes":
        """Return some of the tubes."""
        return Tubes(starts=self.starts[chosen], ends=self.ends[chosen], radii=self.radii[chosen])

    def clearance(self, point: Floats) -> float:
        """Return the distance of a point from the nearest tube's surface, mm; infinite if there is none."""
        if not len(self):
            return float("inf")
        return float((capsule_distance(point - self.starts, self.ends - self.starts) - self.radii).min())


def bronchial_walls(bronchi: Tubes) -> Tubes:
    """Return the outer tubes of bronchi, whose own radii are those of their lumens."""
    return Tubes(starts=bronchi.starts, ends=bronchi.ends, radii=1.2 * bronchi.radii + 0.3)


def join(parts: "list[Tubes]") -> Tubes:
    """Return the tubes of several lists in one."""
    return Tubes(
        starts=np.concatenate([part.starts for part in parts]),
        ends=np.concatenate([part.ends for part in parts]),
        radii=np.concatenate([part.radii for part in parts]),
    )


@dataclass(frozen=True, kw_only=True)
class LungTrees:
    """The trees of both lungs."""

    vessels: Tubes
    """Arteries and veins, curved: each branch is two tubes."""
    bronchi: Tubes
    """Lumens; the first are trachea and main bronchi."""
    forks: Floats
    """float64[n, 4]: where branches divide, x, y, z and the parent's radius, mm."""


def sample_lung(patient: Patient, side: Side, count: int, rng: np.random.Generator, *, depth_mm: float) -> Floats:
    """Draw points at least `depth_mm` below a lung's surface: float64[count, 3], x, y, z in mm."""
    found: list[Floats] = []
    missing = count
    while missing > 0:
        x = side * rng.uniform(0, 145 * patient.girth, 4096)
        y, z = rng.uniform(-100, 100, 4096) * patient.girth, rng.uniform(-150, 132, 4096)
        points = np.stack([x, y, z], axis=-1)
        x32, y32, z32 = points.T.astype(np.float32)
        inside = points[lung_distance(patient, side, x32, y32, z32) < -depth_mm]
        found.append(inside[:missing])
        missing -= len(found[-1])
    return np.concatenate(found)


def lung_liters(patient: Patient, side: Side) -> float:
    """Return a lung's volume, about."""
    x, y, z = np.meshgrid(
        side * np.arange(0, 150, 6, dtype=np.float32),
        np.arange(-105, 110, 6, dtype=np.float32),
        np.arange(-160, 135, 6, dtype=np.float32),
        sparse=True,
    )
    return float((lung_distance(patient, side, x, y, z) < 0).sum() * 6**3 / 1e6)


def grow_trees(patient: Patient, rng: np.random.Generator) -> LungTrees:
    """Grow arteries with their bronchi, and veins, from the hilum of each lung."""
    vessels, bronchi, forks = [], [_draw_trachea(patient)], []
    for side in SIDES:
        count = int(ENDS_PER_LITER * lung_liters(patient, side))
        hilum = np.array([side * 27 * patient.girth, 8.0, 22.0])
        for name, shift in (("artery", np.zeros(3)), ("vein", np.array([0.0, -9.0, -16.0]))):
            ends = sample_lung(patient, side, count, rng, depth_mm=FREE_OF_VESSELS_MM)
            root = hilum + shift
            branches = grow_tree(ends, root, ROOT_MM[name] * patient.girth, rng)
            forks.append(np.column_stack([branches.ends, branches.radii])[branches.radii > 0.8])
            if name == "artery":
                bronchi.append(_follow(branches, rng))
            vessels.append(_bend(branches, rng))
    return LungTrees(vessels=join(vessels), bronchi=join(bronchi), forks=np.concatenate(forks))


def grow_tree(ends: Floats, root: Floats, root_mm: float, rng: np.random.Generator) -> Tubes:
    """Grow a tree from `root` to all `ends`, float64[n, 3]; its first branch has the radius `root_mm`."""
    starts, stops, radii = [], [], []
    waiting = [(np.arange(len(ends)), root, np.zeros(3))]
    while waiting:
        members, start, heading = waiting.pop()
        points = ends[members]
        way = points.mean(axis=0) - start
        if len(members) == 1:
            stop = start + way
        else:
            length = np.linalg.norm(way)
            course = way + 0.35 * length * heading + 0.08 * length * rng.standard_normal(3)
            stop = start + course * (SHARE_OF_WAY * length / max(float(np.linalg.norm(course)), 1e-9))
            lower = _divide(points, way, rng)
            heading = (stop - start) / max(float(np.linalg.norm(stop - start)), 1e-9)
            waiting += [(members[lower], stop, heading), (members[~lower], stop, heading)]
        starts.append(start)
        stops.append(stop)
        radii.append(root_mm * (len(members) / len(ends)) ** (1 / 3))
    return Tubes(starts=np.array(starts), ends=np.array(stops), radii=np.array(radii))


def _divide(points: Floats, way: Floats, rng: np.random.Generator) -> npt.NDArray[np.bool_]:
    """Divide points in two by a plane along `way`, across their longest extent: a mask with both values."""
    forward = way / max(float(np.linalg.norm(way)), 1e-9)
    if len(points) > 6:
        offsets = points - points.mean(axis=0)
        across = np.linalg.eigh(offsets.T @ offsets)[1][:, 2] + 0.3 * rng.standard_normal(3)
    else:
        across = rng.standard_normal(3)
    across = across - (across @ forward) * forward
    place = points @ across
    share = rng.uniform(0.22, 0.78)
    rank = np.clip(round(share * len(points)), 1, len(points) - 1)
    mask = np.zeros(len(points), dtype=bool)
    mask[np.argsort(place)[:rank]] = True
    return mask


def _bend(branches: Tubes, rng: np.random.Generator) -> Tubes:
    """Return each branch as two tubes with a bend between them."""
    length = np.linalg.norm(branches.ends - branches.starts, axis=1, keepdims=True)
    middle = (branches.starts + branches.ends) / 2 + 0.07 * length * rng.standard_normal((len(branches), 3))
    return Tubes(
        starts=np.concatenate([branches.starts, middle]),
        ends=np.concatenate([middle, branches.ends]),
        radii=np.concatenate([branches.radii, branches.radii * 0.97]),
    )


def _follow(arteries: Tubes, rng: np.random.Generator) -> Tubes:
    """Return the bronchi beside arteries, a little thinner than these."""
    large = arteries.pick(arteries.radii > SMALLEST_BRONCHUS_MM)
    beside = np.array([0.25, 0.9, 0.35]) + 0.1 * rng.standard_normal(3)
    along = large.ends - large.starts
    along /= np.maximum(np.linalg.norm(along, axis=1, keepdims=True), 1e-9)
    shift = beside - (along @ beside)[:, None] * along
    shift = shift / np.maximum(np.linalg.norm(shift, axis=1, keepdims=True), 0.2) * 1.95 * large.radii[:, None]
    return Tubes(starts=large.starts + shift, ends=large.ends + shift, radii=0.72 * large.radii)


def _draw_trachea(patient: Patient) -> Tubes:
    """Return trachea and main bronchi down to the hilum."""
    g = patient.girth
    carina = np.array([0.0, 18 * g, 44.0])
    hila = [np.array([side * 34 * g, 16.0, 24.0]) for side in SIDES]
    return Tubes(
        starts=np.array([[0.0, 8 * g, 180.0], carina, carina]),
        ends=np.array([carina, *hila]),
        radii=np.array([8.5, 6.6, 6.0]) * g,
    )
