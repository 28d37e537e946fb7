"""Rules of the small modules: files, labels, window, naming, metrics, pictures, framing, tables on the screen."""

import json
import os
import pty
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from scipy.stats import mannwhitneyu

from slicemill.common import files
from slicemill.common.errors import ConfigError, InputError, LabelError, UsageError
from slicemill.common.terminal import format_table, report_errors
from slicemill.ct import pictures as picture
from slicemill.ct.crop import centered, fit
from slicemill.ct.labels import LITS_LABELS, Labels, labels_from_json, make_labels, parse_labels, read_dataset_json
from slicemill.ct.naming import case_id_of, find_files, name_of
from slicemill.ct.overlap import Overlap, area_under_roc, detection, mean_of, overlap
from slicemill.ct.window import Window
from slicemill.store.to_slices import parse_window

HERE = Path(__file__).parents[2]


class TestFiles:
    def test_a_file_that_fails_half_way_leaves_the_old_one_and_nothing_beside_it(self, tmp_path):
        path = tmp_path / "a.json"
        files.write_bytes(path, b"old")

        def fail():
            with files.atomic_write(path) as aside:
                aside.write_bytes(b"half")
                raise RuntimeError

        with pytest.raises(RuntimeError):
            fail()
        assert path.read_bytes() == b"old"
        assert list(tmp_path.iterdir()) == [path]

    def test_a_torn_last_line_of_a_ledger_costs_only_itself(self, tmp_path):
        path = tmp_path / "ledger.jsonl"
        files.append_line(path, {"n": 1})
        with path.open("a") as stream:
            stream.write('{"n": 2, "to')
        files.append_line(path, {"n": 3})
        assert files.read_lines(path) == [{"n": 1}, {"n": 3}]

    def test_json_with_nan_is_refused(self, tmp_path):
        with pytest.raises(ValueError, match="JSON"):
            files.write_json(tmp_path / "a.json", {"a": float("nan")})


class TestLabels:
    def test_tumor_is_found_by_its_name_and_organ_is_what_is_left(self):
        labels = make_labels({"pancreas": 1, "cancer": 2})
        assert (labels.organ, labels.tumor) == ("pancreas", "cancer")

    @given(st.dictionaries(st.text(min_size=1, max_size=4), st.integers(1, 255), max_size=6))
    def test_parts_of_file_names_are_safe_and_no_two_are_one(self, values):
        labels = Labels({name: value for value, name in {value: name for name, value in values.items()}.items()})
        parts = labels.file_names()
        assert list(parts) == list(labels.values)
        assert len({part.casefold() for part in (*parts.values(), "background")}) == len(parts) + 1
        assert not [part for part in parts.values() if not part or set(part) & set("/\\: \0\n")]

    def test_a_part_of_a_file_name_that_is_taken_gets_another_one(self):
        assert list(Labels({"a b": 2, "a_b_2": 3, "A_B_2": 4}).file_names().values()) == ["a_b_2_2", "a_b_2", "A_B_2_4"]

    def test_three_labels_leave_the_organ_open(self):
        assert make_labels({"a": 1, "b": 2, "tumor": 3}).organ is None

    def test_no_two_labels_share_a_file_name_and_none_leaves_its_folder(self):
        labels = Labels({"a b": 2, "a_b_2": 3, "../x": 4, "a/b": 5, "liver": 6})
        found = labels.file_names()
        assert list(found) == list(labels.values)
        assert (found["a_b_2"], found["liver"]) == ("a_b_2", "liver")
        assert len(set(found.values())) == 5
        assert not any("/" in name or " " in name for name in found.values())

    @pytest.mark.parametrize(
        "text", ["liver", "liver=", "=1", "liver=x", "liver=1,liver=2", "liver=1,tumor=1", "liver=0", "liver=256"]
    )
    def test_labels_that_make_no_sense_are_refused(self, text):
        with pytest.raises(UsageError, match="label"):
            parse_labels(text)

    def test_an_organ_that_is_no_label_is_refused(self):
        with pytest.raises(UsageError, match="--organ spleen: the labels are liver=1, tumor=2"):
            parse_labels("liver=1,tumor=2", organ="spleen")

    @pytest.mark.parametrize(
        "labels", [{"0": "background", "1": "liver", "2": "cancer"}, {"background": 0, "liver": 1, "cancer": 2}]
    )
    def test_both_forms_of_dataset_json_are_read(self, labels, tmp_path):
        path = tmp_path / "dataset.json"
        path.write_text(json.dumps({"labels": labels}))
        assert read_dataset_json(path) == Labels(values={"liver": 1, "cancer": 2}, organ="liver", tumor="cancer")

    def test_a_broken_dataset_json_is_one_clear_error(self, tmp_path):
        (tmp_path / "dataset.json").write_text("[")
        with pytest.raises(LabelError, match="pass --labels"):
            read_dataset_json(tmp_path / "dataset.json")

    def test_labels_survive_json(self):
        assert labels_from_json(json.loads(json.dumps(LITS_LABELS.as_json()))) == LITS_LABELS


