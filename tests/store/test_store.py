"""The store on disk, read by three programs that no one here wrote."""

import functools
import json
import shutil
import threading
from pathlib import Path

import numpy as np
import pytest
import tensorstore
import zarr

from slicemill.common.errors import StoreError
from slicemill.common.locks import try_claim
from slicemill.ct.labels import LITS_LABELS
from slicemill.ct.window import AIR_HU
from slicemill.ingest.discover import discover
from slicemill.ingest.params import Params
from slicemill.ingest.pipeline import IngestOptions, ingest
from slicemill.store import shard_reader
from slicemill.store.codecs import make_codec, with_checksum
from slicemill.store.layout import ARRAY_PATHS, FORMAT
from slicemill.store.ome_zarr import describe_image
from slicemill.store.reader import SliceArray, open_store
from slicemill.store.writer import CaseWriter, prepare_store, remove_partial
from slicemill.store.zarr_documents import make_array_document

HERE = Path(__file__).parents[2]


@pytest.fixture
def copy(stored, tmp_path):
    """A copy of the store that a test may damage."""
    return shutil.copytree(stored, tmp_path / "copy")


def arrays(store):
    for case in open_store(store).values():
        for name, array in (("image", case.image), ("label", case.label)):
            yield case.info.case_id, name, array


def test_zarr_python_reads_every_voxel_that_our_reader_reads(stored):
    group = zarr.open_group(stored / "scans.zarr", mode="r")
    assert sorted(group.group_keys()) == sorted(open_store(stored).case_ids)
    for case_id, name, array in arrays(stored):
        assert array.profile == "compact"
        assert np.array_equal(group[case_id][ARRAY_PATHS[FORMAT][name]][:], array[:])


@pytest.fixture(scope="module")
def fast(collection, tmp_path_factory):
    """The store of the collection in the fast profile."""
    store = tmp_path_factory.mktemp("fast") / "store"
    params = Params(labels=LITS_LABELS, profile="fast")
    assert ingest(discover(collection), store, params, IngestOptions(workers=1)).count("done") == 6
    return store


@pytest.mark.parametrize("profile", ["compact", "fast"])
def test_zarr_python_zarrs_and_tensorstore_read_the_same_bits(profile, stored, fast):
    store = stored if profile == "compact" else fast
    for (case_id, name, array), (_, _, reference) in zip(arrays(store), arrays(stored), strict=True):
        assert array.profile == profile
        ours = array[:]
        assert np.array_equal(ours, reference[:])
        path = str(store / "scans.zarr" / case_id / ARRAY_PATHS[FORMAT][name])
        assert np.array_equal(zarr.open_array(path, mode="r")[:], ours)
        with zarr.config.set({"codec_pipeline.path": "zarrs.ZarrsCodecPipeline", "codec_pipeline.strict": True}):
            read_by_zarrs = zarr.open_array(path, mode="r")
            assert type(read_by_zarrs.async_array.codec_pipeline).__name__ == "ZarrsCodecPipeline"
            assert np.array_equal(read_by_zarrs[:], ours)
        other = tensorstore.open({"driver": "zarr3", "kvstore": {"driver": "file", "path": path}}, open=True).result()
        assert np.array_equal(other.read().result(), ours)


def test_neighbors_are_adjacent_in_the_shard_in_ascending_or_descending_order(stored):
    directions = set()
    for _, _, array in arrays(stored):
        offsets = np.array([offset for offset, _ in array.shard.entries])
        steps = np.sign(np.diff(offsets))
        assert (steps == steps[0]).all()
        directions.add(int(steps[0]))
    assert directions == {-1, 1}


def test_a_case_with_a_mask_is_seven_files(stored):
    for case_id in open_store(stored).case_ids:
        assert sum(path.is_file() for path in (stored / "scans.zarr" / case_id).rglob("*")) == 7


