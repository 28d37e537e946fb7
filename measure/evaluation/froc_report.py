"""The files of `slicemill froc`: froc.json, froc.png, froc.html, and malignancy.csv if patients have one."""

from functools import partial
from pathlib import Path

from slicemill.common.files import parse_location, write_bytes, write_json
from slicemill.common.panels import draw_panels
from slicemill.measure.evaluation.figures import draw_froc
from slicemill.measure.evaluation.findings import FindingFiles, Findings
from slicemill.measure.evaluation.froc_page import ShownKind, describe_threshold, draw_marks, write_froc_page
from slicemill.measure.evaluation.luna16 import Luna16Result, read_candidates
from slicemill.measure.evaluation.malignancy import write_patients
from slicemill.measure.evaluation.marks import divide_marks
from slicemill.store.reader import open_store

NO_SCANS = "No pictures: a table of findings has no scans. Pass a slice store that was ingested with --points."
NONE_WANTED = "No pictures (--pictures 0)."


def write_froc_report(
    out: Path, results: Path, files: FindingFiles, findings: Findings, result: Luna16Result, most: int
) -> None:
    """Write the files, with at most `most` pictures of each kind of marks; a table of findings has no scans for them.

    Raises
    ------
    InputError
        A scan cannot be read.
    """
    curve = draw_panels([partial(draw_froc, response=result.response)])
    write_json(out / "froc.json", result.as_json())
    write_bytes(out / "froc.png", curve)
    write_patients(out / "malignancy.csv", result.malignancy)
    kinds: tuple[ShownKind, ...] = ()
    note = NONE_WANTED
    if not files.is_store:
        note = NO_SCANS
    elif most:
        marks = divide_marks(read_candidates(results, findings, result.ranked_by), findings)
        kinds = draw_marks(open_store(parse_location(files.annotations)), marks, most)
        note = describe_threshold(marks, len(findings.scans))
    write_froc_page(out / "froc.html", result, curve, kinds, note)
