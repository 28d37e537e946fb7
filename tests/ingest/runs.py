"""Runs of the command in a process, and what they leave in a store."""

import sys
from pathlib import Path

HERE = Path(__file__).parents[2]


def command(*words):
    """Return the words that start the command in a process."""
    return [sys.executable, "-m", "slicemill", *map(str, words)]


def contents(store):
    """Return the files of a store's Zarr group, by path."""
    return {
        path.relative_to(store).as_posix(): path.read_bytes()
        for path in sorted((store / "scans.zarr").rglob("*"))
        if path.is_file()
    }
