"""Masks with a file for each structure become one mask of the labels."""

import threading

import numpy as np
import pytest

from slicemill.common.errors import GeometryError, LabelError, PairingError, UsageError
from slicemill.ct.phantom import write_nifti
from slicemill.ingest.convert import convert_case
from slicemill.ingest.discover import MaskOptions, discover
from slicemill.ingest.pair_table import choose_labels
from slicemill.ingest.params import Params
from slicemill.ingest.pipeline import IngestOptions, ingest
from slicemill.store.reader import open_store
from slicemill.store.verify import verify
from slicemill.store.writer import prepare_store
from tests.ingest.test_discover import pairs, touch

pytestmark = pytest.mark.usefixtures("one_worker")

SPACING = (4.0, 1.0, 1.0)
SHAPE = (6, 10, 12)


def block(z, y, x, value=1):
    mask = np.zeros(SHAPE, np.uint8)
    mask[z, y, x] = value
    return mask


LIVER = block(slice(1, 5), slice(2, 8), slice(2, 10))
TUMOR = block(slice(2, 4), slice(3, 5), slice(3, 6))


def write_case(root, case, structures, axcodes="LPS"):
    folder = root / case / "segmentations"
    folder.mkdir(parents=True)
    ct = np.random.default_rng(1).integers(-1000, 1500, SHAPE, dtype=np.int16)
    write_nifti(root / case / "ct.nii.gz", ct, SPACING, axcodes)
    for name, voxels in structures.items():
        write_nifti(folder / f"{name}.nii.gz", voxels, SPACING, axcodes)
    return root


def convert(root, text, **params):
    chosen = choose_labels(str(text), None, None)
    (case,) = discover(root, MaskOptions(files=chosen.files)).cases
    store = prepare_store(root / "store")
    convert_case(case, Params(labels=chosen.labels, **params), store, threads=2)
    return open_store(store)[case.case_id]


@pytest.mark.parametrize("axcodes", ["LPS", "RAS", "PIR"])
def test_the_files_that_the_labels_name_become_one_mask(axcodes, tmp_path):
    spleen = block(0, 1, 1, 255)
    root = write_case(tmp_path / "c", "s0001", {"liver": LIVER & ~TUMOR, "spleen": spleen, "tumor": TUMOR}, axcodes)
    case = convert(root, "tumor=2,spleen=9,liver=1")
    assert np.array_equal(case.label[:], np.where(TUMOR, 2, LIVER) + 9 * (spleen > 0))
    assert case.info.mask.name == "s0001/segmentations"


def test_a_case_that_fails_leaves_no_thread(tmp_path):
    """A thread left to the garbage collector had been waited for while another thread started: for ever."""
    root = write_case(tmp_path / "c", "s0001", {"liver": LIVER, "tumor": TUMOR})
    before = set(threading.enumerate())
    with pytest.raises(LabelError) as caught:
        convert(root, "liver=1,tumor=2")
    assert set(threading.enumerate()) <= before, caught.traceback  # which holds all that the case was read with


def test_structures_that_overlap_are_refused_or_ordered(tmp_path):
    root = write_case(tmp_path / "c", "s0001", {"liver": LIVER, "tumor": TUMOR})
    with pytest.raises(LabelError, match=r"tumor\.nii\.gz: structures must not overlap; .* --overlap highest"):
        convert(root, "liver=1,tumor=2")
    assert np.array_equal(convert(root, "liver=1,tumor=2", overlap="highest").label[:], np.where(TUMOR, 2, LIVER))


def test_a_table_names_files_and_may_join_them(tmp_path):
    left, right = block(1, slice(0, 3), 1), block(2, slice(0, 3), 1)
    root = write_case(tmp_path / "c", "s0001", {"kidney_left": left, "kidney_right": right, "liver": TUMOR})
    table = tmp_path / "labels.csv"
    table.write_text("name;value;file\nkidney;3;kidney_left\nkidney;3;kidney_right\nliver;1;\n")
    case = convert(root, table)
    assert np.array_equal(case.label[:], 3 * (left + right) + TUMOR)
    assert dict(case.info.labels.values) == {"liver": 1, "kidney": 3}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("name,number\nliver,1\n", "has no column value"),
        ("name,value,color\nliver,1,red\n", "the column 'color' is unknown"),
        ("name,value\nliver,x\n", "line 2: must have a name and a whole number"),
        ("name,value\nliver,1\nliver,2\n", "line 3: liver has the values 1 and 2"),
        ("name,value,file\na,1,f\nb,2,f\n", "line 3: f occurs in two rows"),
        ("name,value\nliver,300\n", "labels.csv: label liver=300"),
        ("name,value\nbackground,0\n", "names no label"),
    ],
)
def test_a_table_of_labels_that_does_not_fit_is_refused(text, message, tmp_path):
    (tmp_path / "labels.csv").write_text(text)
    with pytest.raises(LabelError, match=message):
        choose_labels(str(tmp_path / "labels.csv"), None, None)


