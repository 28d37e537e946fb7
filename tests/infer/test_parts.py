"""Tiling, post-processing, inputs, models and providers, each by itself."""

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from slicemill.common.errors import ModelError, ProviderError, ScanError, UsageError
from slicemill.infer.inputs.gather import gather
from slicemill.infer.inputs.jobs import load
from slicemill.infer.network.model import EXTERNAL_DATA, Answer, compare, open_model
from slicemill.infer.report import slice_score
from slicemill.infer.runtime import providers
from slicemill.infer.runtime.capacity import Capacity
from slicemill.infer.slices.assembly import Plan
from slicemill.infer.slices.batches import Filler, Scan
from slicemill.infer.slices.tiles import PLAIN, cover, tiles_of


class TestTiling:
    @given(st.integers(1, 700), st.integers(8, 256))
    def test_tiles_cover_every_pixel_once_and_lie_inside_their_side(self, extent, side):
        spans = cover(extent, side)
        taken = [pixel for span in spans for pixel in range(span.keep_from, span.keep_to)]
        assert taken == list(range(extent))
        for span in spans:
            assert span.start <= span.keep_from
            assert span.keep_to <= span.start + side
            if extent > side:
                assert 0 <= span.start <= extent - side

    @given(
        st.lists(st.tuples(st.integers(1, 9), st.integers(1, 40), st.integers(1, 40)), min_size=1, max_size=4),
        st.tuples(st.integers(4, 32), st.integers(4, 32)),
        st.sampled_from([1, 3, 5]),
        st.sampled_from([1.0, 2.6]),
        st.integers(1, 20),
        st.booleans(),
        st.booleans(),
    )
    def test_what_goes_in_comes_out_at_its_place_in_batches_across_scans(
        self, shapes, size, context, step, labels, alike, in_place
    ):
        """A network that says the remainder of what it sees in the middle of its window."""
        shapes = [(z, *size) for z, _, _ in shapes] if alike else shapes
        volumes = [
            np.arange(number, number + np.prod(shape), dtype=np.int64).reshape(shape).astype(np.int16)
            for number, shape in enumerate(shapes)
        ]
        capacity = Capacity(labels, max(context, 2 * labels))
        filler, scans = Filler(capacity), [planned(volume, size, context, step) for volume in volumes]
        for scan in scans:
            filler.add(scan)
        image, whole = np.empty((capacity.rows, *size), np.int16), []
        while filler.waiting:
            batch = filler.next()
            shown = batch.show(image, in_place=in_place)
            assert 1 <= len(batch.units) <= labels
            assert len(set(batch.rows)) == len(batch.rows) == len(shown) <= capacity.rows
            label = (shown[batch.neighbors[:, context // 2]] % 251).astype(np.uint8)
            for place in batch.targets().values() if in_place else ():
                place[:], label = label, place
            whole += batch.put(Answer(label))
        assert sorted(map(id, whole)) == sorted(map(id, scans)), "each scan is whole once"
        for volume, scan in zip(volumes, scans, strict=True):
            assert np.array_equal(scan.canvas.segmented().label, volume % 251)

    def test_slices_that_the_network_takes_as_they_are_are_not_copied(self):
        volume = np.arange(6 * 16, dtype=np.int16).reshape(6, 4, 4)
        room = np.zeros((9, 4, 4), np.int16)
        for size, step, kept in (((4, 4), 1.0, True), ((4, 4), 2.0, False), ((4, 6), 1.0, False)):
            filler, scan = Filler(Capacity(3, 9)), planned(volume, size, 3, step)
            filler.add(scan)
            filler.next()
            batch = filler.next()
            image = batch.show(np.zeros((9, *size), np.int16), in_place=True)
            assert np.shares_memory(image, volume) == kept
            assert np.shares_memory(batch.targets().get("label", room), scan.canvas.segmented().label) == (
                size == (4, 4)
            )
            assert not np.shares_memory(batch.show(np.zeros((9, *size), np.int16)), volume)
        turned = planned(np.moveaxis(np.zeros((4, 4, 6), np.int16), 2, 0), (4, 4), 3, 1.0)
        assert turned.slices(0, 3) is None, "it does not lie slice after slice"

    def test_neighbours_are_the_slices_around_with_edges_repeated(self):
        volume = np.arange(5, dtype=np.int16)[:, None, None] * np.ones((5, 4, 4), np.int16)
        filler = Filler(Capacity(2, 6))
        filler.add(planned(volume, (4, 4), 3, 1.0))
        windows = []
        while filler.waiting:
            batch = filler.next()
            image = np.empty((len(batch.rows), 4, 4), np.int16)
            batch.show(image)
            windows += [image[row][:, 0, 0].tolist() for row in batch.neighbors]
        assert windows == [[0, 0, 1], [0, 1, 2], [1, 2, 3], [2, 3, 4], [3, 4, 4]]

    def test_a_batch_goes_on_in_the_next_scan_and_each_slice_goes_in_once(self):
        filler = Filler(Capacity(4, 12))
        for slices in (3, 1, 4):
            filler.add(planned(np.zeros((slices, 4, 4), np.int16), (4, 4), 3, 1.0))
        sizes = []
        while filler.waiting:
            batch = filler.next()
            sizes.append((len(batch.units), len(batch.rows)))
        assert sizes == [(4, 4), (4, 4)]


def planned(volume, size, context, step):
    """A scan for a network of `size` that knows any label and gives no probability."""
    plan = Plan(
        shape=volume.shape,
        step=step,
        context=context,
        resampling=None,
        views=tiles_of(volume.shape[1:], size),
        table=np.arange(251, dtype=np.uint8),
        tumor=None,
        wanted=("label",),
        manner=PLAIN,
        size=size,
    )
    return Scan(plan, volume)


@given(st.integers(1, 60), st.integers(1, 30), st.sampled_from([0, 1, 3, 255]), st.integers(0, 50))
def test_a_slices_score_is_the_mean_of_its_strongest_voxels(count, side, most, seed):
    rng = np.random.default_rng(seed)
    probability = np.minimum(rng.integers(0, 256, (side, side + 1)), most).astype(np.uint8)
    strongest = np.sort(probability.ravel())[::-1][:count]
    assert slice_score(probability, count) == pytest.approx(strongest.mean() / 255, abs=6e-5)


class TestInputs:
    def test_a_folder_gives_its_scans_and_leaves_out_what_is_named_like_a_mask(self, collection):
        jobs, left_out = gather([collection])
        assert [job.name for job in jobs] == [
            "volume-0.nii",
            "volume-1.nii.gz",
            "volume-2.nii",
            "volume-3.nii",
            "volume-4.nii.gz",
            "volume-5.nii",
        ]
        assert len(left_out) == 6

    def test_a_pattern_and_a_list_of_files_keep_the_tree_that_they_share(self, collection, tmp_path):
        jobs, _ = gather([f"{collection}/volume-[01].*"])
        assert [job.name for job in jobs] == ["volume-0.nii", "volume-1.nii.gz"]
        for folder in ("a", "b"):
            (tmp_path / folder).mkdir()
            (tmp_path / folder / "ct.nii").touch()
        jobs, _ = gather([tmp_path / "a" / "ct.nii", tmp_path / "b" / "ct.nii"])
        assert [job.name for job in jobs] == ["a/ct.nii", "b/ct.nii"]

    def test_a_store_gives_its_cases_as_the_files_they_were(self, stored, collection):
        jobs, _ = gather([stored])
        assert [job.name for job in jobs] == [f"volume-{n}.nii.gz" for n in range(6)]
        from_store = load(jobs[5])
        from_file = load(gather([collection / "volume-5.nii"])[0][0])
        assert np.array_equal(from_store.volume, from_file.volume)
        assert np.array_equal(from_store.grid.affine, from_file.grid.affine)
        assert from_store.header == from_file.header

    def test_two_scans_of_one_output_are_refused(self, tmp_path):
        for name in ("a.nii", "a.nii.gz"):
            (tmp_path / name).touch()
        with pytest.raises(ScanError, match="would both be written as a"):
            gather([tmp_path])

    def test_nothing_to_segment_is_one_clear_error(self, tmp_path):
        with pytest.raises(ScanError, match="holds no NIfTI file"):
            gather([tmp_path])
        with pytest.raises(ScanError, match="matches no .nii"):
            gather([f"{tmp_path}/*.nii"])

    @pytest.mark.parametrize(
        ("name", "message"), [("nowhere.nii", "there is no such file"), ("a.mha", "must end in .nii")]
    )
    def test_a_file_that_is_no_scan_is_named(self, name, message, tmp_path):
        (tmp_path / "a.mha").touch()
        (job,), _ = gather([tmp_path / name])
        with pytest.raises(ScanError, match=message):
            load(job)


def changed(model, path, change):
    """Write a copy of a model with other metadata."""
    opened = onnx.load(model)
    entry = opened.metadata_props[0]
    metadata = json.loads(entry.value)
    change(metadata)
    entry.value = json.dumps(metadata)
    onnx.save(opened, path)
    return path


class TestModel:
    def test_a_truncated_or_foreign_file_is_one_clear_error(self, model, tmp_path):
        (tmp_path / "short.onnx").write_bytes(model.read_bytes()[:1000])
        (tmp_path / "text.onnx").write_text("no model")
        for name in ("short.onnx", "text.onnx"):
            with pytest.raises(ModelError, match=f"{name}: is not an ONNX model"):
                open_model(tmp_path / name, "cpu")
        with pytest.raises(ModelError, match="No such file"):
            open_model(tmp_path / "none.onnx", "cpu")

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            (lambda m: m.update(contract=2), "is of contract 2"),
            (lambda m: m.update(input="pairs"), "input pairs; this version runs contract 1, input int16 or bytes"),
            (lambda m: m.update(input="bytes"), "do not fit context 3"),
            (lambda m: m.pop("context"), "metadata is incomplete"),
            (lambda m: m.update(context=1), "do not fit context 1"),
            (lambda m: m.update(labels="liver"), "Expected `object`, got `str` - at `\\$.labels`"),
            (lambda m: m.update(context=9), "do not fit context 9"),
            (lambda m: m.update(postprocess=[]), "Expected `object`, got `array` - at `\\$.postprocess`"),
            (lambda m: m.update(postprocess={"smooth": 1}), "m.onnx: its post-processing has rules"),
        ],
    )
    def test_metadata_that_do_not_fit_are_refused(self, change, message, model, tmp_path):
        from slicemill.common.errors import InputError

        with pytest.raises(InputError, match=message):
            open_model(changed(model, tmp_path / "m.onnx", change), "cpu")

    def test_a_model_of_absurd_size_is_refused_before_any_memory_is_taken(self, model, tmp_path):
        opened = onnx.load(model)
        opened.graph.input[0].type.tensor_type.shape.dim[1].dim_value = 200_000
        onnx.save(opened, tmp_path / "m.onnx")
        with pytest.raises(ModelError, match=r"200000|is not an ONNX model"):
            open_model(tmp_path / "m.onnx", "cpu")

    def test_a_model_without_our_metadata_is_refused(self, model, tmp_path):
        opened = onnx.load(model)
        del opened.metadata_props[:]
        onnx.save(opened, tmp_path / "m.onnx")
        with pytest.raises(ModelError, match="carries no slicemill metadata"):
            open_model(tmp_path / "m.onnx", "cpu")

    def test_weights_in_another_file_are_never_followed(self, model, tmp_path):
        onnx.save(
            onnx.load(model), tmp_path / "m.onnx", save_as_external_data=True, location="weights.bin", size_threshold=0
        )
        with pytest.raises(ModelError, match="keeps weights in other files"):
            open_model(tmp_path / "m.onnx", "cpu")

    @pytest.mark.parametrize("location", ["secret.bin", "../secret.bin", "link.bin", "{tmp_path}/secret.bin"])
    def test_nor_when_protobuf_is_written_in_another_way(self, location, tmp_path, monkeypatch):
        (tmp_path / "in").mkdir()
        monkeypatch.chdir(tmp_path / "in")
        for path in (tmp_path / "secret.bin", Path("secret.bin")):
            path.write_bytes(b"S" * 64)
        Path("link.bin").symlink_to("../secret.bin")
        content = following(location.format(tmp_path=tmp_path))
        assert EXTERNAL_DATA not in content
        Path("m.onnx").write_bytes(content)
        with pytest.raises(ModelError, match="m.onnx: is not an ONNX model that onnxruntime can run"):
            open_model(Path("m.onnx"), "cpu")

    def test_a_provider_that_labels_differently_is_an_error(self, model):
        opened = open_model(model, "cpu")
        label = np.zeros((2, 64, 64), np.uint8)
        other = label.copy()
        other[0, 0, :40] = 1
        assert compare(opened, label, other) == 40 / 8192
        other[0, 1] = 1
        with pytest.raises(
            ModelError, match=r"labels on cpu differ from those on the CPU in 1.27% of .*nothing was segmented"
        ):
            compare(opened, label, other)


def following(location):
    """Return a model of the contract whose labels are the bytes of another file, with lengths written in more bytes than they need."""
    make, types = onnx.helper, onnx.TensorProto
    graph = make.make_graph(
        [
            make.make_node("Cast", ["image"], ["bytes"], to=types.UINT8),
            make.make_node("Max", ["bytes", "w"], ["label"]),
        ],
        "g",
        [make.make_tensor_value_info("image", types.INT16, ["n", 8, 8])],
        [make.make_tensor_value_info("label", types.UINT8, ["n", 8, 8])],
    )
    whole = make.make_model(graph, opset_imports=[make.make_opsetid("", 14)], ir_version=8)
    metadata = {"contract": 1, "input": "int16", "context": 1, "labels": {"x": 1}, "postprocess": {}}
    make.set_model_props(whole, {"slicemill": json.dumps(metadata)})

    def field(number, content):
        return bytes([number << 3 | 2, len(content) & 127 | 128, len(content) >> 7]) + content

    tensor = onnx.TensorProto(name="w", dims=[8, 8], data_type=types.UINT8, data_location=types.EXTERNAL)
    entry = field(13, field(1, b"location") + field(2, location.encode()))
    return whole.SerializeToString() + field(7, field(5, tensor.SerializeToString() + entry))


class TestProviders:
    def test_a_provider_that_cannot_run_is_an_error_and_never_the_cpu(self, model):
        if providers.has_nvidia_driver():
            pytest.skip("there is a GPU")
        for name in ("cuda", "tensorrt"):
            with pytest.raises(ProviderError, match=f"--provider {name}"):
                open_model(model, name)
        with pytest.raises(UsageError, match="choose one of auto, cpu, cuda, tensorrt, openvino"):
            open_model(model, "tpu")

    def test_auto_says_what_it_chose_and_why(self, model):
        opened = open_model(model, "auto")
        assert opened.provider in ("cpu", "cuda")
        assert opened.reason

    def test_a_session_that_fell_back_is_an_error(self, model, monkeypatch):
        class Fallen:
            def get_providers(self):
                return ["CPUExecutionProvider"]

        import onnxruntime

        monkeypatch.setattr(
            onnxruntime, "get_available_providers", lambda: ["CUDAExecutionProvider", "CPUExecutionProvider"]
        )
        monkeypatch.setattr(onnxruntime, "InferenceSession", lambda *_a, **_k: Fallen())
        with pytest.raises(ProviderError, match="fell back to CPUExecutionProvider"):
            open_model(model, "cuda")

    def test_both_packages_at_once_are_named_with_the_repair(self, monkeypatch):
        monkeypatch.setattr(providers, "installed_runtimes", lambda: ["onnxruntime", "onnxruntime-gpu"])
        with pytest.raises(
            ProviderError, match=r"overwrite each other. Repair: pip uninstall -y onnxruntime onnxruntime-gpu"
        ):
            providers.runtime()

    def test_a_half_removed_package_is_named_with_the_repair(self, monkeypatch):
        import onnxruntime

        monkeypatch.delattr(onnxruntime, "get_available_providers")
        with pytest.raises(ProviderError, match="half removed. Repair: pip install --force-reinstall"):
            providers.runtime()
