"""The class of all command-line apps: each command has `-q`, `-v`, `--log-file`, `-h`, old names, errors in lines."""

import functools
import inspect
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, TypeVar, get_type_hints

import typer
from typer.core import TyperCommand, TyperGroup

from slicemill.common.memory_limits import PLAIN, Need, require_memory_limits
from slicemill.common.options import MESSAGES
from slicemill.common.output import use_output
from slicemill.common.terminal import discard_output, report_errors

Function = TypeVar("Function", bound=Callable[..., Any])
OLD_NAMES = {"--images": "--image", "--masks": "--mask", "--devices": "--device"}
"""Options of version 0.1 with their new names. Version 0.3 removes them."""

Quiet = Annotated[
    bool, typer.Option("--quiet", "-q", help="Print errors and failed cases only.", rich_help_panel=MESSAGES)
]
Verbose = Annotated[
    bool,
    typer.Option(
        "--verbose", "-v", help="Print lists in full, and errors with their traceback.", rich_help_panel=MESSAGES
    ),
]
LogFile = Annotated[
    Path | None,
    typer.Option(help="Also append all messages, with times, to this file.", dir_okay=False, rich_help_panel=MESSAGES),
]


class App(typer.Typer):
    """A typer app without traceback boxes, whose commands have the options of `add_output_options`."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(
            cls=Group,
            pretty_exceptions_enable=False,
            context_settings={"help_option_names": ["-h", "--help"]},
            **settings,
        )

    def command(
        self, name: str | None = None, *, need: Need = PLAIN, **settings: Any
    ) -> Callable[[Function], Function]:
        """Return a decorator that adds a function as a command; it ends if a limit of memory is below `need`."""
        register = super().command(name, cls=Command, **settings)

        def decorate(function: Function) -> Function:
            register(add_output_options(function, need))
            return function

        return decorate


class Command(TyperCommand):
    """A command that accepts the old names of its options, and whose help may be read in part."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Parse arguments, after old names of options are replaced by those of today."""
        names = {name for parameter in self.params for name in parameter.opts}
        return super().parse_args(ctx, rename_options(args, names))

    def format_help(self, ctx: Any, formatter: Any) -> None:
        """Print the help."""
        print_help(lambda: super(Command, self).format_help(ctx, formatter))


class Group(TyperGroup):
    """A group of commands whose help may be read in part."""

    def format_help(self, ctx: Any, formatter: Any) -> None:
        """Print the help."""
        print_help(lambda: super(Group, self).format_help(ctx, formatter))


def rename_options(args: list[str], names: set[str]) -> list[str]:
    """Replace old names of options by those of today, in a command that has the new name and not the old one.

    >>> rename_options(["scans", "--devices", "0,1", "--", "--devices"], {"--device"})
    ['scans', '--device', '0,1', '--', '--devices']
    >>> rename_options(["--images=*.nii"], {"--image"})
    ['--image=*.nii']
    """
    end = args.index("--") if "--" in args else len(args)
    renamed = []
    for word in args[:end]:
        option, equals, value = word.partition("=")
        new = OLD_NAMES.get(option)
        renamed.append(f"{new}{equals}{value}" if new in names and option not in names else word)
    return renamed + args[end:]


def print_help(show: Callable[[], None]) -> None:
    """Print the help; a reader that closes its pipe before the end has read enough, which is no error."""
    try:
        show()
        sys.stdout.flush()
    except BrokenPipeError:
        discard_output(sys.stdout)
    except SystemExit:  # rich ends the process when the pipe is closed, with exit status 1
        raise SystemExit(0) from None


def add_output_options(function: Callable[..., Any], need: Need = PLAIN) -> Callable[..., Any]:
    """Return a command with three more options, which choose how much it prints and where it is logged.

    It ends before its work if a limit of memory is below what its libraries need.
    """
    signature = inspect.signature(function)
    hints = get_type_hints(function, include_extras=True)
    parameters = [one.replace(annotation=hints.get(name, one.annotation)) for name, one in signature.parameters.items()]
    added = {"quiet": (Quiet, False), "verbose": (Verbose, False), "log_file": (LogFile, None)}
    parameters += [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=kind)
        for name, (kind, default) in added.items()
    ]

    @functools.wraps(function)
    def run(*, quiet: bool = False, verbose: bool = False, log_file: Path | None = None, **options: Any) -> None:
        with (
            report_errors(),  # of the log file
            use_output(quiet=quiet, verbose=verbose, json=options.get("json") is True, log_file=log_file),
            report_errors(),  # of the command, into the log file too
        ):
            require_memory_limits(need, function.__name__.replace("_", "-"))
            function(**options)

    run.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
    run.__annotations__ = {one.name: one.annotation for one in parameters}
    return run