def test_labels_that_are_no_table_are_pairs():
    assert dict(choose_labels("a.csv=1", None, None).labels.values) == {"a.csv": 1}
    with pytest.raises(UsageError, match="expected NAME=VALUE"):
        choose_labels("liver", None, None)


def test_a_scan_without_the_file_of_a_label_is_left_out(tmp_path):
    touch(tmp_path, "s1/ct.nii", "s1/segmentations/liver.nii", "s1/segmentations/tumor.nii", "s1/segmentations/rib.nii")
    touch(tmp_path, "s2/ct.nii", "s2/segmentations/liver.nii")
    collection = discover(tmp_path, MaskOptions(files={"liver": 1, "tumor": 2}))
    assert pairs(collection) == {"s1": ("s1/ct.nii", "s1/segmentations")}
    assert [(path.parent.name, reason) for path, reason in collection.left_out] == [("s2", "has no file for tumor")]
    assert collection.notes == ("2 files of structures without a label: not read",)
    with pytest.raises(PairingError, match="no case is left.*has no file for tumor"):
        discover(tmp_path / "s2", MaskOptions(files={"liver": 1, "tumor": 2}))


@pytest.mark.parametrize(
    ("files", "names"),
    [
        (["p1.nii", "p1_liver.nii", "p1_tumor.nii", "p2.nii", "p2_liver.nii", "p2_tumor.nii"], ["p1", "p2"]),
        (["P1/ct.nii", "P1/liver.nii", "P1/tumor.nii"], ["P1"]),
        (["P1/P1.nii", "P1/masks/P1_liver.nii", "P1/masks/P1_tumor.nii"], ["P1"]),
        (["B/ct.nii", "B/combined_labels.nii", "B/segmentations/liver.nii", "B/segmentations/tumor.nii"], ["B"]),
    ],
    ids=["beside the scans", "beside a scan", "with the name of the scan", "with a mask of all labels"],
)
def test_structures_are_found_in_all_usual_places(files, names, tmp_path):
    collection = discover(touch(tmp_path, *files), MaskOptions(files={"liver": 1, "tumor": 2}))
    assert [case.case_id for case in collection.cases] == names
    for case in collection.cases:
        assert [(one.path.stem.split("_")[-1], one.value) for one in case.structures] == [("liver", 1), ("tumor", 2)]


def test_a_file_with_two_values_is_no_structure(tmp_path):
    root = write_case(tmp_path / "c", "s0001", {"liver": LIVER + TUMOR, "spleen": block(0, 0, 0)})
    with pytest.raises(LabelError, match=r"liver\.nii\.gz: .* must have one value besides 0; it has 1 and 2"):
        convert(root, "liver=1,spleen=3")


def test_structures_on_two_grids_are_refused(tmp_path):
    root = write_case(tmp_path / "c", "s0001", {"liver": LIVER, "tumor": TUMOR})
    write_nifti(root / "s0001/segmentations/tumor.nii.gz", TUMOR[:-1], SPACING)
    with pytest.raises(GeometryError, match=r"tumor\.nii\.gz: all structures of a scan must have one grid"):
        convert(root, "liver=1,tumor=2")


@pytest.mark.slow
def test_a_changed_file_of_a_structure_is_converted_again(tmp_path):
    root = write_case(tmp_path / "c", "s0001", {"liver": LIVER & ~TUMOR, "tumor": TUMOR})
    chosen = choose_labels("liver=1,tumor=2", None, None)

    def run(**options):
        collection = discover(root, MaskOptions(files=chosen.files))
        params = Params(labels=chosen.labels)
        (outcome,) = ingest(collection, tmp_path / "store", params, IngestOptions(workers=1, **options)).outcomes
        return outcome.status

    assert [run(), run(), run(rehash=True)] == ["done", "unchanged", "unchanged"]
    uncompared = []
    opened = open_store(tmp_path / "store")
    assert verify(opened, root, workers=1, advance=lambda *_: None, uncompared=uncompared) == []
    assert uncompared == ["s0001"]
    (root / "s0001" / "segmentations").rename(tmp_path / "elsewhere")
    (problem,) = verify(opened, root, workers=1, advance=lambda *_: None)
    assert problem.startswith("s0001: s0001/segmentations: is not in the collection")
    (tmp_path / "elsewhere").rename(root / "s0001" / "segmentations")
    write_nifti(root / "s0001/segmentations/tumor.nii.gz", block(2, 3, 3), SPACING)
    assert run() == "done"


def test_the_option_overlap_changes_the_hash_only_if_it_is_used():
    plain = Params(labels=None)
    assert "overlap" not in plain.as_json()
    assert Params(labels=None, overlap="highest").sha256() != plain.sha256()
