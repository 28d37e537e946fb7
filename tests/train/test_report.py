"""A run folder explains itself: scores, curves, environment, cases, and the page that shows them all."""

import csv
import json
import math
import os
import platform
import re
import shutil
import time
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813 (as its own documentation has it)
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from PIL import Image
from typer.testing import CliRunner

from slicemill.cli import commands
from slicemill.ct.labels import LITS_LABELS, Labels, make_labels
from slicemill.ct.overlap import count_overlap
from slicemill.ct.pictures import CAPTION_PX, GAP_PX, draw_labels, label_colors, render_gray
from slicemill.ct.window import Window
from slicemill.ingest.pair_table import from_csv
from slicemill.ingest.params import Params
from slicemill.ingest.pipeline import IngestOptions, ingest
from slicemill.store.tables import read_table
from slicemill.train.config import Config
from slicemill.train.loop import train
from slicemill.train.network.step import build_network
from slicemill.train.report import page as report
from slicemill.train.report.cases import choose_key_slices, write_cases
from slicemill.train.report.curves import SECONDS_APART, draw_curves, keep_current, make_figure
from slicemill.train.report.page import write_report
from slicemill.train.run import environment
from slicemill.train.run.checkpoint import read_state
from slicemill.train.run.environment import record_start
from slicemill.train.run.metrics import EpochMetrics, RegionDice
from slicemill.train.run.setup import REPORT, prepare
from slicemill.train.run.validate import count_overlaps, global_dice, predict_case, read_reference, validate
from tests.conftest import TINY
from tests.train.helpers import no_log

THREE = make_labels({"liver": 1, "tumor": 2, "spleen": 7})


def table_of(path):
    with path.open(newline="", encoding="utf-8") as stream:
        return list(csv.DictReader(stream))


@pytest.fixture(scope="module")
def several(stored, tmp_path_factory):
    """A setup with three validation cases, and a network that was not trained."""
    config = replace(TINY, validation=0.5, test=0.1)
    setup = prepare(stored, tmp_path_factory.mktemp("runs") / "several", config, None)
    assert len(setup.split.validation) == 3
    return setup, build_network(setup.labels, config).eval()


class TestOverlaps:
    @settings(max_examples=60, deadline=None)
    @given(
        arrays.arrays(np.uint8, (2, 4, 5), elements=st.sampled_from([0, 1, 2, 7, 9, 255])),
        arrays.arrays(np.uint8, (2, 4, 5), elements=st.integers(0, 3)),
    )
    def test_all_regions_at_once_count_as_each_region_by_its_masks(self, reference, predicted):
        found = count_overlaps(reference, predicted, THREE)
        answer = THREE.table()[predicted]
        for name, values in THREE.regions().items():
            assert found[name] == count_overlap(np.isin(reference, values), np.isin(answer, values))

    def test_dice_is_that_of_simpleitk(self, several):
        setup, network = several
        for case_id, found in validate(setup, network).items():
            case = setup.store[case_id]
            answer = setup.labels.table()[predict_case(case, network, setup)]
            for name, values in setup.labels.regions().items():
                measured = sitk.LabelOverlapMeasuresImageFilter()
                masks = [np.isin(volume, values).astype(np.uint8) for volume in (case.label[:], answer)]
                if masks[0].any() or masks[1].any():
                    measured.Execute(*map(sitk.GetImageFromArray, masks))
                    assert found[name].dice == pytest.approx(measured.GetDiceCoefficient(1))
                else:
                    assert math.isnan(found[name].dice)

    def test_ignored_voxels_count_neither_as_hit_nor_as_miss(self, rng):
        reference = rng.choice(np.array([0, 1, 2, 7], np.uint8), (3, 6, 6))
        predicted = rng.integers(0, 4, (3, 6, 6)).astype(np.uint8)
        somewhere = rng.random(reference.shape) < 0.3
        found = count_overlaps(np.where(somewhere, np.uint8(255), reference), predicted, THREE, ignored=255)
        elsewhere = [volume[~somewhere][None, None] for volume in (reference, predicted)]
        assert found == count_overlaps(*elsewhere, THREE)
        anything = np.where(somewhere, rng.integers(0, 4, reference.shape), predicted).astype(np.uint8)
        assert found == count_overlaps(np.where(somewhere, np.uint8(255), reference), anything, THREE, ignored=255)

    def test_the_global_dice_counts_the_voxels_of_all_cases_together(self, several):
        setup, network = several
        by_case = validate(setup, network)
        assert list(by_case) == list(setup.split.validation)
        masks = [(case.label[:], predict_case(case, network, setup)) for case in map(setup.store.__getitem__, by_case)]
        for name, values in setup.labels.regions().items():
            truth = np.concatenate([np.isin(reference, values).ravel() for reference, _ in masks])
            answer = np.concatenate([np.isin(setup.labels.table()[one], values).ravel() for _, one in masks])
            expected = 2 * np.sum(truth & answer) / (truth.sum() + answer.sum())
            assert global_dice(by_case, setup.labels)[name] == pytest.approx(expected)


