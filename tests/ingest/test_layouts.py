"""Layouts of public collections, and what the file names of a collection leave open."""

import contextlib
import re
import time
from pathlib import Path

import pytest

from slicemill.common.errors import PairingError
from slicemill.ingest.discover import MaskOptions, discover
from slicemill.ingest.patterns import from_patterns
from slicemill.store.layout import check_case_id
from tests.ingest.test_discover import pairs, touch

DOCUMENTED = Path(__file__).parents[2] / "docs" / "inputs.md"
LAYOUTS = {
    "KiTS": [("case_00000", "case_00000/imaging", "case_00000/segmentation"),
             ("case_00001", "case_00001/imaging", "case_00001/segmentation")],
    "SegTHOR": [("Patient_01", "Patient_01/Patient_01", "Patient_01/GT"),
                ("Patient_02", "Patient_02/Patient_02", "Patient_02/GT")],
    "SegTHOR by name": [("SegTHOR_01", "images/SegTHOR_01", "masks/SegTHOR_01"),
                        ("SegTHOR_02", "images/SegTHOR_02", "masks/SegTHOR_02")],
    "CT-ORG": [("volume-0", "volume-0", "labels-0"), ("volume-10", "volume-10", "labels-10")],
    "BIDS": [("sub-01_ct", "rawdata/sub-01/ct/sub-01_ct", "derivatives/sub-01/ct/sub-01_seg-vert_msk"),
             ("sub-02_ses-1_dir-ax_ct", "rawdata/sub-02/ct/sub-02_ses-1_dir-ax_ct",
              "derivatives/sub-02/ct/sub-02_ses-1_dir-ax_desc-manual_mask")],
    "pancreas": [("PANCREAS_0001", "ct/PANCREAS_0001", "labels/label0001"),
                 ("PANCREAS_0082", "ct/PANCREAS_0082", "labels/label0082")],
    "BTCV": [("img0001", "img/img0001", "label/label0001"), ("img0002", "img/img0002", "label/label0002")],
    "ground truth": [("001", "ct/001", "ground_truth/001_liver"), ("002", "ct/002", "ground_truth/002_liver")],
    "folder with two words": [("001", "ct/001", "liver_masks/001"), ("002", "ct/002", "liver_masks/002")],
    "GTV": [("001", "CT/001", "GTV/001"), ("002", "CT/002", "GTV/002")],
    "second labels": [("img0035", "imagesTr/img0035", "labelsTr2/img0035")],
    "AbdomenAtlas": [("BDMAP_01", "BDMAP_01/ct", "BDMAP_01/combined_labels")],
    "numbers from 0000": [(f"case_{n:04d}", f"imagesTr/case_{n:04d}", f"labelsTr/case_{n:04d}") for n in range(10)],
    "numbers from 0000 and a word": [(f"c_{n:04d}", f"c_{n:04d}", f"c_{n:04d}_seg") for n in range(10)],
    "train and test of one name": [("imagesTr_a", "imagesTr/a", "labelsTr/a"), ("imagesTs_a", "imagesTs/a", None)],
    "word for masks in the name of a set": [("liver_seg_1", "imagesTr/liver_seg_1_0000", "labelsTr/liver_seg_1")],
    "tumor beside the scan": [("p1", "p1", "p1_tumor"), ("p2", "p2", "p2_tumor")],
    "scan and organ": [("P1", "P1/ct", "P1/liver"), ("P2", "P2/ct", "P2/liver")],
    "FLARE 23": [("FLARE23_0001", "imagesTr2200/FLARE23_0001_0000", "labelsTr2200/FLARE23_0001")],
    "AMOS": [("amos_0001", "imagesTr/amos_0001", "labelsTr/amos_0001"),
             ("amos_0008", "imagesVa/amos_0008", "labelsVa/amos_0008")],
    "WORD": [("word_0002", "imagesTr/word_0002", "labelsTr/word_0002"),
             ("word_0001", "imagesVal/word_0001", "labelsVal/word_0001")],
    "VerSe 19": [("verse004", "verse004", "verse004_seg"), ("verse005", "verse005", "verse005_seg")],
    "Synapse": [("DET0000101_avg", "averaged-training-images/DET0000101_avg",
                 "averaged-training-labels/DET0000101_avg_seg")],
    "KiTS 21": [(f"case_0000{n}", f"case_0000{n}/imaging", f"case_0000{n}/aggregated_MAJ_seg") for n in (0, 1)],
    "HECKTOR": [("CHUM-001__CT", "imagesTr/CHUM-001__CT", "labelsTr/CHUM-001")],
    "AutoPET": [("psma_1_CTres", "psma_1/CTres", "psma_1/SEG"), ("psma_2_CTres", "psma_2/CTres", "psma_2/SEG")],
    "COVID-19-CT": [("coronacases_org_001", "ct_scans/coronacases_org_001", "lung_and_infection_mask/coronacases_001"),
                    ("coronacases_org_002", "ct_scans/coronacases_org_002", "lung_and_infection_mask/coronacases_002")],
    "MosMed": [("study_0255", "studies/CT-1/study_0255", "masks/study_0255_mask")],
    "StructSeg": [("1_data", "1/data", "1/label"), ("2_data", "2/data", "2/label")],
    "CHAOS": [("1", "ct/1", "Ground/1")],
    "folder of a patient in a folder": [("P1", "P1/images/CT", "P1/labels/mask")],
}  # fmt: skip


