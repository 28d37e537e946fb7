import pytest

from slicemill.common.errors import LabelError, PairingError, StoreError, UsageError
from slicemill.ct.labels import LITS_LABELS
from slicemill.ingest.discover import MaskOptions, discover, set_patients
from slicemill.ingest.pair_table import from_csv
from slicemill.ingest.patterns import from_patterns


def touch(folder, *names):
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    return folder


def pairs(collection):
    return {
        case.case_id: (case.name(case.image), case.name(case.mask) if case.mask else None) for case in collection.cases
    }


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        (["volume-2.nii", "segmentation-2.nii"], {"volume-2": ("volume-2.nii", "segmentation-2.nii")}),
        (["b1/volume-2.nii", "b2/segmentation-2.nii"], {"volume-2": ("b1/volume-2.nii", "b2/segmentation-2.nii")}),
        (
            ["imagesTr/liver_1_0000.nii.gz", "labelsTr/liver_1.nii.gz", "imagesTs/liver_9_0000.nii.gz"],
            {
                "liver_1": ("imagesTr/liver_1_0000.nii.gz", "labelsTr/liver_1.nii.gz"),
                "liver_9": ("imagesTs/liver_9_0000.nii.gz", None),
            },
        ),
        (
            ["imagesTr/spleen_8.nii.gz", "labelsTr/spleen_8.nii.gz"],
            {"spleen_8": ("imagesTr/spleen_8.nii.gz", "labelsTr/spleen_8.nii.gz")},
        ),
        (
            ["P1/CT_image.nii.gz", "P1/CT_mask.nii.gz", "P2/CT_image.nii.gz"],
            {"P1": ("P1/CT_image.nii.gz", "P1/CT_mask.nii.gz"), "P2": ("P2/CT_image.nii.gz", None)},
        ),
        (["img/a b.é.nii", "msk/a b.é_mask.nii"], {"a b.é": ("img/a b.é.nii", "msk/a b.é_mask.nii")}),
        (["images/x.nii", "masks/x.nii"], {"x": ("images/x.nii", "masks/x.nii")}),
    ],
    ids=[
        "LiTS",
        "LiTS in two folders",
        "nnU-Net",
        "Decathlon",
        "folder per patient",
        "spaces and accents",
        "parallel folders",
    ],
)
def test_the_usual_layouts_are_paired(files, expected, tmp_path):
    assert pairs(discover(touch(tmp_path, *files))) == expected


def test_the_folder_of_one_patient_is_named_after_itself(tmp_path):
    assert pairs(discover(touch(tmp_path / "P1", "CT_image.nii.gz", "CT_mask.nii.gz"))) == {
        "P1": ("CT_image.nii.gz", "CT_mask.nii.gz")
    }


def test_what_does_not_pair_is_named_with_the_reason(tmp_path):
    fitting = [f"{stem}{end}.nii" for stem in "pqr" for end in ("", "_seg")]
    collection = discover(touch(tmp_path, "a.nii", "b_seg.nii", "c.nii", "c_seg.nii", "c_mask.nii", *fitting))
    assert {case: mask for case, (_, mask) in pairs(collection).items()} == {
        "a": None,
        "c": None,
        "p": "p_seg.nii",
        "q": "q_seg.nii",
        "r": "r_seg.nii",
    }
    reasons = {path.name: reason for path, reason in collection.left_out}
    assert reasons["b_seg.nii"] == "a mask without a matching image"
    assert "c.nii has more than one" in reasons["c_seg.nii"]
    assert "c.nii has more than one" in reasons["c_mask.nii"]


def test_a_second_channel_is_left_out(tmp_path):
    collection = discover(touch(tmp_path, "imagesTr/x_0000.nii.gz", "imagesTr/x_0001.nii.gz", "labelsTr/x.nii.gz"))
    assert pairs(collection) == {"x": ("imagesTr/x_0000.nii.gz", "labelsTr/x.nii.gz")}
    assert [(path.name, reason) for path, reason in collection.left_out] == [
        ("x_0001.nii.gz", "another channel of a scan, which is no CT")
    ]


def test_four_digits_are_a_patient_and_only_0000_is_a_channel(tmp_path):
    found = pairs(
        discover(touch(tmp_path, "imagesTr/amos_0001.nii.gz", "labelsTr/amos_0001.nii.gz", "imagesTr/amos_0004.nii.gz"))
    )
    assert found == {
        "amos_0001": ("imagesTr/amos_0001.nii.gz", "labelsTr/amos_0001.nii.gz"),
        "amos_0004": ("imagesTr/amos_0004.nii.gz", None),
    }


def test_a_key_in_folders_of_several_patients_pairs_no_one_with_another(tmp_path):
    with pytest.raises(PairingError, match="1 mask and 2 images, but only 0 pairs"):
        discover(touch(tmp_path, "P1/arterial.nii.gz", "P2/arterial_seg.nii.gz", "P2/venous.nii.gz"))