def epoch_metrics(epoch, *, wait_share=None, tumor_dice=...):
    """Return the metrics of an epoch of an earlier version, without Dice per case."""
    dice = RegionDice(train=0.1 * epoch, validation=0.1 * epoch, validation_per_case=None)
    tumor = dice if tumor_dice is ... else replace(dice, validation=tumor_dice)
    return EpochMetrics(
        epoch=epoch, loss=1 / epoch, learning_rate=10.0**-epoch, slices_per_second=100.0, wait_share=wait_share,
        regions={"liver": dice, "tumor": tumor}, validation_dice=0.5,
    )  # fmt: skip


class TestCurves:
    def test_each_panel_holds_its_column(self):
        history = [epoch_metrics(epoch, wait_share=0.01 * epoch) for epoch in range(1, 6)]
        dice, loss, rate, speed, wait = make_figure(history, LITS_LABELS).axes
        for axes, column in (
            (loss, "loss"),
            (rate, "learning_rate"),
            (speed, "slices_per_second"),
            (wait, "wait_share"),
        ):
            (line,) = axes.lines
            assert list(line.get_xdata()) == [1, 2, 3, 4, 5]
            assert list(line.get_ydata()) == [getattr(metrics, column) for metrics in history]
        assert rate.get_yscale() == "log"
        assert loss.get_yscale() == "linear"
        assert len(dice.lines) == 5  # two regions in two parts, and the best epoch
        named = [text.get_text() for text in dice.get_legend().get_texts()]
        assert named == ["liver", "tumor", "validation", "training"]

    def test_what_no_epoch_has_gets_no_panel_and_no_line(self):
        history = [epoch_metrics(1, tumor_dice=None), epoch_metrics(2, tumor_dice=None)]
        figure = make_figure(history, LITS_LABELS)
        assert len(figure.axes) == 4
        assert len(figure.axes[0].lines) == 4

    def test_a_single_epoch_shows(self, drawn_curves, tmp_path):
        draw_curves(tmp_path / "one.png", [epoch_metrics(1, tumor_dice=0.7)], LITS_LABELS)
        picture = np.asarray(Image.open(tmp_path / "one.png").convert("RGB")).astype(int)
        below_the_legend = picture[130:450, 60:900]
        red = (abs(below_the_legend - (0xD0, 0x40, 0x2F)) < 12).all(axis=-1)
        assert red.sum() > 20

    def test_the_picture_of_a_running_training_is_drawn_again_when_it_is_old(self, drawn_curves, tmp_path):
        path = tmp_path / "curves.png"
        keep_current(path, [epoch_metrics(1)], LITS_LABELS)
        first = path.read_bytes()
        keep_current(path, [epoch_metrics(1), epoch_metrics(2)], LITS_LABELS)
        assert path.read_bytes() == first
        old = time.time() - SECONDS_APART - 1
        os.utime(path, (old, old))
        keep_current(path, [epoch_metrics(1), epoch_metrics(2)], LITS_LABELS)
        assert path.read_bytes() != first


