"""SIGTERM and Ctrl-C end any command with one line and the status of the signal."""

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from slicemill.common.locks import try_claim
from slicemill.common.signals import Terminated, is_stopping, raise_on_stop_signals

HERE = Path(__file__).parents[2]
COMMAND = """
import signal, sys, time
from slicemill.common.terminal import report_errors
signal.signal(signal.SIGINT, signal.default_int_handler)
with report_errors():
    try:
        print("ready", flush=True)
        time.sleep(60)
    finally:
        if sys.argv[1] == "slow":
            print("cleaning", flush=True)
            time.sleep(1)
            print("cleaned", flush=True)
"""
WAIT = """
import signal, sys
from pathlib import Path
from slicemill.common.locks import wait_for_claim
from slicemill.common.terminal import report_errors
signal.signal(signal.SIGINT, signal.default_int_handler)
with report_errors():
    with wait_for_claim(Path(sys.argv[1]), "volume-1"):
        print("held", flush=True)
"""


def start(script, *words):
    return subprocess.Popen(
        [sys.executable, "-c", script, *map(str, words)],
        cwd=HERE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_command_ends_with_one_line_and_the_status_of_the_signal(number, status):
    process = start(COMMAND, "quick")
    assert process.stdout.readline() == "ready\n"
    process.send_signal(number)
    _, errors = process.communicate(timeout=30)
    assert process.returncode == status
    assert errors.startswith("slicemill: ")
    assert errors.count("\n") == 1


def test_a_second_sigterm_does_not_interrupt_the_cleanup():
    process = start(COMMAND, "slow")
    assert process.stdout.readline() == "ready\n"
    process.send_signal(signal.SIGTERM)
    assert process.stdout.readline() == "cleaning\n"
    process.send_signal(signal.SIGTERM)
    output, _ = process.communicate(timeout=30)
    assert (output, process.returncode) == ("cleaned\n", 143)


def test_a_second_ctrl_c_ends_the_process_at_once():
    process = start(COMMAND, "slow")
    assert process.stdout.readline() == "ready\n"
    process.send_signal(signal.SIGINT)
    assert process.stdout.readline() == "cleaning\n"
    process.send_signal(signal.SIGINT)
    output, _ = process.communicate(timeout=30)
    assert (output, process.returncode) == ("", 130)


def test_an_ignored_signal_stays_ignored_and_the_handlers_return_at_the_end():
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with raise_on_stop_signals():
            signal.raise_signal(signal.SIGINT)
            with pytest.raises(Terminated):
                signal.raise_signal(signal.SIGTERM)
            assert is_stopping()
        assert not is_stopping()
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
        assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    finally:
        signal.signal(signal.SIGINT, before)


def test_a_wait_names_its_holder_and_ctrl_c_ends_it(tmp_path):
    with try_claim(tmp_path, "volume-1"):
        process = start(WAIT, tmp_path)
        assert "waiting for process " in process.stderr.readline()
        process.send_signal(signal.SIGINT)
        output, errors = process.communicate(timeout=30)
    assert (output, process.returncode) == ("", 130)
    assert "interrupted" in errors


@pytest.mark.slow
def test_a_stopped_holder_does_not_stop_others_for_ever(tmp_path):
    hold = "import time\n" + WAIT.replace('print("held", flush=True)', 'print("held", flush=True); time.sleep(60)')
    holder = start(hold, tmp_path)
    assert holder.stdout.readline() == "held\n"
    holder.send_signal(signal.SIGSTOP)
    short = WAIT.replace(
        "signal.signal(",
        "import slicemill.common.locks as locks; locks.STALE_SECONDS = 1; locks.REPORT_SECONDS = 1\nsignal.signal(",
        1,
    )
    try:
        waiting = start(short, tmp_path)
        began = time.monotonic()
        _, errors = waiting.communicate(timeout=30)
        assert time.monotonic() - began < 20
        assert waiting.returncode == 1
        assert f"locked by process {holder.pid} on " in errors
        assert "has not answered for" in errors
    finally:
        holder.send_signal(signal.SIGKILL)
        holder.communicate()