def test_scans_of_one_name_get_case_ids_of_their_paths_and_a_note(tmp_path):
    collection = discover(touch(tmp_path, "p1/venous.nii", "p2/venous.nii", "p2/late.nii", "p3/4D.nii.gz"))
    assert {case.case_id: case.patient_id for case in collection.cases} == {
        name: name for name in ("p1_venous", "p2_venous", "late", "4D")
    }
    (note,) = collection.notes
    assert "2 scans share a name with another one" in note
    assert "p1/venous.nii is p1_venous" in note


def test_ids_of_paths_that_are_equal_too_are_an_error_that_names_both(tmp_path):
    with pytest.raises(PairingError, match=r"a/b_x\.nii and .*a_b/x\.nii would both become case 'a_b_x'"):
        discover(touch(tmp_path, "a/b_x.nii", "c/b_x.nii", "a_b/x.nii", "d/x.nii"))


def test_a_folder_without_images_is_an_error_that_says_so(tmp_path):
    with pytest.raises(
        PairingError,
        match="no CT image among 1 file .1 of them look like masks. and 0 files that cannot be read",
    ):
        discover(touch(tmp_path, "x_seg.nii"))
    with pytest.raises(PairingError, match="there is no such folder"):
        discover(tmp_path / "nowhere")


def test_labels_are_declared_by_lits_names_or_by_dataset_json(tmp_path):
    assert discover(touch(tmp_path / "a", "volume-1.nii", "segmentation-1.nii")).labels == LITS_LABELS
    assert discover(touch(tmp_path / "b", "x.nii", "x_seg.nii")).labels is None
    (tmp_path / "b" / "dataset.json").write_text('{"labels": {"0": "background", "1": "spleen"}}')
    assert dict(discover(tmp_path / "b").labels.values) == {"spleen": 1}


def test_labels_of_the_user_go_before_a_dataset_json_that_cannot_be_read(tmp_path):
    touch(tmp_path, "x.nii", "x_seg.nii")
    (tmp_path / "dataset.json").write_text('{"labels": {"a": [1, 2], "b": [2, 3]}}')
    (tmp_path / "cases.csv").write_text("image,mask\nx.nii,x_seg.nii\n")
    pattern = f"{tmp_path}/*.nii"
    for read in (
        lambda **given: discover(tmp_path, MaskOptions(files={"a": 1} if given else {})),
        lambda **given: from_csv(tmp_path / "cases.csv", **given),
        lambda **given: from_patterns(pattern, None, **given),
    ):
        with pytest.raises(LabelError, match="pass --labels"):
            read()
        assert read(with_labels=False).labels is None


def test_a_csv_gives_pairs_ids_and_patients(tmp_path):
    table = tmp_path / "cases.csv"
    table.write_text("image,mask,case_id,patient_id\nx/1.nii,y/1.nii,one,p\nx/2.nii,,,\n")
    collection = from_csv(table)
    assert pairs(collection) == {"one": ("x/1.nii", "y/1.nii"), "2": ("x/2.nii", None)}
    assert [case.patient_id for case in collection.cases] == ["p", "2"]


@pytest.mark.parametrize(
    "text", ["", "a,b\n1,2\n", "image,mask\n", "image,mask\n,x\n", "image,mask\na\0.nii,\n", "image\na.nii\n"]
)
def test_a_csv_without_what_it_needs_is_refused(text, tmp_path):
    (tmp_path / "cases.csv").write_text(text)
    with pytest.raises(PairingError, match="image|NUL"):
        from_csv(tmp_path / "cases.csv")


def test_a_case_id_from_a_csv_cannot_leave_the_store(tmp_path):
    (tmp_path / "cases.csv").write_text("image,mask,case_id\na.nii,,../../x\n")
    with pytest.raises(StoreError, match="no slash"):
        from_csv(tmp_path / "cases.csv")


def test_patterns_pair_by_what_their_stars_match(tmp_path):
    touch(tmp_path, "ct/p1_ct.nii.gz", "ct/p2_ct.nii.gz", "seg/p1_liver.nii.gz", "seg/p3_liver.nii.gz")
    collection = from_patterns(f"{tmp_path}/ct/*_ct.nii.gz", f"{tmp_path}/seg/*_liver.nii.gz")
    assert pairs(collection) == {
        "p1": ("ct/p1_ct.nii.gz", "seg/p1_liver.nii.gz"),
        "p2": ("ct/p2_ct.nii.gz", None),
    }
    assert [path.name for path, _ in collection.left_out] == ["p3_liver.nii.gz"]
    with pytest.raises(PairingError, match="matches no"):
        from_patterns(f"{tmp_path}/ct/*.mha", None)
    (tmp_path / "ct" / "notes.txt").touch()
    with pytest.raises(PairingError, match="matches 1 path, like notes.txt, but no .nii") as raised:
        from_patterns(f"{tmp_path}/ct/*.txt", None)
    assert "quote" not in str(raised.value)
    with pytest.raises(UsageError, match=r"needs at least one \*"):
        from_patterns("ct/a.nii", None)


