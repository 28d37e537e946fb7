"""Damaged MetaImage and NRRD files: a case is stored completely, or one clear error says why not."""

import gzip
import tempfile
import zlib
from pathlib import Path

import SimpleITK as sitk  # noqa: N813 (its own documentation's name)

from slicemill.ct.labels import LITS_LABELS
from slicemill.ingest.params import Params
from tests.fuzz.damage import damage_bytes
from tests.fuzz.scans import IMAGE, MASK, NUMBERS, check

KINDS = ("mha", "packed.mha", "mhd", "packed.mhd", "nrrd", "packed.nrrd", "nhdr")
WORDS = (
    "LOCAL", "LIST", "LIST 2", "True", "False", "/etc/passwd", "../x.raw", "image.raw", "s%d.raw 0 5 1", "%n%n 0 9 1",
    "MET_CHAR", "MET_DOUBLE", "gzip", "raw", "hex", "little", "big", "none", "(nan,0,0) (0,1,0) (0,0,1)", "1e308 1 1",
    "unsigned char", "double", "right-anterior-superior", "9" * 40, "", "\0", "6 5", "4 5 6 2",
)  # fmt: skip


def sample(role, kind):
    """Return the files of a small valid scan, as SimpleITK writes them, by suffix."""
    image = sitk.GetImageFromArray(IMAGE if role == "image" else MASK)
    image.SetSpacing((0.8, 0.8, 2.5))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"{role}.{kind.rpartition('.')[2]}"
        sitk.WriteImage(image, str(path), useCompression=kind.startswith("packed"))
        return {file.name.partition(".")[2]: file.read_bytes() for file in Path(folder).iterdir()}


SAMPLES = {(role, kind): sample(role, kind) for role in ("image", "mask") for kind in KINDS}


def damage_header(rng, content):
    """Change values, keys and lines of the text at the start of a file."""
    lines = content.split(b"\n")
    last = next((n for n, line in enumerate(lines) if line.startswith(b"ElementDataFile") or not line), len(lines) - 1)
    for _ in range(rng.randint(1, 3)):
        at = rng.randrange(max(1, last))
        key, separator, value = lines[at].partition(b"=" if b"=" in lines[at] else b":")
        words = value.split()
        choice = rng.randrange(5)
        if choice == 0:
            lines[at] = key + separator + b" " + rng.choice(WORDS).encode()
        elif choice == 1 and words:
            words[rng.randrange(len(words))] = str(rng.choice(NUMBERS)).encode()
            lines[at] = key + separator + b" " + b" ".join(words)
        elif choice == 2:
            lines.insert(at, lines[rng.randrange(max(1, last))])
        elif choice == 3:
            lines.pop(at)
            last = max(1, last - 1)
        else:
            lines[at] = damage_bytes(rng, lines[at])
    return b"\n".join(lines)


def damage_voxels(rng, content):
    """Damage the bytes of voxels, or what a compressed stream holds."""
    if rng.random() < 0.3:
        inner = damage_bytes(rng, bytes(200))
        return rng.choice([zlib.compress(inner), gzip.compress(inner), zlib.compress(bytes(5_000_000))])
    return damage_bytes(rng, content)


def draw_damaged(rng):
    """Return the files of an image and a mask, of which one is damaged."""
    files = {role: dict(SAMPLES[role, rng.choice(KINDS)]) for role in ("image", "mask")}
    role = rng.choice(["image", "mask"])
    suffix = rng.choice(sorted(files[role]))
    damage = damage_voxels if "raw" in suffix or rng.random() < 0.2 else damage_header
    files[role][suffix] = damage(rng, files[role][suffix])
    return files


def attempt(rng, folder):
    """Ingest a damaged scan."""
    geometry = rng.choice(["error", "trust-image", "resample"])
    check(draw_damaged(rng), Params(labels=LITS_LABELS, geometry=geometry, keep_text=rng.random() < 0.5))