class TestNaming:
    @pytest.mark.parametrize(
        ("image", "mask"),
        [
            ("volume-3.nii", "segmentation-3.nii"),
            ("a/volume-3.nii", "b/segmentation-3.nii.gz"),
            ("imagesTr/liver_3.nii.gz", "labelsTr/liver_3.nii.gz"),
            ("imagesTr/liver_3_0000.nii.gz", "labelsTr/liver_3.nii.gz"),
            ("P1/CT_image.nii.gz", "P1/CT_mask.nii.gz"),
            ("images/x.nii", "masks/x.nii"),
            ("p7_ct.nii.gz", "p7_seg.nii.gz"),
        ],
    )
    def test_an_image_and_its_mask_share_a_key(self, image, mask):
        assert (name_of(image).role, name_of(mask).role) == ("image", "mask")
        assert name_of(image).key == name_of(mask).key

    def test_words_inside_words_say_nothing(self):
        assert name_of("ctx_labella_scanner.nii").role == "image"
        assert name_of("Segura_Maria.nii").role == "image"

    def test_a_file_in_a_folder_of_its_own_is_named_after_the_folder(self):
        assert case_id_of("x/STS_004/CT_image.nii.gz") == "STS_004"

    def test_resource_forks_hidden_files_and_links_to_folders_are_no_scans(self, tmp_path):
        for name in ("a.nii", "._a.nii", ".b.nii", "c.NII.GZ", "d.txt", ".git/e.nii", "sub/f.nii"):
            (tmp_path / name).parent.mkdir(exist_ok=True)
            (tmp_path / name).touch()
        (tmp_path / "loop").symlink_to(tmp_path)
        assert [path.relative_to(tmp_path).as_posix() for path in find_files(tmp_path)] == [
            "a.nii",
            "c.NII.GZ",
            "sub/f.nii",
        ]


class TestMetrics:
    def test_dice_precision_and_recall_by_hand(self):
        counts = overlap(np.array([1, 1, 1, 0, 0], bool), np.array([1, 1, 0, 1, 0], bool))
        assert counts == Overlap(2, 1, 1)
        assert (counts.dice, counts.precision, counts.recall) == pytest.approx((2 / 3, 2 / 3, 2 / 3))

    def test_both_empty_is_no_number_and_is_left_out_of_the_mean(self):
        empty = overlap(np.zeros(3, bool), np.zeros(3, bool)).dice
        assert np.isnan(empty)
        assert mean_of([empty, 0.5]) == 0.5
        assert np.isnan(mean_of([]))

    @given(st.lists(st.tuples(st.booleans(), st.integers(0, 5)), min_size=2, max_size=30))
    def test_the_area_under_the_curve_is_scipys_mann_whitney(self, pairs):
        truth, score = np.array([t for t, _ in pairs]), np.array([s for _, s in pairs], float)
        if truth.all() or not truth.any():
            assert np.isnan(area_under_roc(truth, score))
        else:
            expected = mannwhitneyu(score[truth], score[~truth]).statistic / truth.sum() / (~truth).sum()
            assert area_under_roc(truth, score) == pytest.approx(expected)

    def test_yes_or_no_by_hand(self):
        found = detection([True, True, False, False], [True, False, True, False], [0.9, 0.4, 0.6, 0.1])
        assert (found.accuracy, found.sensitivity, found.specificity, found.auc) == (0.5, 0.5, 0.5, 0.75)


