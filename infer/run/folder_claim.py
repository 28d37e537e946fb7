"""The claim of an output folder: at one time, only runs with the same model and options write into it.

Runs with the same model and options share the work, scan by scan. Each run holds a claim of its own, whose name starts
with the hash of its model and options. A run that starts looks for held claims with another hash.
"""

import hashlib
import uuid
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from slicemill.common.errors import ConfigError
from slicemill.common.files import to_json
from slicemill.common.locks import CLAIMS, try_claim, wait_for_claim
from slicemill.infer.candidates.records import is_candidate_table
from slicemill.infer.run.ledger import UNFINISHED
from slicemill.infer.run.options import InferOptions
from slicemill.infer.run.summary import is_summary

PREFIX = "run."
GATE = "gate"


@contextmanager
def claim_folder(out: Path, model_sha256: str, options: InferOptions) -> Iterator[None]:
    """Hold the claim of an output folder for a model and options while the block runs.

    Raises
    ------
    ConfigError
        A run with another model or other options holds it.
    """
    key = hashlib.sha256(to_json([model_sha256, options.as_json()]).encode()).hexdigest()[:16]
    with ExitStack() as stack:
        with wait_for_claim(out, GATE):
            claims = [path.name for path in (out / CLAIMS).glob(f"{PREFIX}*")]
            held = [_is_held(out, name, key) for name in claims]  # all are checked
            if not any(held):
                _remove_unfinished_tables(out)
            name = f"{PREFIX}{key}.{uuid.uuid4().hex}"
            stack.enter_context(try_claim(out, name))
            stack.callback((out / CLAIMS / name).unlink, missing_ok=True)  # no other run ever takes this name
        yield


def _is_held(out: Path, name: str, key: str) -> bool:
    """Return whether a run holds a claim; remove that of a run that was killed.

    Raises
    ------
    ConfigError
        A run with another model or other options holds it.
    """
    with try_claim(out, name) as claim:
        if claim is not None:  # its run was killed
            (out / CLAIMS / name).unlink(missing_ok=True)
        elif not name.startswith(f"{PREFIX}{key}."):
            raise ConfigError(
                "another run writes results of another model, or with other options, into this folder. Wait "
                "until it ends, or choose another --out.",
                where=out,
            )
        return claim is None


def _remove_unfinished_tables(out: Path) -> None:
    """Remove the tables of all scans that a killed run has begun to write; no other run may work in the folder."""
    for path in out.glob(".*.part*"):
        match = UNFINISHED.fullmatch(path.name)
        if match is not None and (is_summary(match[1]) or is_candidate_table(match[1])):
            path.unlink(missing_ok=True)
