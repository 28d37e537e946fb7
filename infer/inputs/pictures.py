"""Picture input: a slice as PNG or JPEG, whose gray values are converted to HU by a window.

Black is the low end of the window and white the high end, as `slicemill store export-slices` writes them, in 8 or 16
bits. Row 0 is anterior, column 0 the patient's right, as a browser shows the picture. What may be another picture than
a person sees, or was made by no window, is refused: colors, transparency, uncertain orientations, another gamma than
that of sRGB, dark gray values.
`slicemill infer` and `slicemill serve` read pictures by the same rules, which are here.
"""

import io
import struct
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import nibabel as nib
import numpy as np
import numpy.typing as npt
from PIL import ExifTags, Image, ImageOps

from slicemill.common.errors import ScanError
from slicemill.common.files import open_stream
from slicemill.ct.window import Window

SUFFIXES = (".png", ".jpg", ".jpeg")
FORMATS = ("PNG", "JPEG")
WHITE = {"L": 255, "I;16": 65535, "I": 65535}
"""Brightest value of each of Pillow's gray modes."""
COLOR_MODES = ("RGB", "RGBA", "LA", "P", "PA")
"""Other modes that are accepted if their pixels are gray."""
INT16 = np.iinfo(np.int16)
WARNING = "a picture has no pixel size; pixels count as 1 mm, and so do volumes and diameters"
MOST_COLORED = 0.02
"""Largest share of colored pixels: more are a drawing, a photograph or a colored overlay."""
COLORED = 24
"""Difference of the channels from which a pixel is colored; the noise of JPEG is below (4:2:0, quality 50)."""
LEAST_CONTRAST = 0.25
"""Least range of the gray values, of black to white: below it, no window made the picture."""
AIR_HU = -900
"""HU up to which a picture shows air alone, and may be dark."""
GAMMA = 0.45455
"""Gamma of sRGB, which PNG files may state; browsers show the pixels of other ones brighter or darker."""
TAIL = 0.01
"""Share of the darkest and of the brightest pixels that do not count for the range: text, markers, borders."""
UPRIGHT, LAST_ORIENTATION = 1, 8
"""EXIF's numbers: of a picture that is shown as it is stored, and of the last other one."""
EXCHANGED = 5
"""First of the orientations that exchange rows and columns."""
BLOCK_PIXELS = 1 << 17
DAMAGE = (
    SyntaxError, ValueError, TypeError, AttributeError, ArithmeticError, LookupError, EOFError, struct.error,
    Image.DecompressionBombError,
)  # fmt: skip
"""What Pillow raises for damaged files, beside an OSError without a number."""


def is_picture(name: str) -> bool:
    """Return whether a file name has the suffix of a picture.

    >>> is_picture("0017.PNG"), is_picture("0017.nii")
    (True, False)
    """
    return name.lower().endswith(SUFFIXES)


