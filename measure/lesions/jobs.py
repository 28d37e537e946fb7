"""`slicemill measure`: masks that exist, files, folders or a store, measured in parallel; done ones are not done again.

Each case becomes ``NAME.json``, the page ``NAME.html`` and its picture ``NAME.png``, and ``NAME.seg.nrrd`` for 3D Slicer. A case is
done when its JSON is there, from the same files (size and time, in a store their hashes) and by the same settings. At the
end ``cases.csv``, ``lesions.csv``, ``summary.json``, ``colors.ctbl`` and ``report.html`` are made of all that is there.
"""

import base64
import glob
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from slicemill.common.errors import GeometryError, InputError, LabelError, PairingError, StoreError
from slicemill.common.files import read_json, write_json
from slicemill.common.progress import progress
from slicemill.ct.formats.nifti.header import grid_of_header
from slicemill.ct.formats.nifti.names import files_of, stem_of
from slicemill.ct.geometry import SAME_GRID_MM, Grid
from slicemill.ct.labels import LITS_LABELS, Labels, labels_from_json, read_dataset_json
from slicemill.ct.naming import find_files, name_of
from slicemill.ct.scan import ScanReader
from slicemill.measure.evaluation.score import probability_beside
from slicemill.measure.lesions.case_page import write_case_page
from slicemill.measure.lesions.cohort_page import write_cohort
from slicemill.measure.lesions.measurements import RIM_MM, Volume, case_figures, measure_lesions, rounded
from slicemill.measure.lesions.slicer3d import write_segmentation
from slicemill.measure.pairs import PROBABILITY, check_values, found, keys_of, masks_in, report_beside
from slicemill.measure.parallel import each
from slicemill.store.reader import Store, is_store, open_store

DISCLAIMER = "research use, not a diagnosis"
OWN_NAMES = ("report", "summary")
"""What no case may be called, since the page and the table of all cases are."""
CASE_ENDS = (".html", ".png", ".seg.nrrd")
"""Of what is written of a case beside its JSON."""
FORMAT = 1
"""Of the JSON; another one is measured again."""


@dataclass(frozen=True, kw_only=True)
class Job:
    """One segmentation to measure."""

    name: str
    """Place below the output folder, without suffix."""
    mask: Path
    """The file, or the store."""
    case_id: str | None = None
    """The case, when `mask` is a store."""
    image: Path | None = None
    labels: Labels | None = None
    """As stated by the user; None: the report beside the mask, or the store, names them."""
    named: Labels | None = None
    """What a `dataset.json` or LiTS's names say, where nothing else does."""
    lacks_scan: bool = False
    """Scans were given, and none has its name."""

    def stamp(self) -> dict[str, Any]:
        """Return what tells whether the case was measured as it is now."""
        if self.case_id is not None:
            info = open_store(self.mask)[self.case_id].info
            files: list[Any] = [info.image.sha256, info.mask.sha256 if info.mask else None]
        else:
            maps = sorted(self.mask.parent.glob(f"{glob.escape(stem_of(self.mask.name))}{PROBABILITY}*"))
            read = [file for path in (self.mask, self.image, *maps) if path is not None for file in files_of(path)]
            files = [[status.st_size, status.st_mtime_ns] for status in (file.stat() for file in read)]
        labels = self.labels if self.case_id is not None else labels_of(self)
        return {"format": FORMAT, "rim_mm": RIM_MM, "files": files, **(labels.as_json() if labels else {})}


@dataclass(frozen=True, kw_only=True)
class MeasureOutcome:
    """What became of a job."""

    name: str
    status: str
    """done, skipped or failed."""
    reason: str = ""


@dataclass(frozen=True, kw_only=True)
class Loaded:
    """A case in memory, with where it came from."""

    volume: Volume
    grid: Grid
    source: dict[str, Any]
    warnings: list[str]
    model: dict[str, Any] | None


def _has_mask(store: Store, case_id: str) -> bool:
    """Return whether a stored case has a mask; of one that cannot be opened its own job tells why."""
    try:
        return store[case_id].label is not None
    except StoreError:
        return True


