"""`slicemill measure` and `slicemill compare`: files, folders and stores, again and again, and what they write."""

import csv
import gzip
import json
import os
import re

import numpy as np
import pytest
import SimpleITK

from slicemill.common.errors import LabelError, PairingError
from slicemill.ct.labels import LITS_LABELS, make_labels
from slicemill.ct.phantom import write_nifti
from slicemill.measure.followup.recist import measure_time_point
from slicemill.measure.inputs.infer_output import read_report
from slicemill.measure.lesions import cohort_page
from slicemill.measure.lesions import load as load_module
from slicemill.measure.lesions.flags import flag_far_volumes
from slicemill.measure.lesions.jobs import file_job, gather_jobs
from slicemill.measure.lesions.load import load_case
from slicemill.measure.lesions.measurements import Volume
from slicemill.measure.lesions.run import report_crash, run
from slicemill.measure.lesions.slicer3d import write_color_table, write_segmentation
from tests.measure.conftest import SPACING


def scan(*lesions):
    label = np.zeros((10, 30, 30), np.uint8)
    label[1:9, 3:27, 3:27] = 1
    for z, y, x, side in lesions:
        label[z : z + 2, y : y + side, x : x + side] = 2
    return label


@pytest.fixture
def three_cases(tmp_path):
    """Three cases: two lesions, one, none."""
    for number, lesions in enumerate([[(2, 6, 6, 6), (6, 15, 15, 3)], [(3, 8, 8, 5)], []], start=1):
        label = scan(*lesions)
        write_nifti(tmp_path / "scans" / f"segmentation-{number}.nii.gz", label, SPACING)
        write_nifti(
            tmp_path / "scans" / f"volume-{number}.nii", np.where(label == 2, 40, 100).astype(np.int16), SPACING
        )
    return tmp_path


@pytest.mark.slow
def test_a_folder_becomes_tables_pages_and_segmentations_and_is_not_done_twice(command, three_cases):
    words = (three_cases / "scans", "--image", three_cases / "scans", "--out", three_cases / "out")
    done = command("measure", *words, "--workers", "2")
    assert done.exit_code == 0, done.output
    assert "3 cases: 3 done, 0 skipped" in done.output
    with (three_cases / "out" / "cases.csv").open(newline="") as stream:
        cases = list(csv.DictReader(stream))
    assert [row["lesion_count"] for row in cases] == ["2", "1", "0"]
    with (three_cases / "out" / "lesions.csv").open(newline="") as stream:
        lesions = list(csv.DictReader(stream))
    assert [float(row["volume_ml"]) for row in lesions] == pytest.approx(
        [2 * 2 * 36 / 1000, 2 * 2 * 9 / 1000, 2 * 2 * 25 / 1000]
    )
    assert {row["hu_mean"] for row in lesions} == {"40.0"}
    assert {row["rim_hu_mean"] for row in lesions} == {"100.0"}
    record = json.loads((three_cases / "out" / "segmentation-1.json").read_text())
    assert len(record["source"]["image"]["sha256"]) == 64
    assert record["note"] == "research use, not a diagnosis"
    tables = [(three_cases / "out" / f"{name}.csv").read_bytes() for name in ("cases", "lesions")]
    assert "0 done, 3 skipped" in command("measure", *words).output
    assert tables == [(three_cases / "out" / f"{name}.csv").read_bytes() for name in ("cases", "lesions")]
    write_nifti(three_cases / "scans" / "segmentation-2.nii.gz", scan(), SPACING)
    assert "1 done, 2 skipped" in command("measure", *words).output, "a mask that changed is measured again"
    assert "3 done" in command("measure", *words, "--overwrite").output


