"""What a scanner does to a chest: slices of a thickness, blur in the plane, and noise."""

import numpy as np
import numpy.typing as npt

from slicemill.ct.chest.shapes import Floats

FINE = 3
"""Thin slices drawn for each slice of the scan."""
PROFILE = np.array([0.5, 1.0, 1.0, 1.0, 0.5], dtype=np.float32) / 4
"""Weights of the thin slices of a slice: its own three, and half of the next on both sides."""
MARGIN = (len(PROFILE) - FINE) // 2
LOWEST, HIGHEST = -1024, 3071


def average_slices(fine: Floats) -> Floats:
    """Average thin slices float32[FINE * n + 2 * MARGIN, y, x] over the slice profile: float32[n, y, x]."""
    count = (len(fine) - 2 * MARGIN) // FINE
    total = np.zeros((count, *fine.shape[1:]), dtype=np.float32)
    for index, weight in enumerate(PROFILE):
        total += weight * fine[index : index + FINE * count : FINE]
    return total


def make_noise(rng: np.random.Generator, size: int, sigma_hu: float) -> Floats:
    """Return noise of a slice float32[y, x], HU: its spectrum rises as a ramp and falls off, as after filtering.

    The peak is at a third of the Nyquist frequency (Riederer and others, Phys Med Biol 1978).
    """
    frequency = np.hypot(np.fft.fftfreq(size)[:, None], np.fft.rfftfreq(size)[None])
    transfer = np.sqrt(frequency + 0.004) * np.exp(-((frequency / 0.30) ** 2))
    noise = np.fft.irfft2(np.fft.rfft2(rng.standard_normal((size, size), dtype=np.float32)) * transfer, s=(size, size))
    return np.asarray(noise * (sigma_hu / noise.std()), dtype=np.float32)


def to_int16(hu: Floats) -> npt.NDArray[np.int16]:
    """Round HU to int16 within what scanners store."""
    return np.rint(np.clip(hu, LOWEST, HIGHEST)).astype(np.int16)
