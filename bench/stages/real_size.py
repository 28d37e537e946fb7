"""The store's size on a real scan at full resolution, against the .nii.gz that an archive holds."""

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from slicemill.bench.harness.conversions import gzip6_nifti
from slicemill.common.errors import ConfigError, ScanError
from slicemill.ingest.convert import convert_case
from slicemill.ingest.discover import CaseFiles
from slicemill.ingest.params import Params
from slicemill.store.layout import GROUP
from slicemill.store.reader import open_store
from slicemill.store.writer import prepare_store


def real_size(series: Path) -> dict[str, Any]:
    """Write a DICOM series as .nii.gz (int16, gzip 6), ingest it in both profiles, and return the ratios.

    Raises
    ------
    ScanError
        The folder holds no series.
    """
    volume = read_series(series)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "volume-1.nii.gz"
        gzip6_nifti(volume, path)
        case = CaseFiles(case_id="volume-1", patient_id="1", image=path, mask=None, root=path.parent)
        found: dict[str, Any] = {
            "series": series.name,
            "shape": list(volume.shape),
            "nii_gz_bytes": path.stat().st_size,
        }
        for params in (Params(labels=None), Params(labels=None, profile="fast")):
            store = Path(folder) / params.profile
            prepare_store(store)
            convert_case(case, params, store)
            files = [file for file in (store / GROUP / "volume-1").rglob("*") if file.is_file()]
            if not np.array_equal(
                np.sort(open_store(store)["volume-1"].image[:], axis=None), np.sort(volume, axis=None)
            ):
                raise ScanError(f"{series}: the store does not hold the voxels of the series.")
            found[params.profile] = {
                "bytes": sum(file.stat().st_size for file in files),
                "files": len(files),
                "over_nii_gz": round(sum(file.stat().st_size for file in files) / path.stat().st_size, 3),
            }
    return found


def read_series(folder: Path) -> npt.NDArray[np.int16]:
    """Return int16[z, y, x], HU, of a DICOM series, read by SimpleITK."""
    try:
        import SimpleITK
    except ImportError as error:
        raise ConfigError("--dicom needs SimpleITK: pip install 'slicemill[dev]'.") from error
    names = SimpleITK.ImageSeriesReader.GetGDCMSeriesFileNames(str(folder))  # type: ignore[no-untyped-call]
    if not names:
        raise ScanError(f"{folder}: holds no DICOM series.")
    image = SimpleITK.ReadImage(names)
    return np.asarray(SimpleITK.GetArrayFromImage(image), dtype=np.int16)