def test_a_broken_mask_fails_alone_and_the_page_says_so(command, three_cases):
    (three_cases / "scans" / "segmentation-2.nii.gz").write_bytes(b"no scan")
    write_nifti(three_cases / "scans" / "volume-1.nii", np.zeros((10, 30, 31), np.int16), SPACING)
    done = command("measure", three_cases / "scans", "--image", three_cases / "scans", "--out", three_cases / "out")
    assert done.exit_code == 1
    assert "1 done, 0 skipped (done before), 2 failed" in done.output
    assert "must have the same grid as its mask" in done.output
    assert "segmentation-2" in (three_cases / "out" / "report.html").read_text()


def test_a_store_and_a_file_without_its_scan_are_measured_too(stored, tmp_path):
    from slicemill.store.reader import open_store

    outcomes = run(gather_jobs(stored, None, None), tmp_path / "out")
    assert {outcome.status for outcome in outcomes} == {"done"}
    for case in open_store(stored).values():
        record = json.loads((tmp_path / "out" / f"{case.info.case_id}.json").read_text())
        assert record["tumor_ml"] == pytest.approx(sum(lesion.volume_ml for lesion in case.info.lesions), abs=1e-3)
        for ours, known in zip(record["lesions"], case.info.lesions, strict=True):
            assert ours["bbox_zyx"] == list(known.bbox_zyx)
            assert ours["max_axial_diameter_mm"] == pytest.approx(known.max_axial_diameter_mm, abs=0.01)
    assert {outcome.status for outcome in run(gather_jobs(stored, None, None), tmp_path / "out")} == {"skipped"}
    write_nifti(tmp_path / "mask.nii.gz", scan((2, 6, 6, 6)), SPACING)
    (outcome,) = run(gather_jobs(tmp_path / "mask.nii.gz", None, LITS_LABELS), tmp_path / "one")
    assert outcome.status == "done"
    assert json.loads((tmp_path / "one" / "mask.json").read_text())["lesions"][0]["hu"] is None


def test_what_there_is_nothing_to_measure_in_is_refused(command, tmp_path):
    with pytest.raises(PairingError, match="there is no such file, folder or store"):
        gather_jobs(tmp_path / "nothing", None, None)
    (tmp_path / "empty").mkdir()
    with pytest.raises(PairingError, match="contains no mask"):
        gather_jobs(tmp_path / "empty", None, None)
    write_nifti(tmp_path / "mask.nii.gz", scan(), SPACING)
    (outcome,) = run(gather_jobs(tmp_path / "mask.nii.gz", None, None), tmp_path / "out")
    assert (outcome.status, "pass --labels" in outcome.reason) == ("failed", True)
    done = command("measure", tmp_path / "mask.nii.gz", "--out", tmp_path)
    assert (done.exit_code, "choose another folder" in done.output) == (1, True)


def test_names_from_files_are_escaped_and_pages_ask_for_nothing(tmp_path):
    name = "<img src=x onerror=alert(1)>&'\""
    write_nifti(tmp_path / f"{name}.nii.gz", scan((2, 6, 6, 12), (6, 6, 6, 3)), SPACING)
    labels = make_labels({"<b>liver": 1, "tumor": 2})
    run(gather_jobs(tmp_path / f"{name}.nii.gz", None, labels), tmp_path / "out")
    for path in (tmp_path / "out" / f"{name}.html", tmp_path / "out" / "report.html"):
        page = path.read_text()
        assert "<img src=x" not in page
        assert "<b>liver" not in page
        assert "default-src 'none'" in page
        assert not re.findall(r"""(?:src|href)=["']?(?:https?:)?//""", page)
    assert "%3Cimg" in (tmp_path / "out" / "report.html").read_text(), "the link leads to the page, whatever its name"


def test_of_many_lesions_the_largest_are_shown_and_the_others_counted(tmp_path):
    label = scan(*((2, y, x, 2) for y in (4, 9, 14, 19) for x in (4, 9, 14, 19)))
    write_nifti(tmp_path / "a.nii.gz", label, SPACING)
    run(gather_jobs(tmp_path / "a.nii.gz", None, LITS_LABELS), tmp_path / "out")
    page = (tmp_path / "out" / "a.html").read_text()
    assert page.count("<figcaption>") == 12
    assert "<p>4 smaller lesions are in the table only.</p>" in page


