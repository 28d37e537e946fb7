"""The headline figures of the README: one sentence for each of six records, with the command that makes it."""

from slicemill.bench.records.markdown import format_processor, table_lines
from slicemill.bench.records.quality import QualityRecord
from slicemill.bench.schema.base import Document, read_record
from slicemill.bench.schema.data import LitsRecord, LoaderRecord, StoreRecord
from slicemill.bench.schema.dicom import DicomIngestRecord
from slicemill.bench.schema.networks import PeersInferenceRecord

PLAIN, JPEG_LOSSLESS = "uncompressed, 12 of 16 bits", "JPEG lossless"
"""Transfer syntaxes of the record of DICOM series."""


def headlines_table(
    lits: Document, dicom: Document, store: Document, loader: Document, peers: Document, phantoms: Document
) -> str:
    """Format six figures, each with its command."""
    rows = [
        (_ingest(read_record(LitsRecord, lits)), "`slicemill bench ingest --scale lits`"),
        (_dicom(read_record(DicomIngestRecord, dicom)), "`slicemill bench ingest --format dicom`"),
        (_reading(read_record(StoreRecord, store)), "`slicemill bench store`"),
        (_loading(read_record(LoaderRecord, loader)), "`slicemill bench loader`"),
        (_inference(read_record(PeersInferenceRecord, peers)), "`slicemill bench peers --kind inference`"),
        (
            _quality(read_record(QualityRecord, phantoms)),
            "`slicemill bench quality --phantoms 240 --only-folds 0 --variants default,five-slices`",
        ),
    ]
    processors = dict.fromkeys(
        format_processor(record["machine"]) for record in (lits, dicom, store, loader, peers, phantoms)
    )
    return "\n".join(table_lines([f"figure, on {' and '.join(processors)}", "command"], rows))


def _ingest(record: LitsRecord) -> str:
    return (
        f"Ingest of a collection of LiTS's size ({record.cases} phantom scans, {record.slices:,} slices): "
        f"{record.seconds / 60:.1f} minutes"
    )


def _dicom(record: DicomIngestRecord) -> str:
    plain, jpeg = record.series[PLAIN], record.series[JPEG_LOSSLESS]
    return (
        f"Ingest of uncompressed DICOM: {plain.times_nifti:.1f} times as fast as the same slices in .nii.gz; "
        f"JPEG lossless is read in {jpeg.read_over_codec:.2f} times the CPU time of the codec alone"
    )


def _reading(record: StoreRecord) -> str:
    rate = record.results["ours"].per_second
    ratio = record.ratios["over zarr-python on the same store"]
    return f"Random image and label slices from a store: {rate:,.0f} pairs/s of one core, {ratio:.1f} times zarr-python"


def _loading(record: LoaderRecord) -> str:
    ratio = record.ratios["over the PNG folder"]
    return f"Training batches: {ratio:.0f} times a folder of PNG files, by CPU time"


def _inference(record: PeersInferenceRecord) -> str:
    rate = record.results[record.headline.ours].per_second
    ratio = record.headline.peers["MONAI SliceInferer"].times
    return f"Files to masks with one network: {rate:.1f} slices/s, {ratio:.1f} times MONAI's SliceInferer"


def _quality(record: QualityRecord) -> str:
    test = record.variants[record.chosen].test
    scores = ", ".join(f"{name} {region.mean:.3f}" for name, region in test.items())
    return f"Mean Dice per unseen patient on hard phantoms: {scores}"
