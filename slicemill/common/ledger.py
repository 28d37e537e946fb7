"""Ledgers: one JSON line per case that was done or failed; a local file, or a folder of objects in an object store.

Several runs may write one ledger. A local file is appended to under a claim, because appending is not safe over NFS.
"""

import time
import uuid
from typing import Any

from slicemill.common.files import Location, append_line, to_json
from slicemill.common.locks import wait_for_claim
from slicemill.common.remote import RemotePath

LEDGER = "ledger.jsonl"
BATCH_SECONDS = 15.0
"""How long lines are collected before they become one object of an object store."""
CLAIM = ".ledger"
"""Name of the claim; a case id does not start with a dot."""


class Ledger:
    """A ledger to append to.

    In an object store, lines that were not flushed are lost when the run is killed. The caller must be able to derive
    their content again.
    """

    def __init__(self, place: Location) -> None:
        self._place = place
        self._pending: list[dict[str, Any]] = []
        self._since = time.monotonic()

    def append(self, record: dict[str, Any]) -> None:
        """Append a line."""
        if not isinstance(self._place, RemotePath):
            with wait_for_claim(self._place.parent, CLAIM, every=0.01):
                append_line(self._place, record)
            return
        self._pending.append(record)
        if time.monotonic() - self._since > BATCH_SECONDS:
            self.flush()

    def flush(self) -> None:
        """Write the collected lines."""
        if self._pending and isinstance(self._place, RemotePath):
            name = f"{time.time_ns():020d}-{uuid.uuid4().hex[:8]}.jsonl"
            (self._place / name).write_bytes("".join(to_json(record) + "\n" for record in self._pending).encode())
            self._pending = []
        self._since = time.monotonic()