def test_a_page_of_very_many_cases_has_thumbnails_of_the_first_only(tmp_path, monkeypatch, three_cases):
    run(gather_jobs(three_cases / "scans", None, None), tmp_path / "all")
    monkeypatch.setattr(cohort_page, "MOST_PICTURES", 2)
    run(gather_jobs(three_cases / "scans", None, None), tmp_path / "two")
    pages = [(tmp_path / name / "report.html").read_text() for name in ("all", "two")]
    assert [page.count("data:image/jpeg") for page in pages] == [3, 2]


def test_flags_send_a_person_to_look(tmp_path):
    label = scan((2, 6, 6, 4))
    label[label == 1] = 0
    label[6, 20, 20] = 1
    write_nifti(tmp_path / "a.nii.gz", label, SPACING)
    write_nifti(tmp_path / "b.nii.gz", np.where(label == 1, 0, label), SPACING)
    run(gather_jobs(tmp_path, None, LITS_LABELS), tmp_path / "out")
    assert json.loads((tmp_path / "out" / "a.json").read_text())["flags"] == ["lesion 1 touches no liver"]
    far = flag_far_volumes({str(n): 1500.0 + 20 * n for n in range(6)} | {"far": 300.0})
    assert list(far) == ["far"]
    assert "below the others" in far["far"]


def test_simpleitk_reads_the_segmentation_with_its_place_names_and_colors(tmp_path, rng):
    matrix = np.eye(4)
    matrix[:3, :3] = np.array([[1, 0, 0], [0, 0.96, -0.28], [0, 0.28, 0.96]]) @ np.diag([0.7, 0.8, 2.5])
    matrix[:3, 3] = (-120.5, 33.25, 900)
    label = rng.integers(0, 3, (5, 6, 7)).astype(np.uint8)
    write_segmentation(tmp_path / "a.seg.nrrd", Volume(label=label, labels=LITS_LABELS, affine_lps=matrix))
    image = SimpleITK.ReadImage(str(tmp_path / "a.seg.nrrd"))
    assert np.array_equal(SimpleITK.GetArrayFromImage(image), label)
    for index in ((0, 0, 0), (6, 5, 4), (3, 1, 2)):
        assert np.allclose(image.TransformIndexToPhysicalPoint(index), (matrix @ [*index, 1])[:3], atol=1e-5)
    names = {image.GetMetaData(f"Segment{n}_Name"): image.GetMetaData(f"Segment{n}_LabelValue") for n in (0, 1)}
    assert names == {"liver": "1", "tumor": "2"}
    assert image.GetMetaData("Segment1_Color").split()[0] == "1.000000"
    write_color_table(tmp_path / "colors.ctbl", make_labels({"left lobe\n9 x": 1, "tumor": 2}))
    rows = (tmp_path / "colors.ctbl").read_text().splitlines()
    assert rows[1:] == ["0 background 0 0 0 0", "1 left_lobe_9_x 90 200 255 255", "2 tumor 255 70 70 255"]


def test_two_masks_are_compared_and_the_category_is_called_a_computation(command, tmp_path):
    write_nifti(tmp_path / "first.nii.gz", scan((2, 6, 6, 12)), SPACING)
    write_nifti(tmp_path / "second.nii.gz", scan((2, 6, 6, 6)), SPACING)
    words = (
        tmp_path / "first.nii.gz",
        tmp_path / "second.nii.gz",
        "--labels",
        "liver=1,tumor=2",
        "--out",
        tmp_path / "out",
    )
    done = command("compare", *words)
    assert done.exit_code == 0, done.output
    assert "computed RECIST 1.1 category: PR" in done.output
    assert "not a diagnosis" in done.output
    assert json.loads((tmp_path / "out" / "compare.json").read_text())["lesions"][0]["fate"] == "matched"
    bare = Volume(label=scan(), labels=make_labels({"liver": 1, "spleen": 2}), affine_lps=np.eye(4))
    with pytest.raises(LabelError, match="no label is named tumor"):
        measure_time_point(bare)


