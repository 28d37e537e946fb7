"""Any exception of the work on a case becomes one sentence, and a lack of memory says so."""

import errno

import numpy as np
import pytest

from slicemill.common.errors import InputError, ReadError, ScanError, StoreError
from slicemill.common.failures import explain_failure, find_memory_detail, raise_system_limit
from slicemill.common.terminal import report_errors


@pytest.mark.parametrize(
    ("error", "passing", "bug"),
    [
        (ScanError("is broken."), False, False),
        (ReadError("cannot be read."), True, False),
        (StoreError("is damaged."), True, False),
        (OSError(errno.EIO, "Input/output error"), True, False),
        (MemoryError(), True, False),
        (KeyError("labels"), True, True),
        (RecursionError("maximum recursion depth exceeded"), True, True),
        (OverflowError("int too big to convert"), True, True),
        (UnicodeEncodeError("utf-8", "\ud800", 0, 1, "surrogates not allowed"), True, True),
    ],
)
def test_every_exception_is_one_line_that_names_the_case(error, passing, bug):
    failure = explain_failure(error, "volume-1.nii")
    assert failure.reason.startswith("volume-1.nii: ")
    assert "\n" not in failure.reason
    assert (failure.passing, failure.bug) == (passing, bug)


def numpy_error():
    try:
        np.empty(1 << 60, dtype=np.uint8)
    except MemoryError as error:
        return error
    raise AssertionError


@pytest.mark.parametrize(
    ("error", "asked"),
    [
        (
            numpy_error(),
            "Unable to allocate 1.00 EiB for an array with shape (1152921504606846976,) and data type uint8",
        ),
        (RuntimeError("[ONNXRuntimeError] : 6 : Failed to allocate memory for requested buffer of size 4096"), "4096"),
        (RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has 1 GiB"), "2.00 GiB"),
        (
            RuntimeError("[enforce fail]\nDefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes"),
            "8 b",
        ),
        (RuntimeError("std::bad_alloc"), "bad_alloc"),
        (RuntimeError("out of memory: " + "a long story " * 40 + "2.00 GiB"), "2.00 GiB"),
        (RuntimeError("can't start new thread"), "can't start new thread"),
        (OSError(errno.ENOMEM, "Cannot allocate memory"), "Cannot allocate memory"),
        (ImportError("libarrow.so: failed to map segment from shared object"), "libarrow.so"),
    ],
)
def test_a_lack_of_memory_says_memory_and_what_was_asked_for(error, asked, capsys):
    reason = explain_failure(error, "a.nii", fewer="--readers").reason
    assert reason.startswith("a.nii: not enough memory (")
    assert asked in reason
    assert "--readers" in reason
    with pytest.raises(SystemExit) as stopped, report_errors():
        raise error
    shown = capsys.readouterr().err
    assert stopped.value.code == 1
    assert shown.startswith("slicemill: not enough memory (")
    assert asked in shown
    assert shown.count("\n") == 1


@pytest.mark.parametrize("error", [InputError("out of memory."), ValueError("no such axis"), FileNotFoundError(2, "x")])
def test_other_errors_are_no_lack_of_memory(error):
    assert find_memory_detail(error) is None
    raise_system_limit(error)


def test_running_out_of_file_descriptors_is_said_and_not_blamed_on_a_file(capsys):
    error = OSError(errno.EMFILE, "Too many open files", "zarr.json")
    with pytest.raises(OSError, match="Too many open files"):
        raise_system_limit(error)
    with pytest.raises(SystemExit) as stopped, report_errors():
        raise error
    assert stopped.value.code == 1
    assert "ulimit -n" in capsys.readouterr().err
