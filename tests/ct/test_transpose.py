"""Slabs of scans in any axis order, through a temporary file where z is not the slowest axis."""

import itertools
from pathlib import Path

import numpy as np
import pytest

from slicemill.ct.phantom import write_nifti
from slicemill.ct.scan import ScanReader

ORIENTATIONS = [
    "".join(codes) for axes in itertools.permutations(("RL", "AP", "SI")) for codes in itertools.product(*axes)
]


@pytest.mark.parametrize("axcodes", ORIENTATIONS)
def test_slabs_of_any_axis_order_are_the_volume(axcodes, tmp_path, rng, monkeypatch):
    monkeypatch.setattr("slicemill.ct.scan.BATCH_BYTES", 700)
    volume = rng.integers(-1000, 1000, (11, 9, 7)).astype(np.int16)
    path = tmp_path / "scan.nii"
    write_nifti(path, volume, (3.0, 2.0, 1.0), axcodes)
    for depth, buffers in ((1, 1), (4, 2), (100, 1)):
        with ScanReader(path, "image") as reader:
            found = np.full_like(volume, 9999)
            order = []
            for slab in reader.slabs(depth, buffers=buffers, temp_folder=tmp_path):
                found[slab.z : slab.z + len(slab.voxels)] = slab.voxels
                order.append(slab.z)
        assert np.array_equal(found, volume)
        assert order == sorted(order) or order == sorted(order, reverse=True)
    assert list(tmp_path.iterdir()) == [path]


def test_as_many_slabs_stay_valid_as_there_are_buffers(tmp_path, rng):
    volume = rng.integers(-1000, 1000, (12, 5, 6)).astype(np.int16)
    path = tmp_path / "scan.nii"
    write_nifti(path, volume, (3.0, 2.0, 1.0), "LPS")
    with ScanReader(path, "image") as reader:
        slabs = list(itertools.islice(reader.slabs(2, buffers=3), 3))
    for slab in slabs:
        assert np.array_equal(slab.voxels, volume[slab.z : slab.z + 2])


@pytest.mark.slow
@pytest.mark.parametrize("axcodes", ["PSR", "SLP"])
def test_a_transposed_volume_takes_disk_and_not_memory(axcodes, tmp_path):
    """2 x 192 MiB of voxels, in a process of its own: its peak grows by a few slabs and batches."""
    import subprocess
    import sys

    volume = np.zeros((384, 512, 512), np.int16)
    volume[::7] = 100
    path = tmp_path / "volume-1.nii"
    write_nifti(path, volume, (1.0, 1.0, 1.0), axcodes)
    code = (
        "import sys\nfrom pathlib import Path\n"
        "from slicemill.common.terminal import peak_mib\nfrom slicemill.ct.scan import ScanReader\n"
        "before = peak_mib()\n"
        "with ScanReader(Path(sys.argv[1]), 'image') as reader:\n"
        "    total = sum(int(slab.voxels[:, 0, 0].sum()) for slab in reader.slabs(temp_folder=Path(sys.argv[2])))\n"
        "print(total, peak_mib() - before)\n"
    )
    here = Path(__file__).parents[2]
    done = subprocess.run(
        [sys.executable, "-c", code, str(path), str(tmp_path)], cwd=here, capture_output=True, text=True, check=True
    )
    total, grown = done.stdout.split()
    assert int(total) == 100 * len(range(0, 384, 7))
    assert float(grown) < 80