@pytest.mark.parametrize("name", LAYOUTS)
def test_the_layouts_of_public_collections_are_paired(name, tmp_path):
    cases = [(case, *(file and f"{file}.nii.gz" for file in files)) for case, *files in LAYOUTS[name]]
    collection = discover(touch(tmp_path, *(file for _, *files in cases for file in files if file)))
    assert pairs(collection) == {case: (image, mask) for case, image, mask in cases}
    assert collection.left_out == ()


def documented_layouts():
    """Return image, mask and case id of each row of the table of layouts."""
    section = DOCUMENTED.read_text().split("## Layouts")[1].split("\n## ")[0]
    rows = [[re.findall(r"`([^`]+)`", cell) for cell in line.split("|")] for line in section.splitlines()]
    return [(row[2][0], mask, row[4][0]) for row in rows if len(row) > 4 and row[4] for mask in row[3]]


@pytest.mark.parametrize(("image", "mask", "case_id"), documented_layouts())
def test_the_documented_layouts_are_paired(image, mask, case_id, tmp_path):
    assert pairs(discover(touch(tmp_path, image, mask))) == {case_id: (image, mask)}


def test_the_labels_of_lits_are_not_those_of_ct_org(tmp_path):
    assert discover(touch(tmp_path, "volume-0.nii", "labels-0.nii")).labels is None


def test_a_second_set_of_labels_is_left_out_unless_it_is_chosen(tmp_path):
    touch(tmp_path, "imagesTr/a.nii", "labelsTr/a.nii", "labelsTr2/a.nii")
    collection = discover(tmp_path)
    assert pairs(collection) == {"a": ("imagesTr/a.nii", "labelsTr/a.nii")}
    assert [(path.parent.name, reason) for path, reason in collection.left_out] == [
        ("labelsTr2", "another mask of imagesTr/a.nii, which is paired with a.nii")
    ]
    for pattern in ("labelsTr2/*", f"{tmp_path}/labelsTr2/*.nii", "**/labelsTr2/a.nii"):
        chosen = discover(tmp_path, MaskOptions(pattern=pattern))
        assert pairs(chosen) == {"a": ("imagesTr/a.nii", "labelsTr2/a.nii")}
    with pytest.raises(PairingError, match=r"no file fits --mask x\*"):
        discover(tmp_path, MaskOptions(pattern="x*"))


def test_a_pattern_makes_masks_of_files_whose_names_do_not_tell(tmp_path):
    touch(tmp_path, "P1/a.nii", "P1/a_final.nii", "P2/b.nii", "P2/b_final.nii")
    collection = discover(tmp_path, MaskOptions(pattern="*_final.nii"))
    assert pairs(collection) == {"a": ("P1/a.nii", "P1/a_final.nii"), "b": ("P2/b.nii", "P2/b_final.nii")}


@pytest.mark.parametrize(
    "files",
    [
        ["a.nii", "b.nii", "x_seg.nii", "y_seg.nii"],
        ["P1/arterial.nii", "P1/venous_seg.nii"],
        ["P1/CT.nii", "P2/mask.nii"],
        ["P1/arterial.nii", "P2/arterial_seg.nii"],
        ["siteA_001.nii", "siteA_002.nii", "siteB_001_seg.nii", "siteB_002_seg.nii"],
        ["c/imaging.nii", "c/aggregated_MAJ_seg.nii", "c/aggregated_OR_seg.nii"],
        ["s1/ct.nii", "s1/segmentations/liver.nii", "s1/segmentations/spleen.nii"],
        ["imagesTs/x.nii", "labelsTr/x.nii"],
        ["a.nii", "a_seg.nii", *(f"{i}{c}{suffix}.nii" for i in range(3) for c, suffix in (("x", ""), ("y", "_seg")))],
    ],
    ids=[
        "other names",
        "other phase",
        "mask of another patient",
        "phase of another patient",
        "other site",
        "two masks",
        "structures",
        "other subset",
        "few",
    ],
)
def test_masks_that_do_not_pair_are_an_error_with_names_and_ways_out(files, tmp_path):
    touch(tmp_path, *files)
    with pytest.raises(
        PairingError, match=r"but only \d pairs? by name. Masks: .* Images: .*--pairs.*--mask.*--no-masks"
    ):
        discover(tmp_path)
    collection = discover(tmp_path, MaskOptions(none=True))
    assert all(case.mask is None for case in collection.cases)
    assert {reason for _, reason in collection.left_out} == {"named like a mask; --no-masks stores scans only"}


