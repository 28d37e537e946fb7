"""The claim of a run folder: one training writes into it at a time, and no export reads it meanwhile.

Who wants the claim first waits for the gate, which an export holds while it reads: so exports do not refuse each other.
"""

import errno
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from slicemill.common.errors import ConfigError
from slicemill.common.locks import CLAIMS, try_claim, wait_for_claim

TRAINING, GATE = "training", "gate"
READ_ONLY = (errno.EACCES, errno.EPERM, errno.EROFS)


@contextmanager
def claim_to_train(run: Path) -> Iterator[None]:
    """Hold the claim of a run folder while the block runs.

    Raises
    ------
    ConfigError
        Another command trains in the folder.
    """
    with ExitStack() as stack:
        with wait_for_claim(run, GATE):
            claim = stack.enter_context(try_claim(run, TRAINING))
        if claim is None:
            raise ConfigError(
                "another command is training in this folder. Wait until it ends, or train in another folder.", where=run
            )
        yield


@contextmanager
def claim_to_read(run: Path) -> Iterator[None]:
    """Keep trainings out of a run folder while its files are read, so that weights, settings and metrics fit.

    A folder in which this user cannot write is read without a claim.

    Raises
    ------
    ConfigError
        A command is training in the folder.
    """
    with ExitStack() as stack:
        try:
            stack.enter_context(wait_for_claim(run, GATE))
            with try_claim(run, TRAINING) as claim:
                in_training = claim is None
        except OSError as error:
            if error.errno not in READ_ONLY:
                raise
            in_training = False
        if in_training:
            raise ConfigError(
                "a command is training in this folder, so its weights change. Export after the training has "
                "ended or was stopped with Ctrl-C; the same `slicemill train` command continues it.",
                where=run,
            )
        yield


def is_empty(run: Path) -> bool:
    """Return whether a folder has no files but claims."""
    return all(path.name == CLAIMS for path in run.iterdir())