def test_zarr_python_itself_writes_the_same_document(tmp_path):
    from zarr.codecs import BloscCodec, Crc32cCodec

    zarr.create_array(
        tmp_path / "a",
        shape=(5, 8, 9),
        chunks=(1, 8, 9),
        shards=(5, 8, 9),
        dtype="int16",
        fill_value=AIR_HU,
        dimension_names=("z", "y", "x"),
        compressors=[
            BloscCodec(typesize=2, cname="zstd", clevel=1, shuffle="bitshuffle", blocksize=144),
            Crc32cCodec(),
        ],
    )
    assert json.loads((tmp_path / "a" / "zarr.json").read_text()) == make_array_document("image", (5, 8, 9))


def test_another_valid_layout_is_read_through_zarr_python(copy):
    case = copy / "scans.zarr" / "volume-1" / "image"
    voxels = open_store(copy)["volume-1"].image[:]
    shutil.rmtree(case)
    zarr.create_array(case, data=voxels, chunks=(7, 16, 16))
    array = open_store(copy)["volume-1"].image
    assert array.profile is None
    assert np.array_equal(array[:], voxels)


def test_a_slice_can_be_read_into_the_callers_buffer_by_negative_index_and_by_range(stored):
    image = open_store(stored)["volume-0"].image
    out = np.empty(image.shape[1:], np.int16)
    assert image.read(3, out) is out
    assert np.array_equal(out, image[3])
    assert np.array_equal(image[-1], image[len(image) - 1])
    assert np.array_equal(image[2:8:3], np.stack([image[2], image[5]]))
    with pytest.raises(IndexError, match="slice 999"):
        image[999]


@pytest.mark.parametrize("array", ["image", "label"])
def test_a_flipped_bit_anywhere_in_a_shard_is_found(copy, array, rng):
    shard = copy / "scans.zarr" / "volume-2" / ARRAY_PATHS[FORMAT][array] / "c" / "0" / "0" / "0"
    whole = shard.read_bytes()
    for place in rng.integers(0, len(whole), 40):
        damaged = bytearray(whole)
        damaged[place] ^= 1 << int(rng.integers(8))
        shard.write_bytes(damaged)
        with pytest.raises(StoreError, match="checksum does not match"):
            getattr(open_store(copy)["volume-2"], array)[:]


def test_a_truncated_or_missing_shard_is_named(copy):
    shard = copy / "scans.zarr" / "volume-2" / "image" / "c" / "0" / "0" / "0"
    shard.write_bytes(shard.read_bytes()[:100])
    with pytest.raises(StoreError, match=r"volume-2.*truncated"):
        open_store(copy)["volume-2"].image[0]
    shard.unlink()
    with pytest.raises(StoreError, match=r"volume-2.*No such file"):
        open_store(copy)["volume-2"].image[0]


def test_an_index_that_points_outside_is_refused(tmp_path):
    folder = tmp_path / "image"
    (folder / "c/0/0").mkdir(parents=True)
    (folder / "zarr.json").write_text(json.dumps(make_array_document("image", (1, 4, 4))))
    (folder / "c/0/0/0").write_bytes(with_checksum(np.array([[0, 2**63]], "<u8").tobytes()))
    with pytest.raises(StoreError, match="points outside"):
        SliceArray(folder, "image")[0]


def test_a_case_that_was_not_finished_is_not_there(tmp_path):
    store = prepare_store(tmp_path / "store")
    with CaseWriter(store, "half", (2, 4, 4), has_mask=False) as writer:
        writer.write("image", 0, np.zeros((1, 4, 4), np.int16))
        assert len(list((store / ".partial").iterdir())) == 1
    assert open_store(store).case_ids == []
    assert list((store / ".partial").iterdir()) == []


def test_a_case_with_a_slice_missing_cannot_be_finished(tmp_path, stored):
    info = open_store(stored)["volume-0"].info
    store = prepare_store(tmp_path / "store")
    with CaseWriter(store, "half", (2, 4, 4), has_mask=False) as writer:
        writer.write("image", 0, np.zeros((1, 4, 4), np.int16))
        with pytest.raises(StoreError, match="1 slices were never written, the first at z=1"):
            writer.finish(info)