def test_files_of_structures_without_labels_are_an_error_that_tells_how_to_name_them(tmp_path):
    touch(tmp_path, "s1/ct.nii", "s1/segmentations/liver.nii", "s1/segmentations/spleen.nii")
    with pytest.raises(PairingError, match="If each mask is a file of one structure.*--labels liver=1,spleen=2"):
        discover(tmp_path)
    touch(tmp_path / "other", "a.nii", "b.nii", "x_seg.nii", "y_seg.nii")
    with pytest.raises(PairingError, match="without masks.$"):
        discover(tmp_path / "other")


def test_a_folder_beside_the_images_with_the_same_names_is_no_second_set_of_scans(tmp_path):
    touch(tmp_path, "ct/001.nii", "ct/002.nii", "liver/001.nii", "liver/002.nii")
    with pytest.raises(PairingError, match=r"liver/001.nii has the name of the scan ct/001.nii.*--mask 'liver/\*'"):
        discover(tmp_path)
    assert pairs(discover(tmp_path, MaskOptions(pattern="liver/*")))["001"] == ("ct/001.nii", "liver/001.nii")
    with pytest.raises(PairingError, match=r"Instead of the folder, name the scans with --image '.*/ct/\*'") as caught:
        discover(tmp_path, MaskOptions(none=True))  # --no-masks, --points: --mask would be refused
    assert "--mask" not in str(caught.value)


def test_a_mask_beside_images_in_a_folder_of_images_is_no_scan(tmp_path):
    touch(tmp_path, "ct/a.nii", "ct/a_seg.nii", "ct/b.nii", "ct/b_seg.nii", "P2/CT/c.nii", "P2/CT/c_mask.nii")
    assert {mask for _, mask in pairs(discover(tmp_path)).values()} == {
        "ct/a_seg.nii", "ct/b_seg.nii", "P2/CT/c_mask.nii"
    }  # fmt: skip
    with pytest.raises(PairingError, match="no CT image among 1 file "):
        discover(touch(tmp_path / "other", "images/p1_seg.nii"))


def test_the_exact_name_goes_before_the_folded_one(tmp_path):
    touch(tmp_path, "images/P_1.nii", "images/p-1.nii", "masks/P_1.nii", "masks/p-1.nii")
    assert pairs(discover(tmp_path)) == {
        "P_1": ("images/P_1.nii", "masks/P_1.nii"),
        "p-1": ("images/p-1.nii", "masks/p-1.nii"),
    }


@pytest.mark.parametrize(
    ("files", "document", "cases", "extra"),
    [
        (["imagesTr/x_0000", "imagesTr/x_0001", "labelsTr/x"], None, ["x"], ["x_0001"]),
        (["imagesTr/x_0000", "imagesTr/x_0001"], '{"channel_names": {"0": "CT", "1": "PET"}}', ["x"], ["x_0001"]),
        (["imagesTr/x_0000", "imagesTr/x_0001"], '{"channel_names": {"0": "PET", "1": "CT"}}', ["x"], ["x_0000"]),
        (["imagesTr/x_0000", "imagesTr/x_0001"], '{"channel_names": {"0": "CT"}}', ["x_0000", "x_0001"], []),
        (["imagesTr/x_0000", "imagesTr/x_0002"], '{"modality": {"0": "CT", "1": "PT"}}', ["x_0000", "x_0002"], []),
        (["imagesTr/x_0000", "imagesTr/y_0000", "labelsTr/y"], None, ["x", "y"], []),
        (["imagesTs/x_0000", "imagesTs/x_0001", "imagesTr/y_0000", "labelsTr/y"], None, ["y", "x"], ["x_0001"]),
        (["x_0000"], None, ["x"], []),
    ],
)  # fmt: skip
def test_numbers_are_channels_only_if_masks_or_dataset_json_say_so(files, document, cases, extra, tmp_path):
    touch(tmp_path, *(f"{file}.nii" for file in files))
    if document:
        (tmp_path / "dataset.json").write_text(document)
    collection = discover(tmp_path)
    assert [case.case_id for case in collection.cases] == cases
    assert [path.stem for path, _ in collection.left_out] == extra
    assert not collection.notes


