"""What a peer is, and how its process is started in an environment of its own."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from slicemill.bench.peers.environment import FILES, environment
from slicemill.bench.peers.remote import HERE, PeerProcess


@dataclass(frozen=True, kw_only=True)
class Peer:
    """A way to do what we do, with packages of its own."""

    name: str
    package: str
    """Its environment: a file of requirements of this name."""
    script: str
    sentence: str
    """What it does more or less than ours."""
    way: str = ""
    """Which of several ways of the script."""


def requirements(package: str) -> Path:
    """Return the pinned versions of an environment; those of nnU-Net are the yardstick's."""
    own = HERE / "requirements" / f"{package}.txt"
    return own if own.exists() else FILES / "requirements.txt"


def started(peer: Peer, environments: Path, folder: Path, given: Mapping[str, Any]) -> PeerProcess:
    """Return a peer, not running yet, in its environment, which is made where it is not there; `folder` is its own, new.

    Raises
    ------
    InputError
        It cannot be installed.
    """
    python = environment(environments / peer.package, requirements(peer.package), peer.name)
    folder.mkdir(parents=True)
    return PeerProcess(
        name=peer.name,
        python=python,
        script=peer.script,
        given={**given, "way": peer.way, "folder": str(folder)},
    )


def packages(peers: tuple[Peer, ...]) -> list[str]:
    """Return the environments that peers need.

    >>> packages((Peer(name="A", package="b", script="", sentence=""),))
    ['b']
    """
    return sorted({peer.package for peer in peers})
