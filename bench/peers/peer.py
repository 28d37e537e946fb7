"""Peers of a benchmark: read from a list and started, each in a separate environment."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from slicemill.bench.peers.environment import NNUNET_FOLDER, prepare_environment
from slicemill.bench.peers.remote import HERE, PeerProcess
from slicemill.common.documents import from_toml
from slicemill.common.errors import InputError


@dataclass(frozen=True, kw_only=True)
class Peer:
    """The same work with another tool's packages."""

    name: str
    package: str
    """Its environment: the name of a file of requirements."""
    way: str
    """A key of WAYS in the script that runs there."""
    sentence: str
    """Differences from slicemill."""
    removes_components: bool = False
    """Whether it removes all but the largest organ, and small lesions, as slicemill does."""


def read_peers(name: str) -> tuple[Peer, ...]:
    """Return the peers of a file of this folder."""
    lists = from_toml(dict[str, tuple[Peer, ...]], (HERE / name).read_text(encoding="utf-8"), name)
    return lists["peer"]


def requirements_file(package: str) -> Path:
    """Return the file of pinned versions of an environment. Those of nnU-Net are shared with `bench yardstick`."""
    own = HERE / "requirements" / f"{package}.txt"
    return own if own.exists() else NNUNET_FOLDER / "requirements.txt"


def packages(peers: tuple[Peer, ...]) -> list[str]:
    """Return the environments that peers need.

    >>> packages((Peer(name="A", package="b", way="", sentence=""),))
    ['b']
    """
    return sorted({peer.package for peer in peers})


@dataclass(frozen=True, kw_only=True)
class StartedPeers:
    """Peers that are running, and those that could not be started."""

    processes: dict[str, PeerProcess]
    """Name -> process."""
    failures: dict[str, str]
    """Name -> reason."""

    def not_run(self) -> dict[str, str]:
        """Return name -> reason of the peers that did not start or ended early."""
        return self.failures | {name: peer.reason for name, peer in self.processes.items() if peer.reason}


@contextmanager
def start_peers(
    peers: Sequence[Peer], script: str, environments: Path, folder: Path, inputs: Mapping[str, Any]
) -> Iterator[StartedPeers]:
    """Start a script for each peer, and end all when the block ends.

    Parameters
    ----------
    environments
        Folder of the environments. One that is missing is made, which takes minutes.
    folder
        Each peer gets a new folder in it, named after its way.
    inputs
        Request to the script, without way and folder.
    """
    started = StartedPeers(processes={}, failures={})
    with ExitStack() as running:
        for peer in peers:
            own = folder / peer.way
            try:
                python = prepare_environment(environments / peer.package, requirements_file(peer.package), peer.name)
                own.mkdir(parents=True)
                request = {**inputs, "way": peer.way, "folder": str(own)}
                process = PeerProcess(name=peer.name, python=python, script=script, request=request)
                started.processes[peer.name] = running.enter_context(process)
            except InputError as error:
                started.failures[peer.name] = str(error)
        yield started
