"""A file ``M.nodules``: a segmentation model and the classifier of its candidates, to hand over as one.

It is a ZIP archive of two entries, not compressed: ``segmentation.onnx`` and ``classifier.onnx``. Times are left out,
so that equal models give equal bytes. Other entries, compression, and sizes above MAX_BYTES are refused.
"""

import zipfile
from dataclasses import dataclass
from pathlib import Path

from slicemill.common.errors import ModelError
from slicemill.common.files import atomic_write

BUNDLE_SUFFIX = ".nodules"
SEGMENTATION, CLASSIFIER = "segmentation.onnx", "classifier.onnx"
MAX_BYTES = 2**31
"""Largest model; a protobuf message, which a model is, cannot be larger."""


@dataclass(frozen=True, kw_only=True)
class NodulesFile:
    """The bytes of the two models."""

    segmentation: bytes
    classifier: bytes


def write_bundle(path: Path, segmentation: Path, classifier: Path) -> None:
    """Write the two models as one file, atomically."""
    save_bundle(path, NodulesFile(segmentation=segmentation.read_bytes(), classifier=classifier.read_bytes()))


def save_bundle(path: Path, models: NodulesFile) -> None:
    """Write the bytes of the two models as one file, atomically."""
    with atomic_write(path) as aside, zipfile.ZipFile(aside, "w", zipfile.ZIP_STORED) as archive:
        for name, model in ((SEGMENTATION, models.segmentation), (CLASSIFIER, models.classifier)):
            entry = zipfile.ZipInfo(name)  # of 1980, with no attributes of this machine's file
            archive.writestr(entry, model)


def read_bundle(path: Path) -> NodulesFile:
    """Read the two models.

    Raises
    ------
    ModelError
        The file cannot be read, or it is not an archive of exactly these two models.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            entries = {entry.filename: entry for entry in archive.infolist()}
            if sorted(entries) != sorted((SEGMENTATION, CLASSIFIER)) or len(archive.infolist()) != len(entries):
                raise ModelError(f"must have exactly the entries {SEGMENTATION} and {CLASSIFIER}.", where=path)
            for entry in entries.values():
                # the size is checked before memory is taken: not compressed, an entry cannot be larger than the file
                if (
                    entry.compress_type != zipfile.ZIP_STORED
                    or entry.compress_size != entry.file_size
                    or entry.file_size > min(MAX_BYTES, path.stat().st_size)
                    or entry.flag_bits & 1
                ):
                    raise ModelError(
                        f"its entry {entry.filename} must be stored without compression or encryption, of at most "
                        f"{MAX_BYTES / 2**30:g} GiB. Write the file with `slicemill export`.",
                        where=path,
                    )
            return NodulesFile(
                segmentation=archive.read(entries[SEGMENTATION]), classifier=archive.read(entries[CLASSIFIER])
            )
    except (OSError, zipfile.BadZipFile, NotImplementedError, EOFError, ValueError, RuntimeError) as error:
        if isinstance(error, ModelError):
            raise
        raise ModelError(f"is not a file of two models ({error}).", where=path) from error
