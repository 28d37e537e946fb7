"""What a file's name says: image or mask, its key, its case."""

import pytest

from slicemill.ct.naming import derive_case_id, find_files, parse_name


@pytest.mark.parametrize(
    ("image", "mask"),
    [
        ("volume-3.nii", "segmentation-3.nii"),
        ("a/volume-3.nii", "b/segmentation-3.nii.gz"),
        ("imagesTr/liver_3.nii.gz", "labelsTr/liver_3.nii.gz"),
        ("imagesTr/liver_3_0000.nii.gz", "labelsTr/liver_3.nii.gz"),
        ("imagesTr/volume-3.nii.gz", "labelsTr/volume-3.nii.gz"),
        ("labels/volume-3.nii.gz", "labels/segmentation-3.nii.gz"),
        ("P1/CT_image.nii.gz", "P1/CT_mask.nii.gz"),
        ("images/x.nii", "masks/x.nii"),
        ("p7_ct.nii.gz", "p7_seg.nii.gz"),
    ],
)
def test_an_image_and_its_mask_share_a_key(image, mask):
    assert (parse_name(image).role, parse_name(mask).role) == ("image", "mask")
    assert parse_name(image).key == parse_name(mask).key


def test_words_inside_words_say_nothing():
    assert parse_name("ctx_labella_scanner.nii").role == "image"
    assert parse_name("Segura_Maria.nii").role == "image"


def test_a_file_in_a_folder_of_its_own_is_named_after_the_folder():
    assert derive_case_id("x/STS_004/CT_image.nii.gz") == "STS_004"


def test_resource_forks_hidden_files_and_links_to_folders_are_no_scans(tmp_path):
    for name in ("a.nii", "._a.nii", ".b.nii", "c.NII.GZ", "d.txt", ".git/e.nii", "sub/f.nii"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "loop").symlink_to(tmp_path)
    assert [path.relative_to(tmp_path).as_posix() for path in find_files(tmp_path)] == [
        "a.nii",
        "c.NII.GZ",
        "sub/f.nii",
    ]
