"""Who made a DICOM result: the model or program, and the words that mark it as research."""

import logging
import warnings
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

from slicemill.common.extras import require_extras
from slicemill.ct.formats.dicom_objects.segments import fit_text

MANUFACTURER = "slicemill"
DESCRIPTION = "slicemill research, not for diagnosis"
CONTENT_LABEL = "RESEARCH"
SERIES_NUMBERS = {"SEG": 9001, "SR": 9002, "RTSTRUCT": 9003}
"""Numbers far above those of scanners, so that results are last in a study."""
SHOWN_HASH = 16


@dataclass(frozen=True, kw_only=True)
class Maker:
    """The model that segmented a scan, or what is known of it."""

    name: str
    """File name of the model; a text that says so if it is unknown."""
    sha256: str = ""
    """Hash of the model's weights; empty if unknown."""

    @property
    def is_known(self) -> bool:
        """Return whether a model of slicemill segmented the scan."""
        return bool(self.sha256)

    @property
    def algorithm_type(self) -> str:
        """Return SegmentAlgorithmType: a mask of unknown origin may have been drawn or corrected by a person."""
        return "AUTOMATIC" if self.is_known else "SEMIAUTOMATIC"

    @property
    def text(self) -> str:
        """Return its name as a DICOM element may hold it."""
        return fit_text(self.name)

    @property
    def version(self) -> str:
        """Return AlgorithmVersion: that of this program, which applies the model and its rules."""
        return f"slicemill {version('slicemill')}"

    @property
    def parameters(self) -> list[str] | None:
        """Return the hash of the model, if it is known."""
        return [f"model sha256 {self.sha256}"] if self.is_known else None

    def as_equipment(self) -> dict[str, Any]:
        """Return the arguments of highdicom's classes that describe the program."""
        return {
            "manufacturer": MANUFACTURER,
            "manufacturer_model_name": self.text,
            "software_versions": version("slicemill"),
            "device_serial_number": self.sha256[:SHOWN_HASH] or "unknown",
        }


UNKNOWN_MAKER = Maker(name="unknown program or person")


def prepare_dicom() -> None:
    """Check that the packages are installed, and keep texts of headers out of logs.

    pydicom and highdicom warn of unusual elements and quote their values, which may be a patient's.

    Raises
    ------
    ConfigError
        A package is missing.
    """
    require_extras("dicom")
    for name in ("pydicom", "highdicom"):
        logger = logging.getLogger(name)
        logger.setLevel(logging.CRITICAL)
        logger.propagate = False
        warnings.filterwarnings("ignore", module=rf"{name}(\.|$)")
