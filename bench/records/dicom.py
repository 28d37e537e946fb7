"""The record of `bench ingest --format dicom` as Markdown tables."""

from slicemill.bench.records.markdown import format_processor, format_ratio, table_lines
from slicemill.bench.schema.dicom import DicomIngestRecord


def dicom_table(record: DicomIngestRecord) -> str:
    """Format the ingest of DICOM series, with peers and peak memory."""
    rows = [
        (
            name,
            f"{one.bytes_a_slice / 1000:.0f}",
            f"{one.ingest_milliseconds:.2f}",
            f"{one.read_milliseconds:.2f}",
            format_ratio(one.codec_milliseconds),
            format_ratio(one.read_over_codec),
            format_ratio(one.times_nifti),
        )
        for name, one in record.series.items()
    ]
    header = ["transfer syntax", "KB a slice", "ingest, CPU ms a slice", "of it reading", "codec alone",
              "reading over codec", "times as fast as .nii.gz"]  # fmt: skip
    lines = [*table_lines(header, rows), "", _note(record), "", *_peer_lines(record)]
    if record.memory is not None:
        peaks = [(name, str(row.alone_mib), str(row.dask_worker_mib)) for name, row in record.memory.items()]
        lines += ["", *table_lines(["peak memory of a worker, MiB", "alone", "under Dask"], peaks)]
    return "\n".join(lines)


def _note(record: DicomIngestRecord) -> str:
    two = ""
    if (workers := record.two_workers) is not None:
        by_clock, by_cpu = format_ratio(workers.wall), format_ratio(workers.cpu)
        two = f" Two workers over one, uncompressed: {by_clock} by the clock, {by_cpu} by CPU time."
    return (
        f"{record.subject}, without a mask; the same slices as .nii.gz take {record.nifti_milliseconds:.2f} ms. "
        f"Reading is headers, HU and hash. Medians of {record.rounds} interleaved rounds, {record.page_cache} page "
        f"cache, on {format_processor(record.machine)}. {record.found.files:,} small files are found and sorted in "
        f"{record.found.milliseconds_a_file:.2f} ms of a core each.{two}"
    )


def _peer_lines(record: DicomIngestRecord) -> list[str]:
    peers = record.peers.peers
    syntaxes = list(dict.fromkeys(name for peer in peers.values() for name in peer.times_ours))
    rows = [
        ["slicemill", *(f"1 ({record.series[name].ingest_milliseconds:.2f} ms a slice)" for name in syntaxes),
         record.peers.ours],
        *(
            [f"{name}, then slicemill", *(format_ratio(peer.times_ours.get(one)) for one in syntaxes), peer.tilted]
            for name, peer in peers.items()
        ),
    ]  # fmt: skip
    header = ["CPU time, times ours", *syntaxes, f"a tilted gantry ({record.peers.tilted})"]
    return table_lines(header, rows)
