"""What was done and what failed, as JSON lines that are appended: local, or below a URL an object for every batch of lines.

Several runs may write one ledger; on a disk they take turns by a claim, since appending is not safe over NFS without.
"""

import time
import uuid
from typing import Any

from slicemill.common.files import Location, append_line, to_json
from slicemill.common.locks import wait_for_claim
from slicemill.common.remote import RemotePath

LEDGER = "ledger.jsonl"
BATCH_SECONDS = 15.0
"""How long lines wait before they become an object of an object store."""
TURN = ".ledger"
"""Name of the claim; a case id does not start with a dot."""


class Ledger:
    """A ledger to append to.

    Lines that wait for their batch are lost when the run is killed: what they say must be found again another way.
    """

    def __init__(self, place: Location) -> None:
        self._place = place
        self._waiting: list[dict[str, Any]] = []
        self._since = time.monotonic()

    def append(self, record: dict[str, Any]) -> None:
        """Append a line."""
        if not isinstance(self._place, RemotePath):
            with wait_for_claim(self._place.parent, TURN, every=0.01):
                append_line(self._place, record)
            return
        self._waiting.append(record)
        if time.monotonic() - self._since > BATCH_SECONDS:
            self.flush()

    def flush(self) -> None:
        """Write the lines that wait."""
        if self._waiting and isinstance(self._place, RemotePath):
            name = f"{time.time_ns():020d}-{uuid.uuid4().hex[:8]}.jsonl"
            (self._place / name).write_bytes("".join(to_json(record) + "\n" for record in self._waiting).encode())
            self._waiting = []
        self._since = time.monotonic()
