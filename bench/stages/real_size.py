"""Size of the store of a real scan at full resolution, compared with the .nii.gz that an archive holds.

Command: `slicemill bench ingest --dicom FOLDER`.
"""

import tempfile
from pathlib import Path

import numpy as np
import numpy.typing as npt

from slicemill.bench.harness.conversions import gzip6_nifti
from slicemill.bench.harness.pagecache import files_below
from slicemill.bench.harness.subject import CASE_ID, same_voxels
from slicemill.bench.schema.data import RealScan, StoreSize
from slicemill.common.errors import ConfigError, ScanError
from slicemill.common.extras import explain_import
from slicemill.ingest.convert import convert_case
from slicemill.ingest.discover import CaseFiles
from slicemill.ingest.params import Params
from slicemill.store.layout import GROUP
from slicemill.store.reader import open_store
from slicemill.store.writer import prepare_store


def measure_real_size(series: Path) -> RealScan:
    """Write a DICOM series as .nii.gz (int16, gzip 6), ingest it in both profiles, and return the ratios.

    Raises
    ------
    ScanError
        The folder holds no series, or a store does not hold its voxels.
    """
    volume = read_series(series)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "volume-1.nii.gz"
        gzip6_nifti(volume, path)
        archive_bytes = path.stat().st_size
        case = CaseFiles(case_id=CASE_ID, patient_id="1", image=path, mask=None, root=path.parent)
        sizes: dict[str, StoreSize] = {}
        for params in (Params(labels=None), Params(labels=None, profile="fast")):
            store = Path(folder) / params.profile
            prepare_store(store)
            convert_case(case, params, store)
            if not same_voxels(open_store(store)[CASE_ID].image[:], volume):
                raise ScanError(f"{series}: the store does not hold the voxels of the series.")
            files = files_below(store / GROUP / CASE_ID)
            stored_bytes = sum(file.stat().st_size for file in files)
            over = round(stored_bytes / archive_bytes, 3)
            sizes[params.profile] = StoreSize(bytes=stored_bytes, files=len(files), over_nii_gz=over)
    return RealScan(series=series.name, shape=volume.shape, nii_gz_bytes=archive_bytes, **sizes)


def read_series(folder: Path) -> npt.NDArray[np.int16]:
    """Return int16[z, y, x], HU, of a DICOM series, read by SimpleITK."""
    with explain_import("SimpleITK", ConfigError("--dicom needs SimpleITK: pip install 'slicemill[dev]'.")):
        import SimpleITK
    names = SimpleITK.ImageSeriesReader.GetGDCMSeriesFileNames(str(folder))  # type: ignore[no-untyped-call]
    if not names:
        raise ScanError(f"{folder}: holds no DICOM series.")
    image = SimpleITK.ReadImage(names)
    return np.asarray(SimpleITK.GetArrayFromImage(image), dtype=np.int16)