def test_patients_come_from_a_regular_expression(tmp_path):
    collection = discover(touch(tmp_path, "p1_a.nii", "p1_b.nii", "p2_a.nii"))
    assert [case.patient_id for case in set_patients(collection, r"(p\d)_").cases] == ["p1", "p1", "p2"]
    for pattern, kind, message in (
        ("(", UsageError, "is not a regular expression"),
        ("p", UsageError, "needs a group"),
        ("(x)", PairingError, "does not match"),
    ):
        with pytest.raises(kind, match=message):
            set_patients(collection, pattern)


def test_files_that_only_their_name_calls_dicom_are_named(tmp_path):
    collection = discover(touch(tmp_path, "a.nii", "c/d.mha", "e.DCM"))
    assert pairs(collection) == {"a": ("a.nii", None), "d": ("c/d.mha", None)}
    assert [path.name for path, reason in collection.left_out if "is not DICOM" in reason] == ["e.DCM"]


def test_a_hdr_and_its_img_are_one_scan_named_by_the_hdr(tmp_path):
    collection = discover(
        touch(tmp_path, "volume-1.hdr", "volume-1.img", "segmentation-1.hdr.gz", "segmentation-1.img.gz")
    )
    assert pairs(collection) == {"volume-1": ("volume-1.hdr", "segmentation-1.hdr.gz")}
    assert collection.left_out == ()


def test_half_a_pair_is_left_out_with_the_reason(tmp_path):
    collection = discover(touch(tmp_path, "a.nii", "b.hdr", "c.img", "d/e.img.gz"))
    assert pairs(collection) == {"a": ("a.nii", None)}
    assert {path.name: reason.split(";")[0] for path, reason in collection.left_out} == {
        "b.hdr": "a header without its .img",
        "c.img": "an .img without a .hdr of its name",
        "e.img.gz": "an .img without a .hdr of its name",
    }


def test_a_pair_next_to_a_single_file_of_its_name_is_left_out_with_the_reason(tmp_path):
    collection = discover(touch(tmp_path, "a.nii.gz", "a.hdr", "a.img"))
    assert pairs(collection) == {"a": ("a.nii.gz", None)}
    assert [(path.name, reason) for path, reason in collection.left_out] == [
        ("a.hdr", "a pair with the name of a single file; a.nii.gz is read instead")
    ]


def test_names_with_spaces_dots_and_letters_of_any_script_pair_and_keep_their_case_id(tmp_path):
    names = ["Müller, Ana 1.2", "患者 7", "a..b", "x.nii"]
    files = [f"{folder}/{name}.nii.gz" for name in names for folder in ("images", "masks")]
    collection = discover(touch(tmp_path, *files))
    assert pairs(collection) == {name: (f"images/{name}.nii.gz", f"masks/{name}.nii.gz") for name in names}


def test_links_in_circles_end_and_links_to_folders_are_named(tmp_path):
    touch(tmp_path, "a/x.nii")
    (tmp_path / "a" / "round").symlink_to(tmp_path)
    collection = discover(tmp_path)
    assert pairs(collection) == {"x": ("a/x.nii", None)}
    assert [(path.name, reason) for path, reason in collection.left_out] == [
        ("round", "a link to a folder is not followed; name the folder itself")
    ]


def test_a_folder_that_cannot_be_listed_is_named(tmp_path, monkeypatch):
    import os

    touch(tmp_path, "x.nii", "locked/y.nii")
    scandir = os.scandir

    def refuse(path):
        if str(path).endswith("locked"):
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    collection = discover(tmp_path)
    assert [(path.name, reason) for path, reason in collection.left_out] == [
        ("locked", "a folder that cannot be listed: Permission denied")
    ]


def test_a_case_id_that_no_folder_can_have_is_refused_before_anything_is_written(tmp_path):
    touch(tmp_path, "a.nii")
    for case_id in ("患" * 80, "__a", "a/b"):
        (tmp_path / "pairs.csv").write_text(f"image,mask,case_id\na.nii,,{case_id}\n", encoding="utf-8")
        with pytest.raises(StoreError, match="160 bytes"):
            from_csv(tmp_path / "pairs.csv")


def test_a_pattern_of_urls_is_refused_with_the_way_out():
    with pytest.raises(UsageError, match="patterns are for local files"):
        from_patterns("s3://bucket/*.nii", None)


def test_a_patient_of_no_letters_is_refused(collection):
    with pytest.raises(PairingError, match="its group does not match volume-0"):
        set_patients(discover(collection), r"(z)?volume")


def test_rows_of_a_csv_with_one_name_get_case_ids_of_their_paths_and_a_note(tmp_path):
    (tmp_path / "cases.csv").write_text("image,mask\np1/v.nii,\np2\\v.nii,\n")
    collection = from_csv(tmp_path / "cases.csv")
    assert pairs(collection) == {"p1_v": ("p1/v.nii", None), "p2_v": ("p2/v.nii", None)}
    assert "line 2 is p1_v, line 3 is p2_v" in collection.notes[0]
