"""A model that stays open: results lie on their scan, whatever the scan is, and equal those of the command."""

import json
import shutil

import nibabel as nib
import numpy as np
import pytest
import SimpleITK
from typer.testing import CliRunner

import slicemill
from slicemill.cli import commands
from slicemill.common.documents import to_document
from slicemill.common.errors import ConfigError, InputError, ModelError, ScanError, UsageError
from slicemill.common.files import to_json
from slicemill.infer.run.options import InferOptions
from slicemill.infer.run.pipeline import infer
from slicemill.train.export.graph import Flavor
from slicemill.train.export.model_file import export
from tests.contents import content


@pytest.fixture(scope="module")
def opened(model):
    return slicemill.Model(model, provider="cpu")


@pytest.fixture(scope="module")
def scan(collection):
    """A scan whose axes are not those of the store."""
    return next(
        path
        for path in sorted(collection.glob("volume-*"))
        if "".join(nib.aff2axcodes(nib.load(path).affine)) not in ("LPS", "RAS")
    )


def test_the_result_is_that_of_the_command(opened, model, collection, scan, tmp_path):
    from slicemill.infer.inputs.gather import gather
    from slicemill.infer.network.model import open_model

    infer(open_model(model, "cpu"), gather([str(scan)])[0], tmp_path / "out", InferOptions())
    result = opened.segment(scan)
    saved = result.save(tmp_path / "mine" / scan.name)
    mask = tmp_path / "out" / scan.name
    assert np.array_equal(nib.load(saved).dataobj, nib.load(mask).dataobj)
    assert nib.load(saved).header == nib.load(mask).header
    report = json.loads(next((tmp_path / "out").glob("volume*.json")).read_text())
    short = slicemill.segment(scan, model, provider="cpu")
    assert json.loads(to_json(to_document(short.report))) == report
    assert np.array_equal(short.label, result.label)
    assert result.report.answer in repr(result)


def test_a_result_lies_on_its_scan(opened, scan):
    image = nib.load(scan)
    result = opened.segment(scan)
    assert result.label.shape == image.shape
    assert result.label.dtype == np.uint8
    assert np.allclose(result.affine, image.affine, atol=1e-5)
    assert result.axes == "xyz-ras"
    as_image = result.to_nibabel()
    assert np.array_equal(as_image.dataobj, result.label)
    assert np.allclose(as_image.affine, image.affine)
    # nibabel is the oracle of the LPS+ order: RAS+ with x and y reversed, and the axes reversed
    canonical = nib.as_closest_canonical(as_image)
    assert np.array_equal(np.asarray(canonical.dataobj)[::-1, ::-1].T, result.label_lps)
    corner = result.affine_lps @ (0, 0, 0, 1)
    in_ras = canonical.affine @ (canonical.shape[0] - 1, canonical.shape[1] - 1, 0, 1)
    assert np.allclose(corner * (-1, -1, 1, 1), in_ras, atol=1e-3)
    assert result.labels == {"liver": 1, "tumor": 2}
    assert result.lesions == result.report.lesions


def test_every_kind_of_scan_has_the_same_labels(opened, scan, stored, tmp_path):
    image, itk = nib.load(scan), SimpleITK.ReadImage(str(scan))
    expected = opened.segment(scan)
    hu = np.asarray(image.dataobj)
    results = {
        "nibabel": opened.segment(image),
        "SimpleITK": opened.segment(itk),
        "array": opened.segment(hu, affine=image.affine, axes="xyz-ras"),
        "case": opened.segment(slicemill.open_store(stored)[scan.name.split(".")[0]]),
    }
    for kind, result in results.items():
        assert np.array_equal(result.label_lps, expected.label_lps), kind
        assert np.allclose(result.affine_lps, expected.affine_lps, atol=1e-4), kind
        saved = nib.load(result.save(tmp_path / f"{kind}.nii.gz"))
        assert np.array_equal(saved.dataobj, expected.label), kind
        assert np.allclose(saved.affine, image.affine, atol=1e-4), kind
        assert np.array_equal(saved.dataobj, result.to_nibabel().dataobj), kind
        assert result.to_nibabel().header["descrip"] == saved.header["descrip"] != b"", kind
    assert results["SimpleITK"].label.shape == SimpleITK.GetArrayViewFromImage(itk).shape
    assert np.array_equal(results["SimpleITK"].label, expected.label.T)
    assert np.array_equal(results["array"].label, expected.label)
    assert np.array_equal(results["case"].label, expected.label_lps)
    assert np.allclose(results["case"].affine, results["case"].affine_lps)


def test_many_scans_come_one_by_one_with_their_progress(opened, collection):
    paths, seen, read = sorted(collection.glob("volume-*"))[:3], [], []

    def scans():
        for path in paths:
            read.append(path)
            yield path

    results = opened.segment_many(scans(), progress=lambda index, share: seen.append((index, share)))
    assert next(results).report.scan == paths[0].name
    assert read == paths[:1]
    assert [result.report.scan for result in results] == [path.name for path in paths[1:]]
    assert seen == sorted(seen)
    assert [max(share for index, share in seen if index == number) for number in range(3)] == [1, 1, 1]
    assert min(share for _, share in seen) > 0


def test_a_bad_scan_ends_the_iteration_or_is_returned(opened, collection, tmp_path):
    bad, good = tmp_path / "bad.nii", next(collection.glob("volume-*"))
    bad.write_bytes(b"nothing")
    with pytest.raises(ScanError, match=r"bad\.nii: is not a NIfTI file"):
        list(opened.segment_many([bad, good]))
    first, second = opened.segment_many([bad, good], errors="return")
    assert isinstance(first, InputError)
    assert second.report.scan == good.name


