"""Random slices (image and label) out of a store: ours beside zarr-python, zarrs and tensorstore, and beside the bare decode.

What bounds it: decompression; the limit is the codec alone, on bytes that lie in memory, into a buffer that is there.
"""

import datetime as dt
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numcodecs import blosc, zstd

from bench.clock import interleaved, ratio
from bench.ingest import LITS, SIZE, one_core
from ingest.convert import convert_case
from ingest.discover import CaseFiles
from ingest.params import Params
from store.labels import LITS_LABELS
from store.layout import GROUP, IMAGE, LABEL
from store.machine import card
from store.phantom import PhantomSpec, make_phantom, write_nifti
from store.progress import progress
from store.reader import Case, open_store, without_checksum
from store.writer import prepare_store

WINDOW = 7
Record = dict[str, Any]


def run(folder: Path, *, slices: int, rounds: int) -> Record:
    """Measure on one phantom of 512x512 and return the record."""
    phantom = make_phantom(PhantomSpec(seed=1, shape=(slices, SIZE, SIZE)))
    image, mask = folder / "volume-1.nii", folder / "segmentation-1.nii"
    write_nifti(image, phantom.image, phantom.spacing_mm)
    write_nifti(mask, phantom.label, phantom.spacing_mm)
    case = CaseFiles(case_id="volume-1", patient_id="volume-1", image=image, mask=mask, root=folder)
    sizes = {}
    for params in (LITS, Params(labels=LITS_LABELS, profile="fast")):
        prepare_store(folder / params.profile)
        convert_case(case, params, folder / params.profile)
        sizes[params.profile] = sum(
            path.stat().st_size for path in (folder / params.profile).rglob("0") if path.is_file()
        )
    defaults = zarr_defaults(folder / "defaults", phantom.image, phantom.label)
    order = np.random.default_rng(0).permutation(slices).tolist()
    few = order[: max(4, slices // 8)]
    compact, fast = (open_store(folder / name)["volume-1"] for name in ("compact", "fast"))
    compact_paths = [folder / "compact" / GROUP / "volume-1" / name for name in (IMAGE, LABEL)]
    contenders: dict[str, tuple[Callable[[], object], int]] = {
        "ours": (lambda: ours(compact, order), len(order)),
        "ours, fast profile": (lambda: ours(fast, order), len(order)),
        "bare decode": (bare_decode(compact, order, checked=True), len(order)),
        "bare decode, no checksum": (bare_decode(compact, order, checked=False), len(order)),
        "bare decode, fast profile": (bare_decode(fast, order, checked=True), len(order)),
        "zarr-python, our store": (zarr_reads(compact_paths, order), len(order)),
        "zarrs, our store": (zarrs_reads(compact_paths, order), len(order)),
        "tensorstore, our store": (tensorstore_reads(compact_paths, order), len(order)),
        "zarr-python, its defaults": (zarr_reads(defaults, few), len(few)),
        "ours, windows of 7": (lambda: windows(compact, order), len(order)),
    }
    with one_core(), progress("readers", (rounds + 1) * len(contenders), "runs") as advance:
        work = {name: timed for name, (timed, _) in contenders.items()}
        times = interleaved(work, rounds=rounds, tell=lambda name: advance(1, name), timer=time.process_time)
    amount = {name: count for name, (_, count) in contenders.items()}

    def faster(name: str, than: str) -> float:
        return round(ratio(times[than], times[name]) * amount[name] / amount[than], 3)

    return {
        "benchmark": "store",
        "date": dt.datetime.now(dt.UTC).isoformat(timespec="seconds"),
        "unit": f"pairs of an image and a label slice, {SIZE}x{SIZE}, in random order",
        "clock": "CPU time of one core",
        "page_cache": "warm",
        "slices": slices,
        "results": {name: times[name].as_json(amount[name]) for name in contenders},
        "ratios": {
            "over zarr-python on the same store": faster("ours", "zarr-python, our store"),
            "over zarrs on the same store": faster("ours", "zarrs, our store"),
            "over tensorstore on the same store": faster("ours", "tensorstore, our store"),
            "over zarr-python with its defaults": faster("ours", "zarr-python, its defaults"),
            "of the bare decode": faster("ours", "bare decode"),
            "of the bare decode without its checksum": faster("ours", "bare decode, no checksum"),
            "fast profile over compact": faster("ours, fast profile", "ours"),
            "fast profile, of its bare decode": faster("ours, fast profile", "bare decode, fast profile"),
        },
        "bytes": {**sizes, "raw": phantom.image.nbytes + phantom.label.nbytes},
        "machine": card(),
    }


def ours(case: Case, order: list[int]) -> None:
    """Read pairs into buffers that are there."""
    image, label = np.empty(case.image.shape[1:], np.int16), np.empty(case.image.shape[1:], np.uint8)
    for z in order:
        case.image.read(z, image)
        if case.label is not None:
            case.label.read(z, label)


def windows(case: Case, order: list[int]) -> None:
    """Read windows of neighbors."""
    image = np.empty((WINDOW, *case.image.shape[1:]), np.int16)
    last = len(case.image) - 1
    for z in order:
        case.image.read_many([min(max(z + step, 0), last) for step in range(-(WINDOW // 2), WINDOW // 2 + 1)], image)


def bare_decode(case: Case, order: list[int], *, checked: bool) -> Callable[[], object]:
    """Return the codecs alone, with or without the checksum that is one of them: encoded slices from memory into a buffer."""
    arrays = [(case.image, np.empty(case.image.shape[1:], np.int16))]
    if case.label is not None:
        arrays.append((case.label, np.empty(case.image.shape[1:], np.uint8)))
    decoded = []
    for array, buffer in arrays:
        is_zstd = array is case.label and array.profile == "compact"
        decoded += [(zstd.decompress if is_zstd else blosc.decompress, array.encoded(z), buffer) for z in order]
    bare = [(decompress, bytes(without_checksum(data)), buffer) for decompress, data, buffer in decoded]

    def work() -> None:
        for decompress, data, buffer in decoded:
            decompress(without_checksum(data), buffer)

    def work_unchecked() -> None:
        for decompress, data, buffer in bare:
            decompress(data, buffer)

    return work if checked else work_unchecked


def zarr_reads(paths: list[Path], order: list[int]) -> Callable[[], object]:
    """Return reads of pairs through zarr-python."""
    import zarr

    arrays = [zarr.open_array(path, mode="r") for path in paths]
    return lambda: [array[z] for z in order for array in arrays]


def zarrs_reads(paths: list[Path], order: list[int]) -> Callable[[], object]:
    """Return reads of pairs through zarr-python with the codecs of zarrs."""
    import zarr
    import zarrs  # noqa: F401 (registers its pipeline)

    with zarr.config.set({"codec_pipeline.path": "zarrs.ZarrsCodecPipeline", "threading.max_workers": 1}):
        arrays = [zarr.open_array(path, mode="r") for path in paths]
    return lambda: [array[z] for z in order for array in arrays]


def tensorstore_reads(paths: list[Path], order: list[int]) -> Callable[[], object]:
    """Return reads of pairs through tensorstore."""
    import tensorstore

    context = tensorstore.Context({"data_copy_concurrency": {"limit": 1}, "file_io_concurrency": {"limit": 1}})
    specs = [{"driver": "zarr3", "kvstore": {"driver": "file", "path": str(path)}} for path in paths]
    arrays = [tensorstore.open(spec, open=True, context=context).result() for spec in specs]
    return lambda: [array[z].read().result() for z in order for array in arrays]


def zarr_defaults(folder: Path, image: Any, label: Any) -> list[Path]:
    """Write both arrays as zarr-python does when nothing is said, and return where."""
    import zarr

    for name, volume in ((IMAGE, image), (LABEL, label)):
        zarr.create_array(folder / name, data=volume)
    return [folder / IMAGE, folder / LABEL]
