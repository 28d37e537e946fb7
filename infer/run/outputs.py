"""Which files a run writes for each scan, and that none takes the place of a scan, of another scan's file, or of the run's own."""

from collections.abc import Sequence
from pathlib import Path

from slicemill.common.errors import ScanError
from slicemill.ct.formats.nifti.names import is_header_name, stem_of
from slicemill.ct.labels import Labels
from slicemill.infer.inputs.jobs import Job
from slicemill.infer.run.ledger import is_summary
from slicemill.infer.run.options import InferOptions


class OutputPaths:
    """The scans of a run and the files written for them; scans may be added as they come.

    `earlier` names the masks of runs before: their scans may have gone, what was made of them stays.
    """

    def __init__(self, out: Path, extras: Sequence[str] = (), earlier: Sequence[str] = ()) -> None:
        self._out = out
        self._extras = extras
        self._scans: set[Path] = set()
        self._written: dict[Path, Job] = {}
        before = [Job(name=name, path=out / name) for name in earlier] if extras else []
        self._earlier = {name: job for given in (extras, ()) for job in before for name in names_of(job, given)}
        """Whose each file of runs before is; a scan's own mask counts for more than a file beside another's."""

    def add(self, job: Job) -> None:
        """Add a scan, or the same once more; a scan of the same stem takes the place of an earlier one.

        Raises
        ------
        ScanError
            A file of it would take the place of a scan, of another scan's file or of the run's own, or it lies where one is written.
        """
        scans, names = places_of(job), names_of(job, self._extras)
        if own := [name for name in names if is_summary(name)]:
            raise ScanError(
                f"{job.path}: {own[0]}, written beside its mask, would replace the summary of the run; rename the scan."
            )
        for name in names:
            made = self._earlier.get(name, job)
            if made.stem != job.stem and made.path.exists() and (self._out / name).exists():
                raise ScanError(
                    f"{job.path}: {name}, written beside its mask, would replace a file of {made.path}, which an earlier run made; "
                    "choose another --out."
                )
        written = [(self._out / name).resolve() for name in names]
        replaced = [path for path in written if path in scans or path in self._scans]
        replaced += [path for path in scans if path in self._written]
        if replaced:
            raise ScanError(
                f"{min(replaced)}: the mask would replace a scan, or the report or picture would; choose an --out folder of its own."
            )
        for path in written:
            other = self._written.get(path, job)
            if other.stem != job.stem or written.count(path) > 1:
                raise ScanError(
                    f"{job.path}: {path.name}, written beside its mask, would replace a file of {other.path}; use two folders."
                )
        self._scans |= scans
        self._written.update(dict.fromkeys(written, job))


def check_output_paths(jobs: Sequence[Job], out: Path, extras: Sequence[str] = (), earlier: Sequence[str] = ()) -> None:
    """Refuse to write over a scan, or two things into one file; `extras` are names of files beside each mask, `earlier` older masks.

    Raises
    ------
    ScanError
        An output would take the place of an input, or of another output.
    """
    places = OutputPaths(out, extras, earlier)
    for job in jobs:
        places.add(job)


def places_of(job: Job) -> set[Path]:
    """Return the local files that are a job's scan, or that would be taken for it: of a pair, single files of its stem too."""
    if job.case_id is not None or not isinstance(job.path, Path):
        return set()
    found = [job.path]
    if is_header_name(job.path.name):
        found += [job.path.with_name(stem_of(job.path.name) + suffix) for suffix in (".nii", ".nii.gz")]
    return {path.resolve() for path in found}


def names_of(job: Job, extras: Sequence[str]) -> list[str]:
    """Return the relative paths of all that is written for a job.

    >>> names_of(Job(name="p1/ct.nii", path=Path("ct.nii")), ["liver"])
    ['p1/ct.nii', 'p1/ct.json', 'p1/ct.png', 'p1/ct_liver.nii']
    """
    return [job.name, f"{job.stem}.json", f"{job.stem}.png", *(beside(job, extra) for extra in extras)]


def beside(job: Job, extra: str) -> str:
    """Return the name of a file beside a job's mask."""
    return f"{job.stem}_{extra}{suffix_of(job.name)}"


def extra_names(labels: Labels, options: InferOptions) -> list[str]:
    """Return what the names of the files beside a mask end in; a label's name may hold anything, a file's may not.

    >>> extra_names(Labels({"liver": 1, "a/b": 2}), InferOptions(separate=True))
    ['liver', 'a_b_2']
    """
    names = list(labels.file_names().values())
    maps = [f"probability_{name}" for name in ["background", *names]]
    return [*(names if options.separate else []), *(maps if options.manner.probability else [])]


def suffix_of(name: str) -> str:
    """Return the NIfTI suffix of a name.

    >>> suffix_of("a/volume-1.nii.gz")
    '.nii.gz'
    """
    return name[len(stem_of(name)) :]