def test_what_a_killed_process_left_is_removed_and_what_a_live_one_writes_is_kept(tmp_path):
    store = prepare_store(tmp_path / "store")
    for case_id in ("alive", "dead"):
        (store / ".partial" / f"{case_id}.0123456789ab").mkdir(parents=True)
    with try_claim(store, "alive") as ours:
        assert ours
        remove_partial(store)
    assert [folder.name for folder in (store / ".partial").iterdir()] == ["alive.0123456789ab"]


def test_a_case_that_was_being_replaced_when_its_run_was_killed_is_put_back(copy):
    old = copy / ".partial" / "volume-1.0123456789ab.old"
    (copy / "scans.zarr" / "volume-1").rename(old)
    assert "volume-1" not in open_store(copy).case_ids
    remove_partial(copy)
    assert "volume-1" in open_store(copy).case_ids


def test_a_chunk_that_decodes_to_another_size_is_refused(tmp_path):
    for name, dtype in (("image", np.int16), ("label", np.uint8)):
        encode = make_codec("compact", name, 4).encode
        folder = tmp_path / name
        (folder / "c/0/0").mkdir(parents=True)
        (folder / "zarr.json").write_text(json.dumps(make_array_document(name, (1, 16, 16))))
        chunk = with_checksum(encode(np.ones((2, 2), dtype)))
        (folder / "c/0/0/0").write_bytes(chunk + with_checksum(np.array([[0, len(chunk)]], "<u8").tobytes()))
        with pytest.raises(StoreError, match=r"is not a (blosc|zstd) chunk of"):
            SliceArray(folder, name)[0]