def test_beside_a_report_of_infer_a_mask_needs_no_names_and_the_page_names_the_model(tmp_path):
    from slicemill.common.files import write_json

    report = {
        **LITS_LABELS.as_json(),
        "model": "best<1>",
        "model_sha256": "ab" * 32,
        "slice_tumor_scores": [],
        "tumor_confidence": 0.3,
    }
    write_json(tmp_path / "p" / "a.json", report)
    write_nifti(tmp_path / "p" / "a.nii.gz", scan((2, 6, 6, 6)), SPACING)
    for name in ("a_liver", "a_tumor", "a_probability_tumor"):  # what --separate and --probability write beside it
        write_nifti(tmp_path / "p" / f"{name}.nii.gz", np.full((10, 30, 30), 64, np.uint8), SPACING)
    (outcome,) = run(gather_jobs(tmp_path / "p", None, None), tmp_path / "out")
    assert outcome.status == "done", outcome.reason
    record = json.loads((tmp_path / "out" / "a.json").read_text())
    assert record["lesions"][0]["probability_mean"] == pytest.approx(64 / 255, abs=1e-4)
    assert record["flags"] == [
        "mean probability below 0.5 in lesion 1",
        "the mean probability of the tumor voxels is 0.30",
    ]
    assert "best&lt;1&gt;" in (tmp_path / "out" / "a.html").read_text()


def test_a_mask_without_its_scan_is_flagged_and_names_that_collide_are_refused(three_cases):
    (three_cases / "scans" / "volume-2.nii").unlink()
    run(gather_jobs(three_cases / "scans", three_cases / "scans", None), three_cases / "out")
    record = json.loads((three_cases / "out" / "segmentation-2.json").read_text())
    assert record["flags"] == ["no scan of its name was found, so there is no HU"]
    write_nifti(three_cases / "twice" / "a.nii", scan(), SPACING)
    write_nifti(three_cases / "twice" / "a.nii.gz", scan(), SPACING)
    with pytest.raises(PairingError, match="overwrite others of the name a"):
        gather_jobs(three_cases / "twice", None, LITS_LABELS)
    write_nifti(three_cases / "summary.nii", scan(), SPACING)
    with pytest.raises(PairingError, match="of the name summary"):
        gather_jobs(three_cases / "summary.nii", None, LITS_LABELS)


def test_a_process_that_dies_fails_its_cases_and_not_the_run(three_cases):
    (job, *_) = gather_jobs(three_cases / "scans", None, None)
    assert "fewer --workers" in report_crash(job).reason


def test_labels_of_any_name_are_found_in_the_names_of_files_and_a_foreign_json_beside_is_no_report(tmp_path):
    from slicemill.common.files import write_json

    labels = make_labels({"liver": 1, "liver/ tumor": 2})
    report = {**labels.as_json(), "model_sha256": "ab" * 32, "slice_tumor_scores": []}
    write_json(tmp_path / "p" / "a.json", report)
    for name in ("a", "a_liver", "a_liver_tumor_2", "a_probability_liver_tumor_2", "b_c"):
        write_nifti(tmp_path / "p" / f"{name}.nii.gz", scan((2, 6, 6, 6)), SPACING)
    for text in ('{"labels": null}', "[]", "{"):
        (tmp_path / "p" / "b.json").write_text(text)
        assert [job.name for job in gather_jobs(tmp_path / "p", None, None)] == ["a", "b_c"]
    (tmp_path / "p" / "b_c.json").write_text("[]")
    outcomes = run(gather_jobs(tmp_path / "p", None, None), tmp_path / "out")
    assert [outcome.status for outcome in outcomes] == ["done", "failed"]
    assert "the label values have no names" in outcomes[1].reason
    assert json.loads((tmp_path / "out" / "a.json").read_text())["lesions"][0]["probability_max"] == pytest.approx(
        2 / 255, abs=1e-4
    )