@dataclass(frozen=True, slots=True)
class Gray:
    """The gray values of a picture, or of a frame of it."""

    levels: npt.NDArray[np.uint8] | npt.NDArray[np.uint16]
    """uint8[y, x] or uint16[y, x], 0 is black."""
    white: int
    path: Path

    def to_hu(self, window: Window) -> npt.NDArray[np.int16]:
        """Return int16[y, x], HU; row by row, so that only 2 bytes a pixel are added.

        Raises
        ------
        ScanError
            No window made these gray values: CT values of 12 bits in 16, for example, are nearly black.
        """
        low, high = self._range()
        brightest = window.low + high * (window.high - window.low) / self.white
        if high and brightest > AIR_HU and high - low < LEAST_CONTRAST * self.white:
            raise ScanError(
                f"without the darkest and brightest hundredth, its gray values are {low} to {high}, of 0 to "
                f"{self.white}, which is less than {LEAST_CONTRAST:.0%} of black to white: no window made this "
                "picture. Export it with a window, as 8 bits, or use the scan itself.",
                where=self.path,
            )
        levels = np.arange(self.white + 1)
        values = np.rint(window.low + levels * ((window.high - window.low) / self.white)).astype(np.int16)
        hu = np.empty(self.levels.shape, dtype=np.int16)
        for row, out in zip(self.levels, hu, strict=True):
            np.take(values, row, out=out)
        return hu

    def _range(self) -> tuple[int, int]:
        """Return the lowest gray value of the pixels, and the highest one of those that are not black, without TAIL."""
        counts = np.zeros(self.white + 1, dtype=np.int64)
        step = max(1, BLOCK_PIXELS // self.levels.shape[1])
        for row in range(0, len(self.levels), step):
            counts += np.bincount(self.levels[row : row + step].ravel(), minlength=self.white + 1)
        if not counts[1:].any():
            return 0, 0  # only air, in any window
        below, lit = counts.cumsum(), counts[1:].cumsum()
        low = int(np.searchsorted(below, TAIL * below[-1], side="right"))
        return low, 1 + int(np.searchsorted(lit, (1 - TAIL) * lit[-1]))


@dataclass(frozen=True, slots=True)
class GrayPicture:
    """An open picture that is not decoded yet."""

    path: Path
    image: Image.Image
    columns: int
    """Pixels along x, as a browser shows it."""
    rows: int

    def decode(self) -> Gray:
        """Decode the picture as a browser shows it; color profiles are not applied.

        Raises
        ------
        ScanError
            The picture is damaged, colored, partly transparent, or nobody knows how it is to be turned.
        """
        with name_damage(self.path):
            self.image.load()
            _find_orientation(self.image, self.path)  # a PNG may have its note after the pixels
            _require_plain_gamma(self.image, self.path)
            upright = ImageOps.exif_transpose(self.image)
            if not _is_opaque(upright):
                raise ScanError("is partly transparent. Save it without transparency.", where=self.path)
            if upright.mode not in WHITE:
                return Gray(_drop_color(np.asarray(upright.convert("RGB")), self.path), 255, self.path)
            levels = np.asarray(upright)
        white = WHITE[upright.mode]
        if levels.dtype not in (np.uint8, np.uint16):  # Pillow's mode I has 32 bits
            levels = np.clip(levels, 0, white).astype(np.uint16)
        return Gray(levels, white, self.path)


@contextmanager
def open_gray(path: Path) -> Iterator[GrayPicture]:
    """Open a picture and check its mode; close it when the block ends.

    Raises
    ------
    ScanError
        The file is not a picture, or has a mode that is neither gray nor RGB.
    """
    with ExitStack() as stack:
        with name_damage(path), warnings.catch_warnings():
            # Pillow warns from half of the pixels on that it refuses; larger pictures end in DecompressionBombError
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            stream = stack.enter_context(io.BufferedReader(open_stream(path)))
            image = stack.enter_context(Image.open(stream, formats=FORMATS))
        if image.mode not in WHITE and image.mode not in COLOR_MODES:
            raise ScanError(
                f"must be gray, 8 or 16 bits; its mode is {image.mode}. Save it as gray, or use the scan itself.",
                where=path,
            )
        with name_damage(path):
            # the size of a PNG does not change: its orientations are refused when it is decoded
            is_exchanged = image.format != "PNG" and _find_orientation(image, path) >= EXCHANGED
        columns, rows = image.size[::-1] if is_exchanged else image.size
        yield GrayPicture(path, image, columns, rows)


def _require_plain_gamma(image: Image.Image, path: Path) -> None:
    gamma = image.info.get("gamma")
    if gamma is not None and "srgb" not in image.info and abs(gamma - GAMMA) > 0.001:
        raise ScanError(
            f"has a gamma of {gamma:.5g}, so that its pixels are shown brighter or darker than they are stored; "
            f"{GAMMA} is that of sRGB. Save it again without a gamma.",
            where=path,
        )


def _find_orientation(image: Image.Image, path: Path) -> int:
    """Return EXIF's number of the orientation, by which a browser turns a picture.

    Browsers do not agree on other places of an orientation (XMP, the chunks of PNG), which are refused.
    """
    exif = Image.Exif()
    exif.load(image.info.get("exif", b""))
    stated = image.getexif().get(ExifTags.Base.Orientation, UPRIGHT)
    if not isinstance(stated, int) or not UPRIGHT < stated <= LAST_ORIENTATION:
        return UPRIGHT  # no orientation, which nobody follows
    if image.format == "PNG" or stated != exif.get(ExifTags.Base.Orientation):
        raise ScanError("is stored turned, with a note how to show it. Save it upright, without the note.", where=path)
    return stated


def _is_opaque(image: Image.Image) -> bool:
    """Return whether every pixel is shown as it is."""
    clear = image.info.get("transparency")
    if image.mode in WHITE:
        return clear is None or not bool(np.any(np.asarray(image) == clear))
    if clear is None and not image.mode.endswith("A"):
        return True
    return image.convert("RGBA").getchannel("A").getextrema()[0] == 255


def _drop_color(pixels: npt.NDArray[np.uint8], path: Path) -> npt.NDArray[np.uint8]:
    """Return uint8[y, x], the mean of the channels of uint8[y, x, 3].

    Raises
    ------
    ScanError
        More than MOST_COLORED of the pixels are colored.
    """
    levels = np.empty(pixels.shape[:2], dtype=np.uint8)
    colored = 0
    for row, out in zip(pixels, levels, strict=True):
        colored += int(np.count_nonzero(row.max(axis=1) - row.min(axis=1) > COLORED))
        np.rint(row.mean(axis=1), out=out, casting="unsafe")
    share = colored / levels.size
    if share > MOST_COLORED:
        raise ScanError(
            f"{share:.0%} of its pixels are colored; at most {MOST_COLORED:.0%} may be. A slice of a CT is gray: "
            "export it without overlays, or use the scan itself.",
            where=path,
        )
    return levels


@dataclass(frozen=True, kw_only=True)
class OpenPicture:
    """An open picture, and its window."""

    picture: GrayPicture
    window: Window
    header: bytes
    """NIfTI header for the picture's mask."""

    def decode(self) -> npt.NDArray[np.int16]:
        """Decode the picture as a scan of one slice, int16[1, y, x], HU.

        Raises
        ------
        ScanError
            The picture is damaged or not gray, or no window made it.
        """
        return self.picture.decode().to_hu(self.window)[np.newaxis]


@contextmanager
def open_picture(path: Path, window: Window | None) -> Iterator[OpenPicture]:
    """Open a picture as a scan of one slice; close it when the block ends.

    Raises
    ------
    ScanError
        The window is missing, or the file is not a gray picture.
    """
    if window is None:
        raise ScanError(
            "gray values of a picture are not HU; pass the window that it was made with, like --window -200,300.",
            where=path,
        )
    if window.low < INT16.min or window.high > INT16.max:
        limits = f"{window.low:g}..{window.high:g}"
        raise ScanError(f"HU must fit in {INT16.min}..{INT16.max}; its window is {limits}.", where=path)
    with open_gray(path) as picture:
        if max(picture.columns, picture.rows) > INT16.max:
            raise ScanError(
                f"has {picture.columns:,} x {picture.rows:,} pixels; a mask as NIfTI-1 has at most {INT16.max:,} "
                "along an axis; cut it.",
                where=path,
            )
        header = nib.Nifti1Header()
        header.set_data_shape((picture.columns, picture.rows, 1))
        header.set_data_dtype(np.int16)
        header.set_xyzt_units("mm")
        header.set_sform(np.diag([-1.0, -1.0, 1.0, 1.0]), code=1)
        yield OpenPicture(picture=picture, window=window, header=bytes(header.binaryblock))


@contextmanager
def name_damage(path: Path) -> Iterator[None]:
    """Convert Pillow's errors into a ScanError that names the file."""
    try:
        yield
    except ScanError:
        raise
    except DAMAGE as error:
        raise ScanError(f"cannot be read as a picture ({error}).", where=path) from error
    except OSError as error:
        if error.errno is not None:  # the disk's, which another run may read
            raise
        raise ScanError(f"cannot be read as a picture ({error}).", where=path) from error