class TestEnvironment:
    def test_it_names_versions_precision_and_store(self, trained, stored):
        document = json.loads((trained / "environment.json").read_text())
        facts = document["environment"]
        assert facts["python"] == platform.python_version()
        assert facts["versions"]["numpy"] == np.__version__
        assert facts["versions"]["slicemill"]
        assert facts["precision"] == "fp32"
        assert facts["threads"] >= 1
        model = json.loads((trained / "model.json").read_text())
        assert (facts["store"], facts["store_sha256"]) == (str(stored), model["store_sha256"])
        (start,) = document["starts"]
        assert start["after_epoch"] == 0
        assert start["utc"].endswith("+00:00")

    def test_it_names_no_machine_and_no_path_but_the_store(self, trained):
        facts = json.loads((trained / "environment.json").read_text())["environment"]
        written = json.dumps({name: value for name, value in facts.items() if not name.startswith("store")})
        assert platform.node() not in written.split('"')
        assert "/" not in written.replace(facts["cpu"], "")

    def test_a_run_that_goes_on_records_what_has_changed(self, several, tmp_path, monkeypatch):
        setup, _ = several
        setup_run = tmp_path / "run"
        prepare(setup.store.root, setup_run, setup.config, None)
        record_start(setup_run, setup, 0)
        now = {**environment.machine_info(), "python": "3.99.0", "versions": {"torch": "9.0"}}
        monkeypatch.setattr(environment, "machine_info", lambda: now)
        record_start(setup_run, replace(setup, precision=torch.bfloat16), 7)
        document = json.loads((setup_run / "environment.json").read_text())
        first, second = document["starts"]
        assert (first["after_epoch"], first["changed"]) == (0, {})
        assert second["after_epoch"] == 7
        assert second["changed"]["python"] == [platform.python_version(), "3.99.0"]
        assert second["changed"]["versions.torch"][1] == "9.0"
        assert second["changed"]["versions.numpy"] == [np.__version__, None]
        assert second["changed"]["precision"] == ["fp32", "bfloat16, mixed"]
        assert "cpu" not in second["changed"]
        assert document["environment"]["python"] == "3.99.0"


class TestCases:
    def test_volumes_are_those_that_ingest_counted(self, trained, stored):
        manifest = {row["case_id"]: row for row in read_table(stored, "manifest")}
        rows = table_of(trained / "cases.csv")
        assert sorted(row["case_id"] for row in rows) == json.loads((trained / "split.json").read_text())["validation"]
        for row in rows:
            known = manifest[row["case_id"]]
            assert float(row["reference_liver_ml"]) == pytest.approx(known["organ_volume_ml"], abs=1e-3)
            assert float(row["reference_tumor_ml"]) == pytest.approx(known["tumor_volume_ml"], abs=1e-3)
            error = float(row["predicted_liver_ml"]) - float(row["reference_liver_ml"])
            assert float(row["error_liver_ml"]) == pytest.approx(error, abs=1e-3)

    def test_the_weights_are_the_best_ones(self, trained):
        """The Dice of the cases, over all their voxels, is the one that the best epoch was chosen by."""
        state = read_state(trained)
        best = next(metrics for metrics in state.history if metrics.epoch == state.best_epoch).regions["liver"]
        (row,) = table_of(trained / "cases.csv")
        assert float(row["dice_liver"]) == pytest.approx(best.validation)
        assert float(row["dice_liver"]) == pytest.approx(best.validation_per_case)

    def test_the_worst_come_first_and_no_case_is_in_both_pictures(self, several, tmp_path):
        setup, network = several
        written = write_cases(tmp_path, setup, network)
        found = written.overlaps
        scores = {case_id: np.nanmean([one.dice for one in regions.values()]) for case_id, regions in found.items()}
        order = sorted(scores, key=scores.__getitem__)
        assert [row["case_id"] for row in table_of(tmp_path / "cases.csv")] == order
        for name, case_id in (("worst.png", order[0]), ("best.png", order[-1])):
            self.check_picture(tmp_path / name, setup, network, case_id)
        assert [case_id for case_id, _ in written.worst] == order[: len(written.worst)]
        for case_id, slices in written.worst:
            assert slices.masks == ("prediction", "reference")
            assert slices.slice_count == len(setup.store[case_id].image)

    def check_picture(self, path, setup, network, case_id):
        """The first row of tiles is image, reference and prediction of the case's first key slice."""
        case = setup.store[case_id]
        reference, answer = read_reference(case), setup.labels.table()[predict_case(case, network, setup)]
        z = next(iter(choose_key_slices(reference, answer, setup.labels)))
        picture = render_gray(case.image[z], Window(setup.config.window_low, setup.config.window_high))
        colors = label_colors(setup.labels)
        expected = [picture, draw_labels(picture, reference[z], colors), draw_labels(picture, answer[z], colors)]
        drawn = np.asarray(Image.open(path))
        height, width = picture.shape[:2]
        for column, tile in enumerate(expected):
            top, left = GAP_PX + CAPTION_PX, GAP_PX + column * (width + GAP_PX)
            assert np.array_equal(drawn[top : top + height, left : left + width], tile)

    def test_the_key_slices_are_those_of_most_tumor_and_most_error(self):
        reference = np.zeros((4, 3, 3), np.uint8)
        reference[0] = 1
        reference[1, 0] = 2
        answer = reference.copy()
        answer[3, :2] = 1
        assert choose_key_slices(reference, answer, LITS_LABELS) == {1: "most tumor", 3: "most error"}
        assert choose_key_slices(reference, reference, LITS_LABELS) == {1: "most tumor"}
        assert choose_key_slices(np.zeros_like(reference), answer, LITS_LABELS) == {0: "most label and error"}
        reference[2] = 255
        assert choose_key_slices(reference, answer, LITS_LABELS)[2] == "most error"
        assert choose_key_slices(reference, answer, LITS_LABELS, ignored=255) == {1: "most tumor", 3: "most error"}


