"""A collection of synthetic chests in the form of LUNA16.

::

    OUT/phantom.json         the settings; the same folder refuses others
    OUT/scans/NAME.mha       CT
    OUT/lungs/NAME.mha       3 left lung, 4 right lung, 5 trachea and main bronchi
    OUT/nodules/NAME.mha     number of the nodule, in the order of the table
    OUT/annotations.csv      seriesuid, coordX, coordY, coordZ, diameter_mm, kind, place, malignancy

The scan of a case is written after its masks, and the table after all cases, so that what is there is complete.
A killed run goes on with the cases that are missing. Fewer cases than the folder has are refused: the table would
not list the nodules of the others.
"""

from collections.abc import Collection, Generator, Mapping
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import numpy.typing as npt

from slicemill.common.csv_cells import format_csv
from slicemill.common.documents import to_document
from slicemill.common.errors import InputError
from slicemill.common.files import read_json, write_bytes, write_json
from slicemill.common.parallel import map_isolated
from slicemill.common.terminal import count_noun
from slicemill.ct.chest.nodules import Nodule
from slicemill.ct.chest.phantom import make_chest
from slicemill.ct.chest.plan import Plan, make_plan, make_protocol, to_file_mm
from slicemill.ct.chest.spec import ChestSpec
from slicemill.ct.formats.metaimage.write import write_metaimage

VERSION = 3
"""Raise it when equal settings give other annotations, or voxels that differ by more than rounding."""
COLUMNS = ("seriesuid", "coordX", "coordY", "coordZ", "diameter_mm", "kind", "place", "malignancy")


@dataclass(frozen=True, kw_only=True)
class ChestSettings:
    """The settings of a collection, as phantom.json has them."""

    seed: int
    size: int
    nodules: int | None = None
    """Number of nodules in each chest; None draws it. phantom.json has it only if it is not None."""
    version: int = VERSION

    def document(self) -> dict[str, int]:
        """Return the content of phantom.json."""
        return {name: value for name, value in to_document(self).items() if value is not None}


@dataclass(frozen=True, kw_only=True)
class InsertSettings:
    """The settings of copies of a scan with nodules, as phantom.json has them."""

    seed: int
    scan_sha256: str
    lungs_sha256: str
    version: int = VERSION

    def document(self) -> dict[str, int | str]:
        """Return the content of phantom.json."""
        return dict(to_document(self))


@dataclass(frozen=True, kw_only=True)
class Annotation:
    """A row of annotations.csv."""

    seriesuid: str
    coordX: float  # noqa: N815 (the names of LUNA16's columns)
    coordY: float  # noqa: N815
    coordZ: float  # noqa: N815
    diameter_mm: float
    kind: str
    place: str
    malignancy: int
    """1 malignant, 0 benign."""


def write_chests(folder: Path, settings: ChestSettings, cases: int, workers: int = 1) -> Generator[str, None, None]:
    """Write a collection; yield the name of each case once its files exist. More cases may be added later.

    The files are the same for any number of worker processes.

    Raises
    ------
    InputError
        The folder has a collection with other settings, or more cases; or a worker process crashed.
    """
    claim(folder, settings)
    specs = [
        ChestSpec(seed=(settings.seed, number), size=settings.size, nodules=settings.nodules) for number in range(cases)
    ]
    prepare_table(folder, [spec.name for spec in specs])
    rows: dict[int, list[Annotation]] = {}
    with closing(map_isolated(partial(_make_case, folder), specs, workers, _explain_crash)) as made:
        for number, annotations in made:
            rows[number] = annotations
            yield specs[number].name
    write_annotations(folder / "annotations.csv", [row for number in sorted(rows) for row in rows[number]])


def _make_case(folder: Path, spec: ChestSpec) -> list[Annotation]:
    """Write the files of a case unless they exist, and return its rows."""
    plan = make_plan(spec)
    if not (folder / "scans" / f"{spec.name}.mha").exists():
        write_chest(folder, spec, plan)
    return annotate(spec, plan)


def _explain_crash(spec: ChestSpec) -> list[Annotation]:
    raise InputError(
        f"the process that draws {spec.name} crashed while it was the only one, likely out of memory. Free memory, or "
        "pass a smaller --size."
    )


def claim(folder: Path, settings: ChestSettings | InsertSettings) -> None:
    """Write the settings, or compare them with those of an earlier run.

    Raises
    ------
    InputError
        The earlier ones are others.
    """
    place = folder / "phantom.json"
    wanted = settings.document()
    if not place.exists():
        write_json(place, wanted)
        return
    earlier = read_json(place)
    if earlier != wanted:
        reason = f"the folder has phantoms of {_list(earlier)}; requested are {_list(wanted)}. "
        if earlier == {**wanted, "version": earlier.get("version")}:
            reason += "This version of slicemill draws other phantoms. "
        raise InputError(f"{reason}Use another folder.", where=place)


def prepare_table(folder: Path, names: Collection[str]) -> None:
    """Refuse scans that annotations.csv would not list, and remove an earlier one if some of these scans are missing.

    So a run that is killed while it adds scans leaves no table that lists only some of them.

    Raises
    ------
    InputError
        The folder has other scans than those of these names.
    """
    there = {path.stem for path in (folder / "scans").glob("[!.]*.mha")}
    others = sorted(there - set(names))
    if others:
        raise InputError(
            f"has {count_noun(len(others), 'scan')} beyond the {len(names):,} requested, such as {others[0]}.mha, and "
            "annotations.csv would not list their nodules. Pass the --cases of the earlier run or more, or use another "
            "folder.",
            where=folder / "scans",
        )
    if not there.issuperset(names):
        (folder / "annotations.csv").unlink(missing_ok=True)


def _list(settings: Mapping[str, object]) -> str:
    return ", ".join(f"{name} {value}" for name, value in settings.items())


def write_chest(folder: Path, spec: ChestSpec, plan: Plan) -> None:
    """Write the files of a case."""
    chest = make_chest(spec, plan)
    name = f"{spec.name}.mha"
    write_metaimage(folder / "lungs" / name, chest.lungs, chest.affine, compressed=True)
    write_metaimage(folder / "nodules" / name, chest.nodules, chest.affine, compressed=True)
    write_metaimage(folder / "scans" / name, chest.image, chest.affine)


def annotate(spec: ChestSpec, plan: Plan) -> list[Annotation]:
    """Return the rows of a case: positions in LPS mm, as the scan's file has them."""
    protocol = make_protocol(spec, plan.patient)
    return [annotate_nodule(spec.name, nodule, to_file_mm(spec, protocol, nodule.centroid)) for nodule in plan.nodules]


def annotate_nodule(name: str, nodule: Nodule, place_mm: npt.NDArray[np.float64]) -> Annotation:
    """Return the row of a nodule at x, y, z in LPS mm."""
    x, y, z = (round(float(mm), 3) for mm in place_mm)
    return Annotation(
        seriesuid=name,
        coordX=x,
        coordY=y,
        coordZ=z,
        diameter_mm=round(nodule.diameter_mm, 3),
        kind=nodule.kind,
        place=nodule.place,
        malignancy=int(nodule.malignant),
    )


def write_annotations(path: Path, rows: list[Annotation]) -> None:
    """Write annotations.csv."""
    write_bytes(path, format_csv([to_document(row) for row in rows], COLUMNS).encode())