def test_a_mask_is_not_measured_in_the_scan_of_another_site(tmp_path):
    for name in ("m/a/001", "m/b/001", "s/b/001", "m/002", "s/c/002"):
        write_nifti(tmp_path / f"{name}.nii.gz", scan(), SPACING)
    jobs = {job.name: job for job in gather_jobs(tmp_path / "m", tmp_path / "s", LITS_LABELS)}
    assert {name: job.image and job.image.parent.name for name, job in jobs.items()} == {
        "002": "c",
        "a/001": None,
        "b/001": "b",
    }
    assert jobs["a/001"].no_scan == "no scan of its name was found"
    assert jobs["b/001"].no_scan == ""


def test_two_scans_that_differ_in_the_suffix_only_are_named_in_the_flag(tmp_path):
    for name in ("m/a.nii.gz", "s/a.nii", "s/a.nii.gz"):
        write_nifti(tmp_path / name, scan(), SPACING)
    (job,) = gather_jobs(tmp_path / "m", tmp_path / "s", LITS_LABELS)
    run([job], tmp_path / "out")
    flags = json.loads((tmp_path / "out" / "a.json").read_text())["flags"]
    assert "several scans have its name (a.nii, a.nii.gz); keep one of them, so there is no HU" in flags


@pytest.mark.parametrize("second", ["site2/a.nii.gz", "site1/a.nii"])
def test_the_record_of_another_mask_with_the_same_name_is_kept(second, tmp_path):
    """Even if both have the same size and time, as a copied or unpacked collection has."""
    first = tmp_path / "site1" / "a.nii.gz"
    write_nifti(first, scan((2, 6, 6, 6)), SPACING)
    out = tmp_path / "out"
    (outcome,) = run([file_job(first, None, LITS_LABELS)], out)
    before = (out / "a.json").read_bytes()
    other = tmp_path / second
    other.parent.mkdir(exist_ok=True)
    other.write_bytes(first.read_bytes() if second.endswith(".gz") else gzip.decompress(first.read_bytes()))
    os.utime(other, ns=(first.stat().st_atime_ns, first.stat().st_mtime_ns))
    (outcome,) = run([file_job(other, None, LITS_LABELS)], out)
    assert outcome.status == "failed"
    assert "a.json: is the record of another mask than" in outcome.reason
    assert "--overwrite" in outcome.reason
    assert (out / "a.json").read_bytes() == before
    assert [one.status for one in run([file_job(other, None, LITS_LABELS)], out, overwrite=True)] == ["done"]
    assert json.loads((out / "a.json").read_text())["source"]["mask"]["name"] == other.name


def test_a_record_of_an_older_version_is_measured_again(tmp_path):
    write_nifti(tmp_path / "m" / "a.nii.gz", scan((2, 6, 6, 6)), SPACING)
    (job,) = gather_jobs(tmp_path / "m", None, LITS_LABELS)
    run([job], tmp_path / "out")
    path = tmp_path / "out" / "a.json"
    record = json.loads(path.read_text())
    del record["stamp"]["source"]
    path.write_text(json.dumps(record))
    assert [outcome.status for outcome in run([job], tmp_path / "out")] == ["done"]
    assert json.loads(path.read_text())["stamp"]["source"] == job.source_id


def test_a_pair_whose_image_file_changed_is_measured_again(tmp_path):
    import nibabel

    (tmp_path / "p").mkdir()
    nibabel.save(nibabel.Nifti1Pair(scan((2, 6, 6, 6)).T, np.eye(4)), tmp_path / "p" / "x.hdr")
    jobs = gather_jobs(tmp_path / "p", None, LITS_LABELS)
    assert [outcome.status for outcome in run(jobs, tmp_path / "out")] == ["done"]
    image = tmp_path / "p" / "x.img"
    image.write_bytes(bytes(image.stat().st_size))
    assert [outcome.status for outcome in run(jobs, tmp_path / "out")] == ["done"]
    assert json.loads((tmp_path / "out" / "x.json").read_text())["lesion_count"] == 0


