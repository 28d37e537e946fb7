"""Ingest of one CT as DICOM in several transfer syntaxes, compared with the same slices as .nii.gz and with the codecs.

Bottleneck: hashing and compression for uncompressed series, decoding for compressed ones. A series is ingested without
a mask, its headers included. All contenders run in the same interleaved rounds, pinned to one core, with a warm page
cache. Command: `slicemill bench ingest --format dicom`.
"""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from slicemill.bench.harness.clock import Timing, Work, ratio, show_progress, time_rounds
from slicemill.bench.harness.cores import pin_to_one_core
from slicemill.bench.harness.dicom_files import (
    FILES_A_FOLDER,
    PLAIN,
    SYNTAXES,
    Syntax,
    fit_stored,
    import_dicom,
    write_many,
    write_series,
)
from slicemill.bench.harness.headline import Record, check
from slicemill.bench.harness.subject import CASE_ID, Scan, Subject
from slicemill.bench.schema.base import origin
from slicemill.bench.schema.data import MemoryPeak
from slicemill.bench.schema.dicom import DicomIngestRecord, FoundFiles, SeriesCost
from slicemill.bench.stages.dicom_peers import compare_peers
from slicemill.bench.stages.ingest import convert_with_slicemill, fresh_folder, time_two_workers
from slicemill.bench.stages.ingest_memory import convert_alone, measure_worker
from slicemill.ct.formats.dicom.discover import find_dicom
from slicemill.ct.formats.dicom.folders import forget_folders
from slicemill.ct.formats.dicom.series import Series
from slicemill.ct.scan import ScanReader
from slicemill.ingest.params import Params
from slicemill.store.reader import open_store

NIFTI = ".nii.gz"
PARAMS = Params(labels=None)
MANY_FILES = {False: 100_000, True: 5_000}
"""Number of files that are found and sorted, by `quick`."""
FIND_ROUNDS = 3
LONG = 1000
"""Slices of the long series whose peak memory is measured."""


@dataclass(frozen=True, kw_only=True)
class Written:
    """A series on disk, and the pixels of its files as stored."""

    syntax: Syntax
    scan: Scan
    frames: list[bytes]


def run(
    folder: Path,
    subject: Subject,
    *,
    rounds: int,
    quick: bool = False,
    memory: bool = False,
    tilted: Path | None = None,
) -> Record:
    """Measure everything on one scan and return the record.

    With `memory`, also the peak memory of workers. `tilted` is a series of a tilted gantry, by default a phantom's.

    Raises
    ------
    ConfigError
        pydicom or imagecodecs is not installed.
    """
    import_dicom()
    image = fit_stored(subject.image)
    nifti = Scan(image=subject.write(folder / "nifti", NIFTI).image)
    written = [write(folder, image, subject.spacing_mm, syntax) for syntax in SYNTAXES]
    for one in written:
        verify(folder, one, image)
    with pin_to_one_core():
        times = time_all(folder, nifti, written, rounds)
    plain = next(one.scan for one in written if one.syntax == PLAIN)
    return DicomIngestRecord(
        **origin(),
        subject=str(subject),
        slices=len(image),
        rounds=rounds,
        page_cache="warm",
        clock="CPU time of one core",
        nifti_milliseconds=milliseconds(times[f"ingest {NIFTI}"], len(image)),
        series={one.syntax.name: make_cost(one, times) for one in written},
        found=time_finding(folder / "many", MANY_FILES[quick]),
        two_workers=time_two_workers(folder, plain, PARAMS, rounds),
        memory=measure_memory(folder / "memory", written, subject) if memory else None,
        peers=compare_peers(folder, {one.syntax: one.scan for one in written}, tilted, rounds),
    ).as_json()


def write(
    folder: Path, image: npt.NDArray[np.int16], spacing_mm: tuple[float, float, float], syntax: Syntax
) -> Written:
    """Write a scan in a transfer syntax, into a folder that holds nothing else."""
    own = folder / syntax.uid.replace(".", "-") / ("signed" if syntax.signed else "series")
    return Written(syntax=syntax, scan=Scan(image=own), frames=write_series(own, image, spacing_mm, syntax))


def verify(folder: Path, written: Written, image: npt.NDArray[np.int16]) -> None:
    """Check that the store of a series holds its voxels."""
    with fresh_folder(folder) as path:
        written.scan.convert(path, PARAMS)
        voxels = open_store(path)[CASE_ID].image[:]
    check(f"the store holds the voxels of {written.syntax.name}", holds=np.array_equal(voxels, image))