def test_numbered_scans_that_nothing_tells_from_channels_are_scans_with_a_note(tmp_path):
    collection = discover(touch(tmp_path, *(f"case_{n:04d}.nii" for n in range(10))))
    assert [case.case_id for case in collection.cases] == [f"case_{n:04d}" for n in range(10)]
    assert "10 files like case_0000.nii, case_0001.nii are taken for scans" in collection.notes[0]


def test_patterns_with_another_number_of_stars_pair_by_the_first(tmp_path):
    touch(tmp_path, "Patient_01/Patient_01.nii", "Patient_01/GT.nii", "Patient_02/Patient_02.nii", "Patient_02/GT.nii")
    found = pairs(from_patterns(f"{tmp_path}/*/Patient_*.nii", f"{tmp_path}/*/GT.nii"))
    assert found["Patient_01"] == ("Patient_01/Patient_01.nii", "Patient_01/GT.nii")
    with pytest.raises(PairingError, match="2 files match with 'Patient_01'"):
        from_patterns(f"{tmp_path}/*/*.nii", f"{tmp_path}/*/GT.nii")


def test_patterns_whose_texts_do_not_pair_are_an_error_that_shows_them(tmp_path):
    touch(tmp_path, "ct/p1_ct.nii", "ct/p2_ct.nii", "seg/1.nii", "seg/2.nii")
    with pytest.raises(
        PairingError, match=r"2 images and 2 masks, but only 0 pairs .* Images: 'p1', 'p2'\. Masks: '1', '2'"
    ):
        from_patterns(f"{tmp_path}/ct/*_ct.nii", f"{tmp_path}/seg/*.nii")


def test_texts_of_stars_that_are_one_id_together_get_their_path(tmp_path):
    touch(tmp_path, "a/b_c/x.nii", "a_b/c/x.nii")
    with pytest.raises(PairingError, match="would both become case"):
        from_patterns(f"{tmp_path}/*/*/x.nii", None)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "pairs_well"), [("unpaired", False), ("one key", False), ("numbers", True), ("one folder each", True)]
)
def test_ten_thousand_files_are_found_in_ten_seconds_of_cpu(kind, pairs_well, tmp_path):
    names = {
        "unpaired": lambda n: (f"im/a{n}x.nii", f"seg/b{n}y_{n}.nii"),
        "one key": lambda n: (f"p{n}/venous.nii", f"q{n}/venous_seg.nii"),
        "numbers": lambda n: (f"c_{2 * n:04d}.nii", f"c_{2 * n + 1:04d}.nii"),
        "one folder each": lambda n: (f"s{n}/ct.nii", f"s{n}/segmentations/liver.nii"),
    }[kind]
    touch(tmp_path, *(name for n in range(5000) for name in names(n)))
    start = time.process_time()
    found = contextlib.nullcontext() if pairs_well else pytest.raises(PairingError)
    with found as refused:
        discover(tmp_path, MaskOptions(files={"liver": 1}))
    assert time.process_time() - start < 10
    assert refused is None or len(str(refused.value)) < 2000


def test_names_that_cannot_be_ids_are_changed_with_a_note(tmp_path):
    names = ["ok", "new\nline", "a\\b", "__hidden", "zarr.json", "\u00fc" * 90, "x" * 150, "tab\tx", "-x"]
    collection = discover(touch(tmp_path, *(f"{name}.nii.gz" for name in names)))
    ids = {case.image.name: case.case_id for case in collection.cases}
    assert len(set(ids.values())) == len(names)
    for case_id in ids.values():
        check_case_id(case_id)
    assert [ids[f"{name}.nii.gz"] for name in ("ok", "-x", "new\nline", "a\\b", "__hidden")] == [
        "ok", "-x", "new_line", "a_b", "hidden"]  # fmt: skip
    assert "cannot be a case id and was changed" in collection.notes[0]


def test_changed_names_that_are_equal_get_the_ids_of_their_paths(tmp_path):
    collection = discover(touch(tmp_path, "p1/a\nb.nii", "p2/a_b.nii"))
    assert sorted(case.case_id for case in collection.cases) == ["p1_a_b", "p2_a_b"]