def test_many_threads_read_more_shards_than_stay_open(stored, monkeypatch):
    monkeypatch.setattr(shard_reader, "_open_file", functools.lru_cache(maxsize=2)(shard_reader._open_for))
    expected = [array[:] for _, _, array in arrays(stored)]
    shared = [array for _, _, array in arrays(stored)]
    wrong = []

    def read(seed):
        rng = np.random.default_rng(seed)
        for _ in range(400):
            chosen = int(rng.integers(len(shared)))
            z = int(rng.integers(len(shared[chosen])))
            try:
                if not np.array_equal(shared[chosen].read(z), expected[chosen][z]):
                    wrong.append("voxels")
            except StoreError as error:
                wrong.append(str(error))

    threads = [threading.Thread(target=read, args=(seed,)) for seed in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_a_slice_that_another_writer_left_out_is_its_fill_value(copy):
    case = copy / "scans.zarr" / "volume-1" / "labels/segmentation/0"
    shape = open_store(copy)["volume-1"].label.shape
    document = json.loads((case / "zarr.json").read_text())
    shutil.rmtree(case)
    from zarr.codecs import Crc32cCodec, ZstdCodec

    voxels = np.zeros(shape, np.uint8)
    voxels[3] = 1
    array = zarr.create_array(
        case,
        shape=shape,
        chunks=(1, *shape[1:]),
        shards=shape,
        dtype="uint8",
        fill_value=0,
        compressors=[ZstdCodec(level=1), Crc32cCodec()],
    )
    array[:] = voxels
    label = open_store(copy)["volume-1"].label
    assert (label.profile is not None) == (json.loads((case / "zarr.json").read_text())["codecs"] == document["codecs"])
    assert np.array_equal(label[:], voxels)


LESION = {
    "id": 1,
    "voxels": 2**70,
    "volume_ml": 1,
    "centroid_lps_mm": [0, 0, 0],
    "bbox_zyx": [0, 0, 0, 1, 1, 1],
    "key_z": 0,
    "max_axial_diameter_mm": 1,
}


@pytest.mark.parametrize(
    ("damage", "why"),
    [
        ({"attributes": []}, "store format None"),
        ({"attributes": {"slicemill": "x"}}, "Expected `object`, got `str`"),
        ({"affine_lps": "abc"}, r"\$\.affine_lps"),
        ({"affine_lps": [1, 2]}, r"length 4, got 2 - at `\$\.affine_lps`"),
        ({"slice_stats": {}}, r"missing required field `hu_min` - at `\$\.slice_stats`"),
        ({"slice_stats": {"hu_min": [], "hu_max": [], "voxels": {}}}, r"but statistics of \[0\] slices"),
        ({"slice_stats": {"hu_min": [2**63], "hu_max": [], "voxels": {}}}, r"\$\.slice_stats\.hu_min\[0\]"),
        ({"spacing_mm": 3}, r"\$\.spacing_mm"),
        ({"spacing_mm": ["a", "b", "c"]}, r"\$\.spacing_mm\[0\]"),
        ({"patient_id": 7}, r"Expected `str`, got `int` - at `\$\.patient_id`"),
        ({"labels": {"liver": 256}}, "label liver=256"),
        ({"warnings": [{}]}, r"\$\.warnings\[0\]"),
        ({"case_id": "/etc"}, "belong to case '/etc'"),
        ({"case_id": "volume-2"}, "belong to case 'volume-2'"),
        ({"lesions": [{"id": 1}]}, r"missing required field `voxels` - at `\$\.lesions\[0\]`"),
        ({"lesions": [LESION]}, "a number of lesion 1 is out of range"),
        (
            {"source": {"image": {"name": [], "bytes": 1, "sha256": "", "header_b64": 7}, "mask": None}},
            r"\$\.source\.image\.name",
        ),
    ],
)
def test_a_damaged_group_document_is_one_error_that_names_the_case_and_the_place(damage, why, copy):
    path = copy / "scans.zarr" / "volume-1" / "zarr.json"
    document = json.loads(path.read_text())
    if "attributes" in damage:
        document |= damage
    else:
        document["attributes"]["slicemill"] |= damage
    path.write_text(json.dumps(document))
    with pytest.raises(StoreError, match=f"volume-1.*{why}.*[Ii]ngest"):
        open_store(copy)["volume-1"]


def test_a_shape_that_the_shard_cannot_hold_takes_no_memory(copy):
    folder = copy / "scans.zarr" / "volume-1"
    for name, path in ARRAY_PATHS[FORMAT].items():
        (folder / path / "zarr.json").write_text(json.dumps(make_array_document(name, (10**11, 64, 64))))
    with pytest.raises(StoreError, match="cannot hold the index of 100000000000 slices"):
        SliceArray(folder / "image", "image")[:]


@pytest.mark.parametrize("case_id", ["", "zarr.json", ".hidden", "__x", "a/b", "a\nb", "x" * 121])
def test_a_case_id_that_cannot_be_a_folder_is_refused(case_id, tmp_path):
    with pytest.raises(StoreError, match="case id"):
        CaseWriter(prepare_store(tmp_path / "s"), case_id, (1, 2, 2), has_mask=False)


def test_a_store_that_is_not_there_or_of_another_format_is_one_clear_error(copy, tmp_path):
    with pytest.raises(StoreError, match="is not a slice store"):
        open_store(tmp_path)
    with pytest.raises(StoreError, match=r"has no case 'volume-99'"):
        open_store(copy)["volume-99"]
    document = copy / "scans.zarr" / "volume-1" / "zarr.json"
    document.write_text(document.read_text().replace('"format": 2', '"format": 9'))
    with pytest.raises(StoreError, match="store format 9, but this version of slicemill reads the formats 1 to 2"):
        open_store(copy)["volume-1"]
    document.write_text("{")
    with pytest.raises(StoreError, match="cannot be read"):
        open_store(copy)["volume-1"]


def test_the_store_holds_no_absolute_path_and_no_time(stored, collection):
    for document in stored.glob("scans.zarr/*/zarr.json"):
        text = document.read_text()
        assert str(collection) not in text
        assert json.loads(text)["attributes"]["slicemill"]["source"]["image"]["name"].startswith("volume-")


def test_a_case_document_is_written_as_it_was_read(stored):
    for case in open_store(stored).values():
        path = stored / "scans.zarr" / case.info.case_id / "zarr.json"
        attributes = {**describe_image(case.info), "slicemill": case.info.as_json()}
        assert path.read_text() == json.dumps({"zarr_format": 3, "node_type": "group", "attributes": attributes})