def gather(masks: Path, images: Path | None, labels: Labels | None) -> list[Job]:
    """Return what there is to measure.

    Raises
    ------
    PairingError
        There is no mask, or an image has no name that fits.
    """
    if is_store(masks):
        store = open_store(masks)
        jobs = [
            Job(name=case_id, mask=masks, case_id=case_id, labels=labels)
            for case_id in store.case_ids
            if _has_mask(store, case_id)
        ]
    elif masks.is_file():
        if images is not None and images.is_dir():
            raise PairingError(f"{images}: is a folder and {masks} a file; name the file of its scan.")
        jobs = [job_of(masks, images, labels)]
    elif masks.is_dir():
        jobs = list(_in_folder(masks, images, labels))
    else:
        raise PairingError(f"{masks}: there is no such file, folder or store.")
    if not jobs:
        raise PairingError(f"{masks}: holds no mask (.nii, .nii.gz or a store of cases with masks).")
    seen = Counter(job.name for job in jobs)
    for job in jobs:
        if seen[job.name] > 1 or job.name in OWN_NAMES:
            raise PairingError(
                f"{job.mask}: its results would be written over others of the name {job.name}; rename it, or measure it by itself."
            )
    return jobs


def job_of(mask: Path, image: Path | None, labels: Labels | None) -> Job:
    """Return one file as a job."""
    return Job(name=stem_of(mask.name), mask=mask, image=image, labels=labels, named=_named(mask, mask.parent))


def left_out(masks: Path) -> list[Path]:
    """Return the files of a folder whose names say scan, and which no mask of that folder belongs to."""
    if is_store(masks) or not masks.is_dir():
        return []
    names = {file: name_of(file.relative_to(masks).as_posix()) for file in masks_in(masks)}
    of_masks = {(name.folder, name.key) for name in names.values() if name.role == "mask"}
    if not of_masks:
        return []
    return [file for file, name in names.items() if name.role != "mask" and (name.folder, name.key) not in of_masks]


def _in_folder(folder: Path, images: Path | None, labels: Labels | None) -> Iterable[Job]:
    files = masks_in(folder)
    names = {file: file.relative_to(folder).as_posix() for file in files}
    masks = [file for file in files if name_of(names[file]).role == "mask"] or files
    scans = _scans(images) if images is not None else {}
    for mask in masks:
        scan = found(names[mask], scans)
        image = None if scan is None else scan.path
        yield Job(
            name=names[mask][: len(names[mask]) - len(mask.name)] + stem_of(mask.name),
            mask=mask,
            image=image,
            labels=labels,
            named=_named(mask, folder),
            lacks_scan=images is not None and image is None,
        )


@dataclass(frozen=True, kw_only=True)
class Scan:
    """A scan that may be that of a mask."""

    folder: str
    path: Path


def _scans(images: Path) -> dict[str, list[Scan]]:
    """Return scans by every name under which they may be known."""
    if not images.is_dir():
        raise PairingError(f"{images}: must be a folder of scans, since the masks lie in one.")
    files = [file for file in find_files(images) if name_of(file.relative_to(images).as_posix()).role != "mask"]
    by_key: dict[str, list[Scan]] = {}
    for file in files:
        relative = file.relative_to(images).as_posix()
        for key in dict.fromkeys(keys_of(relative)):
            by_key.setdefault(key, []).append(Scan(folder=name_of(relative).folder, path=file))
    return by_key


def _named(mask: Path, folder: Path) -> Labels | None:
    """Return the labels that a `dataset.json` or LiTS's names say; None where the report beside a mask must."""
    for place in dict.fromkeys((folder, folder.parent)):
        if (place / "dataset.json").exists():
            return read_dataset_json(place / "dataset.json")
    return LITS_LABELS if mask.name.startswith("segmentation-") else None


def run(jobs: Sequence[Job], out: Path, *, workers: int = 1, overwrite: bool = False) -> list[MeasureOutcome]:
    """Measure cases into a folder, and make its tables and pages; what is done already is not done again."""
    out.mkdir(parents=True, exist_ok=True)
    check_summary(out)
    outcomes: list[tuple[int, MeasureOutcome]] = []
    with progress("measure", len(jobs), "cases") as advance:
        for one in each(partial(measure_job, out=out, overwrite=overwrite), jobs, workers, _died):
            outcomes.append(one)
            advance(1, "")
    ordered = [outcome for _, outcome in sorted(outcomes, key=lambda one: one[0])]
    done = [read_json(out / f"{outcome.name}.json") for outcome in ordered if outcome.status != "failed"]
    failed = [{"case": outcome.name, "reason": outcome.reason} for outcome in ordered if outcome.status == "failed"]
    write_cohort(out, done, failed)
    return ordered


