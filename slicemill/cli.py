"""The command line ``slicemill``, with all commands."""

import sys
from collections.abc import Sequence
from importlib import import_module
from typing import Annotated, NamedTuple

import typer

from slicemill.common.app import App
from slicemill.common.memory_limits import DASK, ONNX, PLAIN, TORCH, Need, bound_thread_starts
from slicemill.common.signals import leave_at_once_after_signals
from slicemill.common.terminal import open_closed_streams, print_always, report_errors

PREPARE, TRAIN, APPLY, DEVELOP = "Scans and stores", "Training", "Segmentation and measurements", "Demo and development"


class Entry(NamedTuple):
    """Where a command is defined, its panel in --help, and the memory that its libraries need."""

    module: str
    name: str
    panel: str
    need: Need = PLAIN


ENTRIES = (
    Entry("slicemill.ingest.cli", "ingest", PREPARE, DASK),
    Entry("slicemill.store.cli", "store", PREPARE),
    Entry("slicemill.commands", "info", PREPARE),
    Entry("slicemill.train.cli", "train", TRAIN, TORCH),
    Entry("slicemill.train.cli", "export", TRAIN, TORCH),
    Entry("slicemill.infer.cli", "tune", TRAIN, ONNX),
    Entry("slicemill.train.split_command", "split", TRAIN),
    Entry("slicemill.train.cli", "gallery", TRAIN),
    Entry("slicemill.infer.cli", "infer", APPLY, ONNX),
    Entry("slicemill.web.cli", "view", APPLY),
    Entry("slicemill.web.serve.cli", "serve", APPLY, ONNX),
    Entry("slicemill.measure.cli", "measure", APPLY),
    Entry("slicemill.measure.cli", "compare", APPLY),
    Entry("slicemill.measure.cli", "evaluate", APPLY),
    Entry("slicemill.measure.cli", "froc", APPLY),
    Entry("slicemill.commands", "demo", DEVELOP, TORCH),
    Entry("slicemill.commands", "doctor", DEVELOP),
    Entry("slicemill.commands", "phantom", DEVELOP),
    Entry("slicemill.bench.cli", "bench", DEVELOP),
)
"""All commands, in the order of --help."""


def commands(only: str | None = None) -> App:
    """Make the command line, with all commands, or with one: then the modules of the others are not imported."""
    app = App(
        name="slicemill",
        help="From a folder of CT scans to trained tumor segmentation and back. "
        "Research software, not a medical device.",
        no_args_is_help=True,
    )
    app.callback()(start)
    for entry in ENTRIES:
        if only is None or only == entry.name:
            command = getattr(import_module(entry.module), entry.name)
            if isinstance(command, typer.Typer):
                app.add_typer(command, name=entry.name, rich_help_panel=entry.panel)
            else:
                app.command(rich_help_panel=entry.panel, need=entry.need)(command)
    return app


def _print_version(is_requested: bool) -> None:
    if is_requested:
        from importlib.metadata import version

        with report_errors():
            print_always(f"slicemill {version('slicemill')}")
        raise typer.Exit


def start(
    _version: Annotated[
        bool, typer.Option("--version", help="Print the version.", callback=_print_version, is_eager=True)
    ] = False,
) -> None:
    """Take the options before the command."""


def choose_command(words: Sequence[str]) -> str | None:
    """Return the command that these words run, or None if they need all.

    They need all for ``--help``, for a misspelled name, and for the completion in a shell, which passes no words.

    >>> choose_command(["ingest", "--help"]), choose_command(["--help"]), choose_command(["ingets"])
    ('ingest', None, None)
    """
    return words[0] if words and words[0] in {entry.name for entry in ENTRIES} else None


def main() -> None:
    """Run the command line."""
    open_closed_streams()
    bound_thread_starts()
    with leave_at_once_after_signals():
        commands(choose_command(sys.argv[1:]))(prog_name="slicemill")
