"""The command line, in this process."""

import functools

from typer.testing import CliRunner

from slicemill.cli import commands

app = functools.lru_cache(commands)


def run_command(*words, given=None):
    """Run slicemill with these words and this standard input; a bug is raised."""
    return CliRunner().invoke(app(), [*map(str, words)], input=given, catch_exceptions=False)
