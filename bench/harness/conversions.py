"""Baselines of `bench ingest`: the usual ways to convert an image and its mask.

Each takes the paths of both files and an empty folder, and runs on one core. Its sentence lists
the differences from slicemill's ingest.
"""

import gzip
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import nibabel as nib
import numpy as np
import numpy.typing as npt
from PIL import Image

LOW_HU, HIGH_HU = -200, 300
Convert = Callable[[Path, Path, Path], None]


@dataclass(frozen=True, kw_only=True)
class Peer:
    """A way to convert a case."""

    name: str
    convert: Convert
    sentence: str
    """Differences from slicemill's ingest."""
    needs: str
    """Module that must be installed."""


def png_slices(image: Path, mask: Path, out: Path) -> None:
    """Write an 8-bit PNG and a mask PNG per slice."""
    _eight_bit(image, mask, out, "png")


def jpeg_slices(image: Path, mask: Path, out: Path) -> None:
    """Write a JPEG and a mask PNG per slice."""
    _eight_bit(image, mask, out, "jpg")


def _eight_bit(image: Path, mask: Path, out: Path, suffix: str) -> None:
    voxels, labels = nib.load(image).get_fdata(), nib.load(mask).get_fdata()
    for z in range(voxels.shape[2]):
        section = np.clip(voxels[:, :, z], LOW_HU, HIGH_HU)
        section = (section - LOW_HU) / (HIGH_HU - LOW_HU) * 255
        Image.fromarray(section.astype(np.uint8)).save(out / f"image_{z}.{suffix}")
        Image.fromarray(labels[:, :, z].astype(np.uint8)).save(out / f"mask_{z}.png")


def nnunet_blosc2(image: Path, mask: Path, out: Path) -> None:
    """Write a case as nnU-Net 2.6 does: normalized float32 and labels, blosc2, zstd 8, blocks of its 2-D patch."""
    import blosc2

    blosc2.set_nthreads(1)
    voxels = np.asarray(nib.load(image).dataobj, dtype=np.float32).transpose(2, 1, 0)[None]
    labels = np.asarray(nib.load(mask).dataobj, dtype=np.int8).transpose(2, 1, 0)[None]
    foreground = voxels[labels > 0]
    low, high = np.percentile(foreground, (0.5, 99.5)) if foreground.size else (LOW_HU, HIGH_HU)
    data = (np.clip(voxels, low, high) - foreground.mean()) / max(float(foreground.std()), 1e-8)
    side = voxels.shape[2:]
    for name, array in (("case", data.astype(np.float32)), ("case_seg", labels)):
        blosc2.asarray(
            np.ascontiguousarray(array),
            urlpath=str(out / f"{name}.b2nd"),
            chunks=(1, 1, *side),
            blocks=(1, 1, 64, 64),
            cparams={"codec": blosc2.Codec.ZSTD, "clevel": 8},
        )


def igzip_zarr(image: Path, mask: Path, out: Path) -> None:
    """Write the same arrays, chunks and codecs as slicemill through zarr-python, after a fast gzip decoder."""
    import zarr
    from zarr.codecs import BloscCodec, Crc32cCodec, ZstdCodec

    for name, path in (("image", image), ("label", mask)):
        voxels = _read_voxels(path)
        pixels = voxels.shape[1] * voxels.shape[2]
        first: BloscCodec | ZstdCodec = ZstdCodec(level=1)
        if name == "image":
            first = BloscCodec(typesize=2, cname="zstd", clevel=1, shuffle="bitshuffle", blocksize=2 * pixels)
        array = zarr.create_array(
            out / name,
            shape=voxels.shape,
            chunks=(1, *voxels.shape[1:]),
            shards=voxels.shape,
            dtype=voxels.dtype,
            compressors=[first, Crc32cCodec()],
        )
        array[:] = voxels


def _read_voxels(path: Path) -> npt.NDArray[np.generic]:
    """Return any[z, y, x], the file's bytes in C order."""
    from isal import igzip

    proxy = nib.load(path).dataobj
    with igzip.open(path, "rb") if path.name.endswith(".gz") else path.open("rb") as stream:
        stream.read(proxy.offset)
        data = stream.read()
    return np.frombuffer(data, proxy.dtype).reshape(proxy.shape[::-1])


def gzip6_nifti(volume: npt.NDArray[np.int16], path: Path) -> None:
    """Write int16[z, y, x] as .nii.gz with gzip at level 6, the format of most archives."""
    picture = nib.Nifti1Image(volume.transpose(2, 1, 0), np.eye(4))
    with gzip.open(path, "wb", compresslevel=6) as stream:
        stream.write(picture.to_bytes())


PEERS = (
    Peer(
        name="PNG slices",
        convert=png_slices,
        sentence="get_fdata, window, 8-bit PNG and mask PNG a slice; lossy, no statistics",
        needs="PIL",
    ),
    Peer(
        name="JPEG slices",
        convert=jpeg_slices,
        sentence="the same with JPEG images; lossy, no statistics",
        needs="PIL",
    ),
    Peer(
        name="nnU-Net blosc2",
        convert=nnunet_blosc2,
        sentence="its stored form without resampling: normalized float32, zstd 8; HU are lost, no statistics",
        needs="blosc2",
    ),
    Peer(
        name="igzip + zarr-python",
        convert=igzip_zarr,
        sentence="the same arrays and codecs as ours, whole volume in memory; no statistics, hash or geometry",
        needs="zarr",
    ),
)
