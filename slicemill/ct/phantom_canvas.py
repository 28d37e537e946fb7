"""The canvas of a phantom: a volume in HU that is drawn on in mm, and turned into a scan with noise."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]
Mask = npt.NDArray[np.bool_]
Point = tuple[float, float, float]

FIELD_MM = 350.0
AIR = -1000


@dataclass(frozen=True, kw_only=True)
class PhantomSpec:
    """Parameters of a phantom; equal parameters give equal voxels."""

    seed: int
    shape: tuple[int, int, int] = (40, 128, 128)
    """z, y, x."""
    height_mm: float = 190.0
    """Extent along the patient's axis."""
    tumors: int = 3
    middle_mm: float = 0.0
    """Height of the scan's middle above the middle of the abdomen."""
    trunk: bool = False
    """Whether thorax and pelvis are drawn, for a scan that is taller than the abdomen."""
    small_tumors: bool = False
    """Whether half of the tumors have a radius of 4 to 8 mm; otherwise all have 8 to 28 mm."""

    @property
    def spacing_mm(self) -> Point:
        """Return z, y, x; the field of view is FIELD_MM for all."""
        nz, ny, nx = self.shape
        return self.height_mm / nz, FIELD_MM / ny, FIELD_MM / nx


class Canvas:
    """A volume in HU, drawn on in mm: x to the left, y to posterior, z to superior; 0 in the abdomen's middle."""

    def __init__(self, spec: PhantomSpec, rng: np.random.Generator) -> None:
        self.rng = rng
        self.shape = spec.shape
        self.spacing = spec.spacing_mm
        self.middle_mm = spec.middle_mm
        axes = [
            ((np.arange(count) - (count - 1) / 2) * step).astype(np.float32)
            for count, step in zip(spec.shape, spec.spacing_mm, strict=True)
        ]
        axes[0] += np.float32(spec.middle_mm)
        self.z, self.y, self.x = np.meshgrid(*axes, indexing="ij", sparse=True)
        self.hu = np.full(spec.shape, AIR, dtype=np.float32)
        self.girth = float(rng.uniform(0.88, 1.04))
        """Relative size of this patient; all positions scale with it."""

    def smooth_field(self, length_mm: float) -> Floats:
        """Return a random field of mean 0, standard deviation 1 and correlation length `length_mm`."""
        noise = self.rng.standard_normal(self.shape, dtype=np.float32)
        transfer = np.ones((1, 1, 1), dtype=np.float32)
        for axis, (count, step) in enumerate(zip(self.shape, self.spacing, strict=True)):
            frequency = np.fft.rfftfreq(count, step) if axis == 2 else np.fft.fftfreq(count, step)
            shape = [1, 1, 1]
            shape[axis] = -1
            transfer = transfer * np.exp(-2 * (np.pi * frequency * length_mm / 2) ** 2).reshape(shape)
        field = np.fft.irfftn(np.fft.rfftn(noise) * transfer, s=self.shape, axes=(0, 1, 2)).astype(np.float32)
        return np.asarray(field / max(float(field.std()), 1e-6), dtype=np.float32)

    def ellipsoid(self, center: Point, radii: Point) -> Floats:
        """Return the scaled distance from `center` (x, y, z in mm): below 1 inside an ellipsoid of `radii`."""
        cx, cy, cz = center
        rx, ry, rz = radii
        distance: Floats = ((self.x - cx) / rx) ** 2 + ((self.y - cy) / ry) ** 2 + ((self.z - cz) / rz) ** 2
        return distance

    def blend(self, weight: Floats, hu: float | Floats) -> None:
        """Blend a tissue in: `weight` 0 keeps the present HU, 1 replaces them."""
        self.hu += weight * (hu - self.hu)

    def paint(self, mask: Mask, hu: float) -> None:
        """Set the HU of a tissue."""
        self.hu[mask] = hu

    def simulate_scan(self) -> npt.NDArray[np.int16]:
        """Add noise and crop to the round field of view: return int16[z, y, x], HU.

        The noise has 15 to 25 HU and is correlated over about two pixels.
        """
        rng = self.rng
        _, ny, nx = self.shape
        transfer = np.exp(
            -2 * (np.pi * 0.55) ** 2 * (np.fft.fftfreq(ny)[:, None] ** 2 + np.fft.rfftfreq(nx)[None] ** 2)
        )
        sigma = float(rng.uniform(15, 25))
        gain = sigma / np.sqrt((_full_power(transfer**2, nx)).mean())
        image = np.empty(self.shape, dtype=np.int16)
        for out, clean in zip(image, self.hu, strict=True):
            noise = np.fft.irfft2(np.fft.rfft2(rng.standard_normal((ny, nx))) * transfer * gain, s=(ny, nx))
            out[...] = np.rint(np.clip(clean + noise, -1024, 3000)).astype(np.int16)
        outside = (np.squeeze(self.x) ** 2)[None] + (np.squeeze(self.y) ** 2)[:, None] > (FIELD_MM / 2) ** 2
        image[:, outside] = -1024
        return image


def _full_power(half: npt.NDArray[np.float64], nx: int) -> npt.NDArray[np.float64]:
    """Return the power spectrum of a real transform, completed by its mirrored half."""
    mirrored = half[:, 1 : (nx + 1) // 2]
    return np.concatenate([half, mirrored], axis=1)
