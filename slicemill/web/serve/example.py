"""A synthetic scan, for whoever has no CT at hand."""

from pathlib import Path

from slicemill.ct.phantom import make_phantom, write_nifti
from slicemill.ct.phantom_canvas import PhantomSpec

SPEC = PhantomSpec(seed=9, shape=(40, 128, 128), height_mm=180.0, tumors=3)
"""As the scans of the demo, whose model is the first that most people serve."""
NAME = "Synthetic scan"
FILE = "example.nii"
WARNING = "a synthetic scan of an abdomen: it shows how this page works, and not how good the model is"


def write_example(folder: Path) -> Path:
    """Write the scan into a folder: an abdomen with lesions of the liver. Return its path."""
    phantom = make_phantom(SPEC)
    write_nifti(folder / FILE, phantom.image, phantom.spacing_mm)
    return folder / FILE
