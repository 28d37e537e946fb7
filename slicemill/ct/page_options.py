"""Options of pages with slices, without the modules that make them."""

from slicemill.common.errors import ConfigError

VIEWER_MB = 8
"""MiB of slices in a page: a page of this size can still be sent by mail."""
MOST_VIEWER_MB = 200
"""Browsers open larger pages slowly, or not at all."""


def check_viewer_mb(size: float) -> None:
    """Check a size of the option `--viewer-mb`.

    Raises
    ------
    ConfigError
        It is negative, too large or no number.
    """
    if not 0 <= size <= MOST_VIEWER_MB:
        raise ConfigError(f"--viewer-mb {size:g}: must be from 0 to {MOST_VIEWER_MB}.")