def test_labels_of_the_user_precede_those_of_the_report_and_those_precede_the_name(tmp_path):
    from slicemill.common.files import write_json

    write_json(tmp_path / "dataset.json", {"labels": {"0": "background", "1": "liver", "2": "tumor"}})
    write_nifti(tmp_path / "segmentation-1.nii.gz", scan((2, 6, 6, 6)), SPACING)
    (job,) = gather_jobs(tmp_path, None, None)
    assert load_case(job).volume.labels == LITS_LABELS
    report = make_labels({"tumor": 1, "vessel": 2}).as_json() | {"model_sha256": "ab" * 32, "slice_tumor_scores": []}
    before = job.stamp()
    write_json(tmp_path / "segmentation-1.json", report)
    assert load_case(job).volume.labels == make_labels({"tumor": 1, "vessel": 2})
    assert job.stamp() != before, "other labels, other figures"
    (job,) = gather_jobs(tmp_path, None, make_labels({"lobe": 1, "tumor": 2}))
    assert load_case(job).volume.labels.organ == "lobe"


def test_a_segmentation_of_3d_slicer_is_not_measured_under_swapped_names(command, tmp_path):
    volume = Volume(label=scan((2, 6, 6, 6)), affine_lps=np.eye(4), labels=make_labels({"Liver": 1, "tumor": 2}))
    write_segmentation(tmp_path / "m" / "a.seg.nrrd", volume)
    swapped = make_labels({"tumor": 1, "liver": 2})
    (outcome,) = run(gather_jobs(tmp_path / "m", None, swapped), tmp_path / "out")
    assert outcome.status == "failed"
    assert "its segment 'Liver' has the label value 1, but the labels say 2" in outcome.reason
    (outcome,) = run(gather_jobs(tmp_path / "m", None, LITS_LABELS), tmp_path / "out")
    assert outcome.status == "done"
    done = command("compare", *[tmp_path / "m" / "a.seg.nrrd"] * 2, "--labels", "tumor=1,liver=2")
    assert (done.exit_code, "its segment 'Liver'" in done.output) == (1, True)


def test_a_time_point_may_have_any_name(command, tmp_path):
    write_nifti(tmp_path / "report.nii.gz", scan((2, 6, 6, 6)), SPACING)
    done = command("compare", *[tmp_path / "report.nii.gz"] * 2, "--labels", "liver=1,tumor=2")
    assert done.exit_code == 0, done.output


def test_files_of_others_are_never_replaced(command, tmp_path):
    for name in ("m/a", "m/b", "m/c"):
        write_nifti(tmp_path / f"{name}.nii.gz", scan((2, 6, 6, 6)), SPACING)
    out = tmp_path / "out"
    out.mkdir()
    (out / "a.json").write_text('{"SeriesInstanceUID": "1.2.3"}')
    (out / "b.png").write_bytes(b"mine")
    outcomes = run(gather_jobs(tmp_path / "m", None, LITS_LABELS), out, overwrite=True)
    assert [outcome.status for outcome in outcomes] == ["failed", "failed", "done"]
    assert "a.json: was not written by slicemill measure" in outcomes[0].reason
    assert (out / "a.json").read_text() == '{"SeriesInstanceUID": "1.2.3"}'
    assert (out / "b.png").read_bytes() == b"mine"
    assert not (out / "b.json").exists()
    (out / "summary.json").write_text('{"slices": 3}')
    with pytest.raises(PairingError, match=r"summary.json: was not written by"):
        run(gather_jobs(tmp_path / "m", None, LITS_LABELS), out)
    (tmp_path / "ct").mkdir()
    words = (tmp_path / "m", "--image", tmp_path / "ct", "--out", tmp_path / "ct", "--labels", "liver=1,tumor=2")
    done = command("measure", *words)
    assert (done.exit_code, "choose another folder" in done.output) == (1, True)