def _died(job: Job) -> MeasureOutcome:
    """Return what became of a job whose process died."""
    reason = (
        f"{job.mask}: a worker process died, perhaps for want of memory; run the same command with fewer --workers."
    )
    return MeasureOutcome(name=job.name, status="failed", reason=reason)


def measure_job(job: Job, out: Path, *, overwrite: bool = False) -> MeasureOutcome:
    """Measure one case and write what is made of it; its JSON comes last."""
    try:
        stamp = job.stamp()
        place = out / f"{job.name}.json"
        known = own_record(out, job.name)
        if not overwrite and known is not None and known["stamp"] == stamp:
            return MeasureOutcome(name=job.name, status="skipped")
        case = load(job)
        if known is None:
            write_json(place, {"case": job.name, "note": DISCLAIMER, "stamp": None})  # what a killed run leaves is ours
        document = describe(job.name, case) | {"stamp": stamp}
        if job.lacks_scan:
            document["flags"].insert(0, "no scan of its name was found, so there is no HU")
        write_case_page(out, document, case.volume)
        write_segmentation(out / f"{job.name}.seg.nrrd", case.volume)
        write_json(place, document)
    except (InputError, OSError) as error:
        return MeasureOutcome(name=job.name, status="failed", reason=str(error))
    except MemoryError:
        return MeasureOutcome(
            name=job.name, status="failed", reason=f"{job.mask}: not enough memory to measure it; use fewer --workers."
        )
    return MeasureOutcome(name=job.name, status="done")


def own_record(out: Path, name: str) -> dict[str, Any] | None:
    """Return the record of a case that was measured, or begun, before; None where there is none.

    Raises
    ------
    PairingError
        A file that would be replaced was not written by `measure`.
    """
    place = out / f"{name}.json"
    if not place.exists():
        foreign = [beside for end in CASE_ENDS if (beside := out / f"{name}{end}").exists()]
    else:
        record = read_json(place)
        if record.get("note") == DISCLAIMER and "stamp" in record:
            return record
        foreign = [place]
    if foreign:
        raise PairingError(
            f"{foreign[0]}: was not written by slicemill measure and would be replaced; choose another --out."
        )
    return None


def check_summary(out: Path) -> None:
    """Refuse a folder that holds the summary of another command.

    Raises
    ------
    PairingError
        It does.
    """
    place = out / "summary.json"
    if place.exists() and not {"cases", "failed"} <= read_json(place).keys():
        raise PairingError(
            f"{place}: was not written by slicemill measure and would be replaced; choose another --out."
        )


def describe(name: str, case: Loaded) -> dict[str, Any]:
    """Return the record of a case: figures, lesions, where it came from, and flags that send a person to look."""
    lesions = measure_lesions(case.volume)
    figures = case_figures(case.volume, lesions)
    return {
        "case": name,
        "note": DISCLAIMER,
        **source_of(case),
        **figures,
        "lesions": [lesion.as_json() for lesion in lesions],
        "rim_mm": RIM_MM,
        "flags": flags(case, figures, [lesion.as_json() for lesion in lesions]),
    }


def source_of(case: Loaded) -> dict[str, Any]:
    """Return what a case is made of: labels, grid, files, model and warnings."""
    return {
        **case.volume.labels.as_json(),
        "shape_zyx": list(case.volume.label.shape),
        "spacing_mm_zyx": rounded(list(case.volume.spacing_mm)),
        "affine_lps": case.volume.affine_lps.tolist(),
        "source": case.source,
        "model": case.model,
        "warnings": case.warnings,
    }