class Page(HTMLParser):
    """What a browser would make of a page."""

    def __init__(self, content):
        super().__init__()
        self.tags, self.asked, self.words, self.policy = [], [], [], ""
        self.feed(content)

    def handle_starttag(self, tag, attributes):
        given = dict(attributes)
        self.tags.append(tag)
        self.asked += [given[name] for name in ("src", "href", "data", "action", "poster", "srcset") if name in given]
        if given.get("http-equiv") == "Content-Security-Policy":
            self.policy = given["content"]

    def handle_data(self, data):
        self.words.append(data)

    @property
    def text(self):
        return " ".join(" ".join(self.words).split())


class TestReport:
    def test_the_page_needs_nothing_but_itself(self, trained):
        page = Page((trained / REPORT).read_text())
        pictures = [one for one in page.asked if one.startswith("data:image/")]
        assert len(pictures) == 2  # the curves, and the only validation case
        for link in set(page.asked) - set(pictures):
            assert (trained / link).is_file()
        assert page.policy.startswith("default-src 'none'; img-src data:")
        assert not {"link", "iframe", "object", "embed", "form"} & set(page.tags)

    def test_the_page_says_what_was_trained_on_what(self, trained, stored):
        text = Page((trained / REPORT).read_text()).text
        state = read_state(trained)
        model = json.loads((trained / "model.json").read_text())
        (row,) = table_of(trained / "cases.csv")
        for words in (
            str(stored), model["store_sha256"], f"best epoch of {state.epoch}", row["case_id"],
            f"{float(row['dice_liver']):.3f}",
            "width 4 16", "batch 8 16", "Defaults: context = 3", "not used in training",
            "slicemill export run/ model.onnx", "not a medical device", platform.python_version(),
            "It ended after its 2 epochs",
        ):  # fmt: skip
            assert words in text, words

    def test_the_numbers_of_the_split_are_those_of_the_tables(self, trained, stored):
        text = Page((trained / REPORT).read_text()).text
        split = json.loads((trained / "split.json").read_text())
        manifest = [row for row in read_table(stored, "manifest") if row["case_id"] in split["train"]]
        patients, slices = len({row["patient_id"] for row in manifest}), sum(row["nz"] for row in manifest)
        tumor = sum(row["has_tumor"] for row in manifest)
        assert f"train training {patients} {len(manifest)} {slices:,} {tumor}" in text

    @pytest.mark.slow
    def test_names_from_files_cannot_become_markup(self, collection, tmp_path):
        pairs = tmp_path / "pairs.csv"
        images = sorted(collection.glob("volume-*.nii*"))
        masks = sorted(collection.glob("segmentation-*.nii*"))
        rows = [f"{image},{mask},<b>{image.name[:8]}\n" for image, mask in zip(images, masks, strict=True)]
        pairs.write_text("image,mask,case_id\n" + "".join(rows))
        labels = Labels(values={"<i>&liver": 1, "<u>tumor": 2}, organ="<i>&liver", tumor="<u>tumor")
        store, run = tmp_path / "<em>store", tmp_path / "<s>run"
        ingest(from_csv(pairs), store, Params(labels=labels), IngestOptions(workers=1))
        train(store, run, replace(TINY, epochs=1, steps=1), log=no_log)
        page = Page((run / REPORT).read_text())
        assert not {"i", "u", "em", "s"} & set(page.tags)
        assert page.tags.count("b") == 5  # the figures at the top
        for words in ("<i>&liver", "<u>tumor", "<em>store", "<s>run"):
            assert words in page.text
        assert "<b>volume-" in page.text

    def test_a_run_killed_before_its_report_writes_it_next_time(self, stored, trained, tmp_path, monkeypatch):
        run = shutil.copytree(trained, tmp_path / "run", ignore=shutil.ignore_patterns(REPORT, "cases.csv"))

        def killed(*_):
            raise KeyboardInterrupt

        with monkeypatch.context() as patched:
            patched.setattr(report, "draw_curves", killed)
            with pytest.raises(KeyboardInterrupt):
                train(stored, run, TINY, log=no_log)
        assert (run / "cases.csv").exists()
        assert not (run / REPORT).exists()
        kept = {
            name: (run / name).read_bytes()
            for name in ("last.safetensors", "best.safetensors", "environment.json", "cases.csv")
        }
        lines = []
        assert train(stored, run, TINY, log=lines.append).epoch == TINY.epochs
        assert (run / REPORT).exists()
        assert not any(line.startswith("epoch") for line in lines)
        assert all((run / name).read_bytes() == content for name, content in kept.items())
        written = (run / REPORT).stat().st_mtime_ns
        train(stored, run, TINY, log=no_log)
        assert (run / REPORT).stat().st_mtime_ns == written

    def test_the_command_ends_with_the_path_of_the_page(self, own_run, stored):
        words = ["train", str(stored), str(own_run), "--config", str(own_run / "config.toml")]
        done = CliRunner().invoke(commands(), words)
        assert done.exit_code == 0
        assert done.stdout.splitlines()[-1].endswith(str(own_run / REPORT))

    def test_an_empty_prediction_of_an_empty_reference_is_no_case_to_show(self, several, tmp_path):
        """A network that finds nothing, and a reference that is ignored throughout: no Dice and no pictures."""
        setup, network = several
        run = tmp_path / "run"
        single = replace(setup, split=replace(setup.split, validation=setup.split.validation[:1]))
        prepare(setup.store.root, run, setup.config, None)
        with pytest.MonkeyPatch.context() as patched:
            patched.setattr(
                "slicemill.train.report.cases.read_reference", lambda case: np.full(case.image.shape, 255, np.uint8)
            )
            written = write_cases(run, replace(single, ignored=255), network)
        assert all(math.isnan(one.dice) for regions in written.overlaps.values() for one in regions.values())
        assert written.worst == ()
        assert not (run / "worst.png").exists()
        (row,) = table_of(run / "cases.csv")
        assert row["dice"] == ""

    def test_settings_that_differ_are_a_table(self):
        tables = report.settings_tables(Config(batch=2, augment=0.0))
        assert tables.changed.rows == [("batch", "2", "16"), ("augment", "0", "0.4")]
        assert tables.defaults.startswith("context = 3, ")
        assert "batch = " not in tables.defaults
        assert not report.settings_tables(Config()).changed.rows

    def test_the_page_has_the_worst_cases_slice_by_slice(self, trained):
        text = (trained / REPORT).read_text()
        assert text.count('<div class="slices" hidden>') == 1, "there is one validation case"
        assert '"masks": ["prediction", "reference"]' in text
        assert "pictures of a patient" in text
        assert len(re.findall("'sha256-[^']+'", text)) == 2

    def test_the_report_of_best_weights_can_be_written_again(self, trained, stored, tmp_path):
        run = shutil.copytree(trained, tmp_path / "run")
        (run / REPORT).unlink()
        setup = prepare(stored, run, TINY, None)
        write_report(run, setup, read_state(run))
        assert (run / "cases.csv").read_bytes() == (trained / "cases.csv").read_bytes()