def time_all(folder: Path, nifti: Scan, written: list[Written], rounds: int) -> dict[str, Timing]:
    """Return the CPU time of ingest, of reading as ingest does, and of each codec alone."""
    contenders: dict[str, Work] = {f"ingest {NIFTI}": partial(convert_with_slicemill, folder, nifti, PARAMS)}
    for one in written:
        name = one.syntax.name
        contenders[f"ingest {name}"] = partial(convert_with_slicemill, folder, one.scan, PARAMS)
        contenders[f"read {name}"] = partial(read_as_ingest, one.scan.image)
        if one.syntax.decoder:
            contenders[f"codec {name}"] = partial(decode_all, one.frames, find_decoder(one.syntax))
    with show_progress("DICOM", len(contenders), rounds) as log:
        return time_rounds(contenders, rounds=rounds, log=log, clock=time.process_time)


def find_decoder(syntax: Syntax) -> Callable[[bytes], Any]:
    """Return the function of imagecodecs that decodes a slice."""
    _, imagecodecs = import_dicom()
    decode: Callable[..., Any] = getattr(imagecodecs, syntax.decoder)
    return partial(decode, dtype=np.dtype("<u2")) if syntax.decoder == "dicomrle_decode" else decode


def decode_all(frames: list[bytes], decode: Callable[[bytes], Any]) -> None:
    """Decode every slice, each into an array of its own, as the codec's user does."""
    for frame in frames:
        decode(frame)


def read_as_ingest(series: Path) -> None:
    """Read the headers and, slab by slab, the HU of a series, and hash its files."""
    forget_folders()
    with ScanReader(series, "image") as reader:
        for _ in reader.slabs():
            pass
        reader.finish()


def milliseconds(timing: Timing, slices: int) -> float:
    """Return the median time a slice, ms."""
    return round(1000 * timing.median / slices, 3)


def make_cost(written: Written, times: Mapping[str, Timing]) -> SeriesCost:
    """Return the figures of a series."""
    name, slices = written.syntax.name, len(written.frames)
    ingest, read, codec = times[f"ingest {name}"], times[f"read {name}"], times.get(f"codec {name}")
    return SeriesCost(
        bytes_a_slice=sum(map(len, written.frames)) // slices,
        ingest_milliseconds=milliseconds(ingest, slices),
        read_milliseconds=milliseconds(read, slices),
        codec_milliseconds=None if codec is None else milliseconds(codec, slices),
        times_nifti=round(ratio(times[f"ingest {NIFTI}"], ingest), 3),
        read_over_codec=None if codec is None else round(ratio(read, codec), 3),
    )


def time_finding(folder: Path, count: int) -> FoundFiles:
    """Return the CPU time in which `count` small files are found and sorted into series, the median of three rounds."""
    write_many(folder, count)

    def find() -> None:
        forget_folders()
        series = find_dicom(folder).series
        slices = sum(len(one.series.planes) for one in series if isinstance(one.series, Series))
        check("every file is a slice of a series", holds=slices == count and len(series) == -(-count // FILES_A_FOLDER))

    times = time_rounds({"find": find}, rounds=FIND_ROUNDS, clock=time.process_time)
    return FoundFiles(files=count, milliseconds_a_file=round(1000 * times["find"].median / count, 4))


def measure_memory(folder: Path, written: list[Written], subject: Subject) -> dict[str, MemoryPeak]:
    """Return MiB by syntax: of a conversion in its own process, and of a Dask worker."""
    peaks: dict[str, MemoryPeak] = {}
    long = fit_stored(subject.image)[np.arange(LONG) % len(subject.image)]
    all_series = [(one.syntax.name, one.scan) for one in written]
    all_series.append((f"{PLAIN.name}, {LONG:,} slices", write(folder / "long", long, subject.spacing_mm, PLAIN).scan))
    for number, (name, scan) in enumerate(all_series):
        own = folder / str(number)
        own.mkdir(parents=True)
        alone = convert_alone(scan, own / "alone")
        worker = measure_worker(scan.image, own / "dask")
        peaks[name] = MemoryPeak(alone_mib=round(alone.peak_mib), dask_worker_mib=worker)
    return peaks
