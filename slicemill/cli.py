"""The command line ``slicemill``, with all commands."""

from typing import Any

from slicemill.common.terminal import open_closed_streams


def commands() -> Any:
    """Make the command line, with all commands."""
    import typer

    from slicemill.bench.cli import bench
    from slicemill.commands import demo, doctor, phantom
    from slicemill.infer.cli import infer, tune
    from slicemill.ingest.cli import ingest
    from slicemill.measure.cli import compare, evaluate, froc, measure
    from slicemill.store.cli import store
    from slicemill.train.cli import export, gallery, split, train

    app = typer.Typer(
        name="slicemill",
        help="From a folder of CT scans to trained tumor segmentation and back. "
        "Research software, not a medical device.",
        no_args_is_help=True,
        add_completion=False,
        pretty_exceptions_enable=False,
    )
    app.command()(ingest)
    app.add_typer(store, name="store")
    app.add_typer(bench, name="bench")
    for command in (
        split,
        gallery,
        train,
        export,
        tune,
        infer,
        evaluate,
        froc,
        measure,
        compare,
        phantom,
        demo,
        doctor,
    ):
        app.command()(command)
    return app


def main() -> None:
    """Run the command line."""
    open_closed_streams()
    commands()(prog_name="slicemill")