def test_what_a_killed_run_has_left_of_a_case_is_done_again(tmp_path, monkeypatch):
    from slicemill.measure.lesions import run as module

    def killed(*_):
        raise KeyboardInterrupt

    write_nifti(tmp_path / "m" / "a.nii.gz", scan((2, 6, 6, 6)), SPACING)
    with monkeypatch.context() as patch:
        patch.setattr(module, "write_segmentation", killed)
        with pytest.raises(KeyboardInterrupt):
            run(gather_jobs(tmp_path / "m", None, LITS_LABELS), tmp_path / "out")
    assert (tmp_path / "out" / "a.html").exists()
    assert [one.status for one in run(gather_jobs(tmp_path / "m", None, LITS_LABELS), tmp_path / "out")] == ["done"]
    assert json.loads((tmp_path / "out" / "a.json").read_text())["lesion_count"] == 1


def test_files_that_are_left_out_because_of_their_names_are_reported(command, tmp_path):
    for name in ("p1_label", "p1_ct", "p2", "p3"):
        write_nifti(tmp_path / "m" / f"{name}.nii.gz", scan(), SPACING)
    done = command("measure", tmp_path / "m", "--out", tmp_path / "out", "--labels", "liver=1,tumor=2")
    assert "1 case: 1 done" in done.output
    assert re.findall(r"left out: \S*/(\w+)\.nii", done.output.replace("\n", "")) == ["p2", "p3"]
    (tmp_path / "m" / "p1_label.nii.gz").unlink()
    assert "left out" not in command("measure", tmp_path / "m", "--out", tmp_path / "o", "--labels", "liver=1").output


@pytest.mark.parametrize(
    ("fields", "found"),
    [
        ({"mean_tumor_probability": 0.7, "tumor_score": 0.9, "tumor_found": True}, (0.7, None)),
        ({"tumor_confidence": 0.7, "tumor_score": 0.9, "tumor_found": True}, (0.7, None)),
        ({"tumor_confidence": 0.17, "tumor_score": 0.83, "tumor_found": False}, (None, 0.83)),
        ({"mean_tumor_probability": None, "tumor_score": 0.83, "tumor_found": False}, (None, 0.83)),
        ({"mean_tumor_probability": "1", "tumor_score": []}, (None, None)),
    ],
)
def test_the_probability_of_tumor_is_read_from_new_and_old_reports(fields, found, tmp_path):
    from slicemill.common.files import write_json

    write_json(tmp_path / "a.json", {"model": "m", "model_sha256": "0", "slice_tumor_scores": None, **fields})
    used = read_report(tmp_path / "a.nii.gz").model
    assert (used.mean_tumor_probability, used.removed_tumor_score) == found


@pytest.mark.parametrize("changed", ["m/a.nii", "s/a.nii"])
def test_a_file_that_is_replaced_while_it_is_read_fails_its_case_and_the_next_run_measures_it(
    changed, tmp_path, monkeypatch
):
    """A copy over an uncompressed file changes it under its reader, which may read half of each."""
    for name in ("m/a.nii", "s/a.nii"):
        write_nifti(tmp_path / name, scan((2, 6, 6, 6)), SPACING)
    jobs = gather_jobs(tmp_path / "m", tmp_path / "s", LITS_LABELS)
    check = load_module.check_values

    def replace_file(*arguments):
        write_nifti(tmp_path / changed, scan((1, 4, 4, 4)), SPACING)
        return check(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(load_module, "check_values", replace_file)
        (outcome,) = run(jobs, tmp_path / "out")
    assert outcome.status == "failed"
    assert outcome.reason == f"{tmp_path / changed}: changed while it was read. Run the same command again."
    assert [one.status for one in run(jobs, tmp_path / "out")] == ["done"]
