"""Output paths: the files that a run writes for each scan.

No output may replace a scan, a file of another scan, or the run's own files.
"""

from collections.abc import Sequence
from pathlib import Path

from slicemill.common.errors import ScanError
from slicemill.ct.formats.dicom_objects.options import ENDINGS, DicomOptions  # noqa: F401 (the doctest's)
from slicemill.ct.formats.names import is_scan_name, strip_suffix
from slicemill.ct.formats.open import scan_files
from slicemill.ct.labels import Labels
from slicemill.infer.candidates.records import ENDING as CANDIDATES
from slicemill.infer.candidates.records import PAGE_ENDING, is_candidate_table
from slicemill.infer.inputs.jobs import Job
from slicemill.infer.run.options import InferOptions
from slicemill.infer.run.summary import is_summary


class OutputPaths:
    """The scans of a run and the files that are written for them; scans may be added as they arrive.

    Parameters
    ----------
    out
        The output folder.
    extras
        Name endings of the files next to each mask (`extra_names`).
    earlier
        Masks of earlier runs: their scans may be gone, but their files are kept.
    """

    def __init__(self, out: Path, extras: Sequence[str] = (), earlier: Sequence[str] = ()) -> None:
        self._out = out
        self._extras = extras
        self._scans: set[Path] = set()
        self._written: dict[Path, Job] = {}
        jobs = [Job(name=name, path=out / name) for name in earlier] if extras else []
        self._earlier = {name: job for ending in (extras, ()) for job in jobs for name in output_names(job, ending)}
        """Owner of each file of earlier runs; a scan's mask takes precedence over a file next to another mask."""

    def add(self, job: Job) -> None:
        """Add a scan, or the same scan again; a scan with the same stem replaces an earlier one.

        Raises
        ------
        ScanError
            One of its files would replace a scan, a file of another scan or the run's own, or the scan is itself at the
            path of an output.
        """
        scans, names = resolve_inputs(job), output_names(job, self._extras)
        if tables := [name for name in names if is_summary(name) or is_candidate_table(name)]:
            raise ScanError(
                f"{tables[0]}, written next to its mask, would overwrite the run's summary; rename the scan.",
                where=job.path,
            )
        for name in names:
            owner = self._earlier.get(name, job)
            if owner.stem != job.stem and owner.path.exists() and (self._out / name).exists():
                raise ScanError(
                    f"{name}, written next to its mask, would overwrite a file of {owner.path} "
                    "from an earlier run; choose another --out.",
                    where=job.path,
                )
        written = [(self._out / name).resolve() for name in names]
        replaced = [path for path in written if path in scans or path in self._scans]
        replaced += [path for path in scans if path in self._written]
        if replaced:
            raise ScanError("an output would overwrite this scan; choose a separate --out folder.", where=min(replaced))
        for path in written:
            other = self._written.get(path, job)
            if other.stem != job.stem or written.count(path) > 1:
                raise ScanError(
                    f"{path.name}, written next to its mask, would overwrite a file of {other.path}; "
                    "segment them into two folders.",
                    where=job.path,
                )
        self._scans |= scans
        self._written.update(dict.fromkeys(written, job))


def check_output_paths(jobs: Sequence[Job], out: Path, extras: Sequence[str] = (), earlier: Sequence[str] = ()) -> None:
    """Check that no output replaces an input or another output; see `OutputPaths` for the parameters.

    Raises
    ------
    ScanError
        An output would replace an input or another output.
    """
    paths = OutputPaths(out, extras, earlier)
    for job in jobs:
        paths.add(job)


def resolve_inputs(job: Job) -> set[Path]:
    """Return the local files of a job's scan, and the NIfTI files with its stem unless it is one of them itself."""
    if job.case_id is not None or not isinstance(job.path, Path):
        return set()
    files = [path for path in scan_files(job.path) if isinstance(path, Path)]
    if is_scan_name(job.path.name) and not job.path.name.lower().endswith((".nii", ".nii.gz")):
        files += [job.path.with_name(strip_suffix(job.path.name) + suffix) for suffix in (".nii", ".nii.gz")]
    return {path.resolve() for path in files}


def output_names(job: Job, extras: Sequence[str]) -> list[str]:
    """Return the relative paths of all files that are written for a job.

    >>> output_names(Job(name="p1/ct.nii", path=Path("ct.nii")), ["liver"])
    ['p1/ct.nii', 'p1/ct.json', 'p1/ct.png', 'p1/ct_liver.nii']
    """
    return [job.name, f"{job.stem}.json", f"{job.stem}.png", *(extra_path(job, extra) for extra in extras)]


def extra_path(job: Job, extra: str) -> str:
    """Return the relative path of a file next to a job's mask: a volume whose name ends in `extra`, or a DICOM result.

    >>> extra_path(Job(name="p1/ct.nii.gz", path=Path("ct")), ".seg.dcm")
    'p1/ct.seg.dcm'
    """
    if extra in (*ENDINGS, CANDIDATES, PAGE_ENDING):
        return job.stem + extra
    suffix = job.name[len(job.stem) :]
    return f"{job.stem}_{extra}{suffix}"


def extra_names(labels: Labels, options: InferOptions) -> list[str]:
    """Return the name endings of all files next to a mask: volumes, and the endings of DICOM results and candidates.

    >>> extra_names(Labels({"liver": 1}), InferOptions(separate=True, dicom=DicomOptions(seg=True)))
    ['liver', '.seg.dcm']
    """
    candidates = [CANDIDATES] if options.has_candidates else []
    pages = [PAGE_ENDING] if options.has_candidate_pages else []
    return [*volume_names(labels, options), *options.dicom.endings(), *candidates, *pages]


def volume_names(labels: Labels, options: InferOptions) -> list[str]:
    """Return the name endings of the volumes next to a mask, with characters that file names may have.

    >>> volume_names(Labels({"liver": 1, "a/b": 2}), InferOptions(separate=True))
    ['liver', 'a_b_2']
    """
    names = list(labels.file_names().values())
    maps = [f"probability_{name}" for name in ["background", *names]]
    return [*(names if options.separate else []), *(maps if options.predict.probability else [])]
