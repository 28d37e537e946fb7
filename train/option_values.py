"""Values of options of the commands `train` and `export` that have a meaning of their own."""

import typer

from slicemill.common.errors import UsageError
from slicemill.common.terminal import print_always, report_errors

NO_AUTO = "--batch {}: must be a number of crops."


def parse_batch(text: str, *, auto: bool = True) -> int:
    """Return the setting `batch` for a value of ``--batch``; without `auto`, it must be a number.

    Raises
    ------
    UsageError
        The value is neither a positive integer nor auto.

    >>> parse_batch("auto"), parse_batch("16")
    (0, 16)
    """
    if text == "auto" and auto:
        return 0
    if not text.isdecimal() or int(text) < 1:
        raise UsageError(f"--batch {text}: must be a number of slices, or auto." if auto else NO_AUTO.format(text))
    return int(text)


def parse_size(text: str) -> tuple[int, int]:
    """Return height and width for a value of ``--size``.

    Raises
    ------
    UsageError
        The value is neither HEIGHTxWIDTH nor one number.

    >>> parse_size("256x192"), parse_size("512")
    ((256, 192), (512, 512))
    """
    height, _, width = text.partition("x")
    sides = [height, width or height]
    if not all(side.isdecimal() and len(side) < 6 and int(side) for side in sides):
        raise UsageError(f"--size {text}: expected HEIGHTxWIDTH in pixels, like 256x256.")
    return int(sides[0]), int(sides[1])


def print_config(context: typer.Context, is_requested: bool) -> None:  # noqa: FBT001 (typer passes the value so)
    """Print the settings that training starts from as TOML with comments, and exit; the callback of `--show-config`.

    `--recipe` and `--crops` are read before it, wherever they stand (``is_eager``), and choose the settings.
    """
    if not is_requested:
        return
    with report_errors():
        from slicemill.train.config import make_config
        from slicemill.train.config_text import to_commented_toml
        from slicemill.train.crops.settings import CropConfig

        settings = CropConfig() if context.params["crops"] else make_config(context.params["recipe"])
        for line in to_commented_toml(settings).splitlines():
            print_always(line)
    raise typer.Exit
