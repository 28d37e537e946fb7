"""Two small cases by hand, their predictions, and the command line."""

import shutil

import numpy as np
import pytest
from typer.testing import CliRunner

from slicemill.cli import commands
from slicemill.ct.labels import LITS_LABELS
from slicemill.ct.phantom import write_nifti

SPACING = (2.0, 1.0, 1.0)


@pytest.fixture(scope="session")
def command():
    """Run a command of `slicemill`, and return its result."""
    app = commands()
    return lambda *words: CliRunner().invoke(app, [str(word) for word in words])


@pytest.fixture
def two_cases(tmp_path):
    """By hand: case 1 has liver and tumor, half of the tumor found; case 2 has no tumor, and none is found."""
    truth = np.zeros((2, 2, 4, 6), np.uint8)
    truth[:, :, 1:3, 1:5] = 1
    truth[0, 0, 1, 1:5] = 2
    predicted = truth.copy()
    predicted[0, 0, 1, 1:3] = 1
    for number in (1, 2):
        write_nifti(tmp_path / "truth" / f"segmentation-{number}.nii", truth[number - 1], SPACING)
        write_nifti(tmp_path / "truth" / f"volume-{number}.nii.gz", np.full((2, 4, 6), 50, np.int16), SPACING)
        write_nifti(tmp_path / "predicted" / f"volume-{number}.nii.gz", predicted[number - 1], SPACING)
    return tmp_path


@pytest.fixture
def predicted_store(two_cases, one_worker):
    """The predictions of two cases, ingested with their scans."""
    from slicemill.ingest.discover import discover
    from slicemill.ingest.params import Params
    from slicemill.ingest.pipeline import IngestOptions, ingest

    for mask in (two_cases / "predicted").iterdir():
        place = two_cases / "both" / mask.name.replace("volume", "segmentation")
        place.parent.mkdir(exist_ok=True)
        shutil.copy(mask, place)
        shutil.copy(two_cases / "truth" / mask.name, two_cases / "both" / mask.name)
    ingest(discover(two_cases / "both"), two_cases / "store", Params(labels=LITS_LABELS), IngestOptions(workers=1))
    return two_cases / "store"
