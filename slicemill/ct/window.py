"""HU windows: the range of HU that a network or a picture shows."""

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from slicemill.common.errors import ConfigError

AIR_HU = -1024
"""HU of padding."""


@dataclass(frozen=True, slots=True)
class Window:
    """An interval of Hounsfield units."""

    low: float
    """HU shown as black, or mapped to the network's lowest value."""
    high: float
    """HU shown as white."""

    def __post_init__(self) -> None:
        """Check that both ends are finite and the interval is not empty."""
        if not (math.isfinite(self.low) and math.isfinite(self.high)):
            raise ConfigError(f"window {self.low}..{self.high}: both ends must be finite.")
        if not self.low < self.high:
            raise ConfigError(f"window {self.low}..{self.high}: the lower end must be below the upper one.")

    def to_gray(self, image: npt.NDArray[np.int16]) -> npt.NDArray[np.uint8]:
        """Convert `image`: int16[..., y, x], HU -> uint8[..., y, x], black to white over the window.

        >>> Window(-100, 100).to_gray(np.array([-500, 0, 100], dtype=np.int16)).tolist()
        [0, 127, 255]
        """
        scaled = image.astype(np.float32)
        np.clip(scaled, self.low, self.high, out=scaled)
        scaled -= self.low
        scaled /= self.high - self.low
        scaled *= 255
        return scaled.astype(np.uint8)


DEFAULT_WINDOW = Window(-200, 300)
"""Soft tissue of the abdomen with contrast: fat to cortical bone."""
PICTURE_WINDOW = Window(-100, 240)
"""The abdominal window of a reading room: level 70, width 340."""