class TestPictures:
    def test_an_outline_is_the_pixels_that_touch_the_outside(self):
        mask = np.zeros((5, 5), bool)
        mask[1:4, 1:4] = True
        expected = mask.copy()
        expected[2, 2] = False
        assert np.array_equal(picture.outline(mask), expected)

    def test_errors_are_green_red_and_orange(self):
        plain = np.zeros((1, 3, 3), np.uint8)
        drawn = picture.draw_errors(plain, np.array([[True, False, True]]), np.array([[True, True, False]]))
        green, red, orange = drawn[0].astype(int)
        assert green.argmax() == 1
        assert red.argmax() == 0
        assert red[1] < red[0] / 2
        assert orange[0] > orange[1] > orange[2]

    def test_a_montage_has_rows_and_fits_its_captions(self, tmp_path):
        tile = picture.Tile(
            picture=picture.gray(np.zeros((64, 64), np.int16)), caption="a caption much wider than the picture " * 5
        )
        picture.save_png(tmp_path / "m.png", picture.montage([tile] * 5, 2))
        with Image.open(tmp_path / "m.png") as opened:
            assert opened.size == (2 * 260 + 4, 3 * (256 + 18 + 4) + 4)

    def test_small_slices_are_enlarged_by_whole_factors(self):
        assert picture.gray(np.zeros((100, 60), np.int16)).shape == (300, 180, 3)
        assert picture.gray(np.zeros((512, 512), np.int16)).shape == (512, 512, 3)


@given(st.integers(1, 40), st.integers(1, 40), st.integers(1, 40), st.integers(1, 40))
def test_a_slice_fitted_into_another_size_comes_back_where_they_overlap(ny, nx, height, width):
    section = np.arange(1, ny * nx + 1).reshape(ny, nx)
    out = np.empty((height, width), section.dtype)
    corner = centered(section.shape, out.shape)
    fit(section, corner, 0, out)
    for y in range(height):
        for x in range(width):
            inside = 0 <= y + corner[0] < ny and 0 <= x + corner[1] < nx
            assert out[y, x] == (section[y + corner[0], x + corner[1]] if inside else 0)


def test_an_empty_window_is_refused():
    with pytest.raises(ConfigError, match="below the upper"):
        Window(100, 100)


def test_a_window_without_ends_is_refused():
    with pytest.raises(ConfigError, match=r"window -200.0\.\.inf: both ends must be finite"):
        parse_window("-200,inf")


def test_a_table_aligns_numbers_to_the_right_and_marks_what_is_missing():
    assert format_table(["a", "n"], [["x", 1], ["yy", None]]) == "a   n\nx   1\nyy  -"


@pytest.mark.parametrize(
    ("error", "status", "shown"),
    [
        (InputError("a.nii: is broken."), 1, "slicemill: a.nii: is broken.\n"),
        (UsageError("--mode x: choose a or b."), 2, "slicemill: --mode x: choose a or b.\n"),
        (OSError(28, "No space left on device", "x.part"), 1, "slicemill: x.part: No space left on device."),
        (KeyboardInterrupt(), 130, "slicemill: interrupted"),
    ],
)
def test_what_a_user_can_mend_is_one_line_and_no_traceback(error, status, shown, capsys):
    with pytest.raises(SystemExit) as stopped, report_errors():
        raise error
    assert stopped.value.code == status
    assert capsys.readouterr().err.startswith(shown)


def test_a_bug_keeps_its_traceback():
    with pytest.raises(KeyError), report_errors():
        raise KeyError("x")


def test_a_ledger_keeps_names_with_any_separator_of_lines(tmp_path):
    from slicemill.common.files import append_line, read_lines

    record = {"case_id": "a\u2028b\u0085c"}
    append_line(tmp_path / "ledger.jsonl", record)
    assert read_lines(tmp_path / "ledger.jsonl") == [record]


def test_results_stay_on_standard_output_beside_a_bar_on_a_terminal():
    code = (
        "from slicemill.common.progress import progress\nfrom slicemill.common.terminal import print_line\n"
        "with progress('infer', 2, 'scans') as advance:\n    print_line('a worker'); advance(1, 'none failed')"
    )
    ours, theirs = pty.openpty()
    done = subprocess.run([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=theirs, cwd=HERE, check=True)
    os.close(theirs)
    shown = os.read(ours, 1 << 16)
    os.close(ours)
    assert done.stdout == b"a worker\n"
    assert b"1/2 scans" in shown
    assert b"a worker" not in shown
