"""Messages between the server and its children: one JSON object a line, on standard input and output.

A child that reads hostile bytes may be taken over by them. What it sends is therefore checked like a file from outside:
lines have a length limit, and each message must be a known record.
"""

import json
import os
import queue
import sys
from dataclasses import dataclass
from typing import Any, TextIO, TypeVar

from slicemill.common.documents import from_document, to_document
from slicemill.common.errors import InputError
from slicemill.common.files import parse_json_object
from slicemill.common.signals import start_helper

T = TypeVar("T")
MAX_LINE = 32 << 20
"""Bytes of a message: a report of many lesions has some megabytes."""


@dataclass(frozen=True, slots=True)
class Message:
    """A message whose record was not checked yet."""

    kind: str
    """Name of the record's class."""
    record: dict[str, Any]

    def read(self, kind: type[T]) -> T:
        """Return the record.

        Raises
        ------
        InputError
            It is another one, or damaged.
        """
        if self.kind != kind.__name__:
            raise InputError(f"a message must be {kind.__name__}; it is {self.kind[:40]!r}.")
        return from_document(kind, self.record, "a message of a child process")


def encode(record: object) -> bytes:
    r"""Return a record as a line.

    >>> from slicemill.web.serve.records import CancelOrder
    >>> encode(CancelOrder(job=7))
    b'{"kind": "CancelOrder", "record": {"job": 7}}\n'
    """
    return json.dumps({"kind": type(record).__name__, "record": to_document(record)}).encode() + b"\n"


def decode(line: bytes) -> Message:
    """Return the message of a line.

    Raises
    ------
    InputError
        The line is no message.
    """
    document = parse_json_object(line, "a message of a child process")
    kind, record = document.get("kind"), document.get("record")
    if not isinstance(kind, str) or not isinstance(record, dict):
        raise InputError("a message of a child process must have a kind and a record.")
    return Message(kind, record)


class Channel:
    """The child's side: orders arrive in a queue; the process ends when the server does."""

    def __init__(self) -> None:
        self.orders: queue.SimpleQueue[Message] = queue.SimpleQueue()
        self._out = os.fdopen(os.dup(1), "wb", buffering=0)
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # nothing that a library prints is taken for a message
        start_helper(self._read_orders)

    def send(self, record: object) -> None:
        """Send a record to the server."""
        self._out.write(encode(record))

    def _read_orders(self) -> None:
        source: TextIO = sys.stdin
        for line in source.buffer:
            self.orders.put(decode(line))
        os._exit(0)  # the server has ended, perhaps by a kill: nobody wants a result
