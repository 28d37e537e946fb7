"""Loggers of libraries."""

import contextlib
import logging
from collections.abc import Iterator


@contextlib.contextmanager
def silence_loggers(prefix: str) -> Iterator[None]:
    """Silence the loggers whose names start with `prefix` while the block runs, and restore their levels at its end."""
    names = [name for name in logging.root.manager.loggerDict if name.startswith(prefix)]
    levels = {name: logging.getLogger(name).level for name in names}
    try:
        for name in names:
            logging.getLogger(name).setLevel(logging.CRITICAL)
        yield
    finally:
        for name, level in levels.items():
            logging.getLogger(name).setLevel(level)
