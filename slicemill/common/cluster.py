"""Connection to a Dask cluster. Dask is imported only here and by what runs on it: other commands work without it."""

import contextlib
from collections.abc import Iterator
from typing import Any

from slicemill.common.errors import ConfigError
from slicemill.common.extras import explain_import
from slicemill.common.loggers import silence_loggers

RESPONSE_SECONDS = 20
"""How long to wait for a scheduler to answer."""


@contextlib.contextmanager
def quiet_dask() -> Iterator[Any]:
    """Yield the package `distributed`, with silent loggers: its errors are reported as outcomes.

    Raises
    ------
    ConfigError
        Dask is not installed.
    """
    missing = ConfigError(
        "Dask is not installed. Run: pip install 'slicemill[ingest]'; for --scheduler, also in the environment of its "
        "workers."
    )
    with explain_import("distributed", missing):
        import distributed
    with silence_loggers("distributed"):
        yield distributed


@contextlib.contextmanager
def connect(address: str) -> Iterator[Any]:
    """Yield a client of the Dask scheduler at this address.

    Raises
    ------
    ConfigError
        Dask is not installed, or the scheduler does not answer.
    """
    with quiet_dask() as distributed:
        try:
            client = distributed.Client(address, timeout=f"{RESPONSE_SECONDS}s")
        except (OSError, ValueError) as error:
            raise ConfigError(f"--scheduler {address}: cannot connect to the Dask scheduler ({error}).") from error
        with client:
            yield client
