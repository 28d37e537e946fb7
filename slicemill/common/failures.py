"""One way from any exception in the work on a case to the reason of its failure."""

import errno
import re
from dataclasses import dataclass

from slicemill.common.errors import InputError, ProviderError, ReadError, StoreError

EXHAUSTED = (errno.EMFILE, errno.ENFILE)
"""Errors of a process or a system that ran out of file descriptors; they say nothing about the file."""
NO_MEMORY = re.compile(
    r"bad_alloc|bad allocation|out of memory|can't allocate memory|cannot allocate memory|unable to allocate"
    r"|failed to allocate|not enough memory|can't start new thread|failed to launch worker thread"
    r"|failed to map segment",
    re.IGNORECASE,
)
"""Messages of onnxruntime, torch, OpenVINO, numpy, the C++ library, the loader and threads without memory."""


@dataclass(frozen=True, kw_only=True)
class Failure:
    """Why the work on a case failed."""

    reason: str
    """One sentence that names the file."""
    passing: bool = False
    """Whether another run may succeed (after a full disk, a read error, a lack of memory), so that it tries again."""
    bug: bool = False
    """Whether the exception is not one that a user can correct."""


def explain_failure(error: BaseException, where: object, *, fewer: str = "--workers") -> Failure:
    """Return the failure that an exception means for one case.

    Parameters
    ----------
    error
        Any exception of the work on the case.
    where
        File or name of the case, for messages that do not name one.
    fewer
        Option that lowers the memory in use.

    >>> explain_failure(InputError("no such axis."), "volume-1.nii").reason
    'volume-1.nii: no such axis.'
    >>> explain_failure(KeyError("x"), "volume-1.nii").reason
    "volume-1.nii: this is a bug, please report it: KeyError: 'x'"
    """
    if isinstance(error, InputError):
        passing = isinstance(error, ReadError | StoreError | ProviderError)
        return Failure(reason=str(error) if error.where else f"{where}: {error}", passing=passing)
    detail = find_memory_detail(error)
    if detail is not None:
        reason = f"{where}: not enough memory{detail}; use fewer {fewer}, or a machine with more memory."
        return Failure(reason=reason, passing=True)
    if isinstance(error, OSError):
        return Failure(reason=f"{error.filename or where}: {error.strerror or error}.", passing=True)
    reason = f"{where}: this is a bug, please report it: {type(error).__name__}: {_first_line(error)}"
    return Failure(reason=reason, passing=True, bug=True)


def find_memory_detail(error: BaseException) -> str | None:
    """Return what was asked for, in brackets, if an exception means a lack of memory; None for any other exception.

    The text is empty if the exception does not say what was asked for.

    >>> find_memory_detail(RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes"))
    " (DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes)"
    >>> find_memory_detail(MemoryError()), find_memory_detail(ValueError("no such axis"))
    ('', None)
    """
    if isinstance(error, InputError):
        return None
    text = _first_line(error)
    lacks = isinstance(error, MemoryError) or (isinstance(error, OSError) and error.errno == errno.ENOMEM)
    if not lacks and (isinstance(error, OSError) or not NO_MEMORY.search(str(error))):
        return None
    if not lacks:  # of a long message, the line that names the request
        text = next((line.strip() for line in str(error).splitlines() if NO_MEMORY.search(line)), text)
    return f" ({text.rstrip('.')})" if text else ""


def raise_system_limit(error: BaseException) -> None:
    """Raise an exception again that says nothing about the file: the process lacks memory or file descriptors."""
    if find_memory_detail(error) is not None or (isinstance(error, OSError) and is_exhausted(error)):
        raise error


def is_exhausted(error: OSError) -> bool:
    """Return whether the process ran out of file descriptors."""
    return error.errno in EXHAUSTED


def _first_line(error: BaseException) -> str:
    """Return the first line of an exception's message."""
    return next((line.strip() for line in str(error).splitlines() if line.strip()), "")
