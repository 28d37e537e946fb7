"""The benchmark of DICOM series writes what it says, and ends in a complete record. Rates are not checked."""

import imagecodecs
import numpy as np
import pydicom
import pytest
from typer.testing import CliRunner

from slicemill.bench.cli import bench
from slicemill.bench.harness.dicom_files import JPEG_LOSSLESS, PLAIN, SYNTAXES, fit_stored, write_many, write_series
from slicemill.bench.harness.subject import phantom_subject
from slicemill.bench.records.readme import format_record
from slicemill.bench.stages import ingest_dicom
from slicemill.bench.stages.dicom_peers import (
    PEERS,
    Peer,
    convert_twice,
    describe_tilt,
    is_able,
    measure_ours,
    place,
    write_tilted,
)
from slicemill.bench.stages.ingest_dicom import find_decoder, run
from slicemill.ct.formats.dicom.discover import find_dicom
from slicemill.ct.formats.dicom.lookup import open_series
from slicemill.ct.scan import ScanReader

SPACING = (2.5, 0.8, 0.7)


@pytest.mark.parametrize("syntax", SYNTAXES, ids=lambda one: one.name)
def test_every_series_holds_the_scan_and_its_frames_decode_to_it(syntax, tmp_path):
    image = fit_stored(phantom_subject(5, size=64).image)
    frames = write_series(tmp_path / "series", image, SPACING, syntax)
    with ScanReader(tmp_path / "series", "image") as reader:
        assert np.array_equal(reader.read(), image)
        assert reader.grid.spacing_mm == pytest.approx(SPACING)
    file = pydicom.dcmread(tmp_path / "series" / "IM00002.dcm")
    assert file.file_meta.TransferSyntaxUID == syntax.uid
    assert 80 < len(file) < 140
    if syntax.decoder:
        decoded = find_decoder(syntax)(frames[2])  # bytes of RLE, else an array
        pixels = np.frombuffer(decoded, np.uint16).reshape(64, 64)
        assert np.array_equal(pixels.astype(int) - 1024, image[2])
    else:
        assert len(frames[2]) == image[2].nbytes


def test_numbers_that_12_bits_cannot_hold_are_cut():
    assert fit_stored(np.array([-2000, 0, 5000], np.int16)).tolist() == [-1024, 0, 3071]


def test_many_files_are_series_of_500_slices(tmp_path):
    write_many(tmp_path, 620)
    found = find_dicom(tmp_path)
    assert [len(one.series.planes) for one in found.series] == [500, 120]
    assert not found.left_out
    first = pydicom.dcmread(tmp_path / "series-0002" / "IM00007.dcm")
    assert (first.ImagePositionPatient[2], first.SOPInstanceUID) == (1007.0, "1.2.3.4.2.1007000")


class TestTilt:
    def test_ours_lies_where_the_headers_say(self, tmp_path):
        _, series = write_tilted(tmp_path / "tilted")
        assert any("tilted" in warning or "shear" in warning for warning in open_series(series).warnings)
        assert measure_ours(series).error_mm < 0.01

    def test_a_straight_box_is_measured_as_wrong(self, tmp_path):
        _, series = write_tilted(tmp_path / "tilted")
        grid = open_series(series).grid
        straight = grid.affine_lps.copy()
        straight[:3, 2] = np.cross(straight[:3, 0], straight[:3, 1])
        straight[:3, 2] *= np.linalg.norm(grid.affine_lps[:3, 2]) / np.linalg.norm(straight[:3, 2])
        assert place(straight, grid.shape, series).error_mm > 1

    @pytest.mark.parametrize("peer", PEERS, ids=lambda one: one.name)
    def test_every_peer_is_described(self, peer, tmp_path):
        _, series = write_tilted(tmp_path / "tilted")
        assert describe_tilt(tmp_path, series, peer).startswith(("refused:", "1 file: slices within", "2 files:"))


@pytest.mark.parametrize("peer", PEERS, ids=lambda one: one.name)
def test_every_peer_converts_a_straight_series(peer, tmp_path):
    if peer.name.startswith("dicom2nifti"):
        pytest.importorskip("dicom2nifti")
    subject = phantom_subject(6, size=64)
    write_series(tmp_path / "series", subject.image, SPACING, PLAIN)
    assert is_able(tmp_path, tmp_path / "series", peer)
    convert_twice(tmp_path, tmp_path / "series", peer)
    assert [one.name for one in tmp_path.iterdir()] == ["series"]


def test_a_peer_that_fails_is_not_timed(tmp_path):
    def fail(series, out):
        raise ValueError("no")

    assert not is_able(tmp_path, tmp_path, Peer(name="x", needs="x", convert=fail))
    assert describe_tilt(tmp_path, tmp_path, Peer(name="x", needs="x", convert=fail)) == "refused: ValueError no"


def test_every_codec_of_the_benchmark_is_of_imagecodecs():
    for syntax in SYNTAXES:
        for name in (syntax.encoder, syntax.decoder):
            assert not name or hasattr(imagecodecs, name)


@pytest.mark.slow
def test_the_benchmark_ends_in_a_table(tmp_path, monkeypatch):
    monkeypatch.setattr(ingest_dicom, "MANY_FILES", {True: 30})
    monkeypatch.setattr(ingest_dicom, "LONG", 20)
    monkeypatch.setattr(ingest_dicom, "SYNTAXES", (PLAIN, JPEG_LOSSLESS))
    record = run(tmp_path, phantom_subject(8, size=96), rounds=3, quick=True, memory=True)
    table = format_record(record)
    for name in (PLAIN.name, JPEG_LOSSLESS.name, *(peer.name for peer in PEERS), "Two workers over one"):
        assert name in table
    assert set(record["series"]) == {PLAIN.name, JPEG_LOSSLESS.name}
    for one in record["series"].values():
        assert 0.01 < one["times_nifti"] < 10
        assert one["read_over_codec"] is None or one["read_over_codec"] > 0.3
    assert record["peers"]["ours"] == "1 file: slices within 0.0 mm"
    assert all(one["dask_worker_mib"] > one["alone_mib"] > 30 for one in record["memory"].values())


def test_a_collection_of_lits_size_is_not_written_as_dicom():
    result = CliRunner().invoke(bench, ["ingest", "--format", "dicom", "--scale", "lits"])
    assert result.exit_code == 2
    assert "--format dicom measures one case" in " ".join(result.output.split())