def test_a_result_never_replaces_its_scan_and_needs_a_nifti_name(opened, scan, tmp_path):
    copy = tmp_path / scan.name
    shutil.copy(scan, copy)
    before = copy.read_bytes()
    for one in (copy, nib.load(copy)):
        with pytest.raises(UsageError, match="is the scan itself"):
            opened.segment(one).save(copy)
    for name in ("label.nrrd", "label", "label.nii.zip"):
        with pytest.raises(UsageError, match=r"ends in \.nii or \.nii\.gz"):
            opened.segment(copy).save(tmp_path / name)
    assert copy.read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == [copy.name]


@pytest.mark.slow
def test_probabilities_are_there_where_the_model_has_them(opened, trained, scan, tmp_path):
    plain = opened.segment(scan)
    assert plain.probability is None
    export(trained, tmp_path / "p.onnx", flavors=[Flavor(probability=True)])
    result = slicemill.Model(tmp_path / "p.onnx", provider="cpu").segment(scan)
    assert list(result.probability) == ["background", "liver", "tumor"]
    total = sum(map_.astype(int) for map_ in result.probability.values())
    assert abs(total - 255).max() <= 2
    assert result.probability["tumor"].shape == nib.load(scan).shape
    assert np.array_equal(result.probability["tumor"], result.tumor_probability)
    assert np.array_equal(result.label, plain.label)
    without = slicemill.Model(tmp_path / "p.onnx", provider="cpu", probability=False).segment(scan)
    assert without.probability is None
    assert np.array_equal(without.label, plain.label)


def test_a_model_says_what_it_is(opened, model):
    assert repr(opened) == f"<model {model.name} on cpu: liver, tumor>"
    assert opened.provider == "cpu"
    assert opened.labels.tumor == "tumor"
    assert opened.card.context == 3


def test_a_model_is_refused_when_it_is_opened(model, tmp_path):
    with pytest.raises(ModelError, match="cannot be read"):
        slicemill.Model(tmp_path / "none.onnx")
    with pytest.raises(ConfigError, match="outputs no probabilities"):
        slicemill.Model(model, provider="cpu", probability=True)
    with pytest.raises(ConfigError, match="outputs no probabilities"):
        slicemill.Model(model, provider="cpu", mirror=True)
    with pytest.raises(UsageError, match="gpu"):
        slicemill.Model(model, provider="gpu")


def test_warnings_are_in_the_report_and_strict_refuses_them(opened, model, scan):
    image = nib.load(scan)
    hu = np.clip(np.asarray(image.dataobj).astype(int) + 1024, 0, None).astype(np.int16)  # without the intercept
    raw = nib.Nifti1Image(hu, image.affine)
    assert any("no HU below 0" in warning for warning in opened.segment(raw).report.warnings)
    strict = slicemill.Model(model, provider="cpu", strict=True)
    for words in ({"scan": raw}, {"scan": hu, "affine": image.affine, "axes": "xyz-ras"}):
        with pytest.raises(ScanError, match="--strict refuses a scan with warnings: .*no HU below 0"):
            strict.segment(**words)


def test_segmentation_in_bulk_writes_what_the_command_writes(model, collection, tmp_path, capsys):
    scans = [next(collection.glob(f"volume-{number}.nii*")) for number in (0, 1)]
    (tmp_path / "broken.nii").write_text("garbage")
    summary = slicemill.infer_scans(model, [*scans, str(tmp_path / "broken.nii")], tmp_path / "out", provider="cpu")
    assert (summary.count("done"), summary.count("failed")) == (2, 1)
    assert [one.name.rpartition("/")[2] for one in summary.failures] == ["broken.nii"]
    assert capsys.readouterr().out == ""
    words = ["infer", model, *scans, tmp_path / "broken.nii", "--out", tmp_path / "command", "--provider", "cpu"]
    assert CliRunner().invoke(commands(), list(map(str, words))).exit_code == 1
    files = {path.relative_to(tmp_path / "out") for path in (tmp_path / "out").rglob("volume-*.nii*")}
    assert len(files) == 2
    for file in files:
        assert content(tmp_path / "out" / file) == content(tmp_path / "command" / file)
    again = slicemill.infer_scans(model, [*map(str, scans), tmp_path / "broken.nii"], str(tmp_path / "out"))
    assert (again.count("skipped"), again.count("failed")) == (2, 1)


def test_segmentation_in_bulk_refuses_what_the_command_refuses(model, tmp_path):
    with pytest.raises(ScanError, match="there is no such file or folder"):
        slicemill.infer_scans(model, tmp_path / "none", tmp_path / "out")
    with pytest.raises(UsageError, match="pass scans, folders, patterns or stores"):
        slicemill.infer_scans(model, [], tmp_path / "out")
    with pytest.raises(UsageError, match="--device 0,1: cpu runs on one device"):
        slicemill.infer_scans(model, tmp_path, tmp_path / "out", provider="cpu", devices=(0, 1))
    assert not (tmp_path / "out").exists()


def test_the_short_form_takes_an_array(model, opened, rng):
    hu = rng.integers(-1000, 500, (3, 64, 64), dtype=np.int16)
    result = slicemill.segment(hu, model, provider="cpu", spacing=(5, 1, 1), axes="zyx-lps")
    assert np.array_equal(result.label, opened.segment(hu, spacing=(5, 1, 1), axes="zyx-lps").label)