def flags(case: Loaded, figures: dict[str, Any], lesions: Sequence[dict[str, Any]]) -> list[str]:
    """Return what should send a person to look."""
    found = []
    labels = case.volume.labels
    if labels.organ and not figures["organ_ml"]:
        found.append(f"no {labels.organ} found")
    if labels.organ and figures["organ_ml"]:
        alone = [one["id"] for one in lesions if not touches_organ(case.volume, one["bbox_zyx"])]
        found += [f"lesion {', '.join(map(str, alone))} touches no {labels.organ}"] if alone else []
    unsure = [one["id"] for one in lesions if one["probability_mean"] is not None and one["probability_mean"] < 0.5]
    if unsure:
        found.append(f"mean probability below 0.5 in lesion {', '.join(map(str, unsure))}")
    confidence = (case.model or {}).get("tumor_confidence")
    if isinstance(confidence, float) and confidence < 0.5:
        found.append(f"the model's confidence is {confidence:.2f}")
    return found + [f"geometry: {warning}" for warning in case.warnings]


def touches_organ(volume: Volume, box: Sequence[int]) -> bool:
    """Return whether the box around a lesion, one voxel wider, holds organ."""
    organ = volume.labels.values[volume.labels.organ or ""]
    sides = tuple(slice(max(0, low - 1), high + 1) for low, high in zip(box[:3], box[3:], strict=True))
    return bool((volume.label[sides] == organ).any())


def load(job: Job) -> Loaded:
    """Read a case.

    Raises
    ------
    InputError
        A file cannot be read, image and mask lie on different grids, or nothing says what the labels mean.
    """
    if job.case_id is not None:
        return _from_store(job)
    report, labels = report_beside(job.mask), labels_of(job)
    if labels is None:
        raise LabelError(f"{job.mask}: no report says what its label values mean; pass --labels liver=1,tumor=2.")
    with ScanReader(job.mask, "mask") as reader:
        grid, warnings = reader.grid, list(reader.header.warnings)
        label = reader.read()
        source = {"mask": {"name": job.mask.name, "sha256": reader.finish()}, "image": None}
    check_values(label, labels, str(job.mask))
    image = None
    if job.image is not None:
        with ScanReader(job.image, "image") as reader:
            if reader.grid.shape != grid.shape or (apart := reader.grid.distance_mm(grid)) > SAME_GRID_MM:
                found = (
                    f"shapes {grid.shape} and {reader.grid.shape}"
                    if reader.grid.shape != grid.shape
                    else f"{apart:.3g} mm apart"
                )
                raise GeometryError(f"{job.mask}: must lie on the grid of its scan {job.image}; they are {found}.")
            reader.lie_on(grid)
            image = reader.read()
            source["image"] = {"name": job.image.name, "sha256": reader.finish()}
    probability = probability_beside(job.mask, labels, grid)
    volume = Volume(label=label, labels=labels, affine_lps=grid.affine_lps, image=image, probability=probability)
    return Loaded(volume=volume, grid=grid, source=source, warnings=warnings, model=_model(report))


def labels_of(job: Job) -> Labels | None:
    """Return the labels of a file: as stated, else those of the report beside it, else by its name; None where nothing says."""
    report = report_beside(job.mask)
    return job.labels or (labels_from_json(report) if report else job.named)


def _from_store(job: Job) -> Loaded:
    case = open_store(job.mask)[job.case_id or ""]
    labels = job.labels or case.info.labels
    if case.label is None or labels is None:
        raise LabelError(f"{job.mask}: case {job.case_id} has no mask; measure one that has.")
    grid = grid_of_header(base64.b64decode(case.info.image.header_b64))
    label = case.label[:]
    check_values(label, labels, f"{job.mask}: {job.case_id}")
    source = {
        kind: None if file is None else {"name": file.name, "sha256": file.sha256}
        for kind, file in (("mask", case.info.mask), ("image", case.info.image))
    }
    volume = Volume(label=label, labels=labels, affine_lps=case.info.affine_lps, image=case.image[:])
    return Loaded(volume=volume, grid=grid, source=source, warnings=list(case.info.warnings), model=None)


def _model(report: dict[str, Any]) -> dict[str, Any] | None:
    """Return what the report of `infer` says of the model."""
    return {key: report.get(key) for key in ("model", "model_sha256", "tumor_confidence")} if report else None
