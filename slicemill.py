"""slicemill: from a folder of CT scans to trained tumor segmentation and back.

The front door: the command ``slicemill`` and the Python functions that most people need.

>>> import slicemill
>>> labels, report = slicemill.segment("ct.nii.gz", "liver.onnx")    # doctest: +SKIP
>>> store = slicemill.open_store("lits-store")                       # doctest: +SKIP
>>> store["volume-17"].image[20]                                     # doctest: +SKIP
"""

from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from store.reader import Store

__all__ = ["main", "open_store", "segment"]


def open_store(url: str | Path) -> "Store":
    """Open a slice store for reading; see `store.reader.Store`.

    Raises
    ------
    store.errors.StoreError
        There is none at `url`.
    """
    from store.reader import open_store as opened

    return opened(url)


def segment(
    path: str | Path, model: str | Path, *, provider: str = "auto"
) -> "tuple[npt.NDArray[np.uint8], dict[str, Any]]":
    """Segment one scan. For many, use the command `infer`: this opens the model, and compares another device with the CPU, each time.

    Returns
    -------
    label : uint8[z, y, x]
        Label values in LPS+ order.
    report : dict
        Volumes in ml, lesions, and the answer to "is there a tumor?"; the JSON report of the command `infer`.

    Raises
    ------
    store.errors.InputError
        The scan, the model or the provider cannot be used; the message says why.
    """
    from infer.single import segment_file

    return segment_file(Path(path), Path(model), provider=provider)


def commands() -> Any:
    """Return the command line, with all commands."""
    import typer

    from bench.cli import bench, demo, doctor, phantom
    from infer.cli import infer, tune
    from ingest.cli import ingest
    from measure.cli import compare, evaluate, froc, measure
    from store.cli import store
    from train.cli import export, gallery, split, train

    app = typer.Typer(
        name="slicemill",
        help="From a folder of CT scans to trained tumor segmentation and back. Research software, not a medical device.",
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
    commands()(prog_name="slicemill")


if __name__ == "__main__":
    main()
