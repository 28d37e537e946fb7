"""The command `slicemill split`."""

from pathlib import Path
from typing import Annotated

import typer

from slicemill.common.errors import UsageError
from slicemill.common.options import Json, require_finite
from slicemill.common.terminal import print_json, print_line

FOLDS = 5
"""Folds by default."""


def split(
    store: Annotated[str, typer.Argument(help="Slice store with masks.")],
    out: Annotated[Path, typer.Argument(help="Folder for fold-0.json, fold-1.json, ... or subset0.json, ...")],
    *,
    folds: Annotated[int | None, typer.Option(help="Number of folds.", min=2, show_default="5")] = None,
    subsets: Annotated[
        bool, typer.Option("--subsets", help="The scans' folders subset0, subset1, ... are the folds, as in LUNA16.")
    ] = False,
    validation: Annotated[
        float,
        typer.Option(
            callback=require_finite, help="Share of the patients for validation, which chooses the checkpoint."
        ),
    ] = 0.15,
    seed: Annotated[int, typer.Option(help="The same seed gives the same folds.", min=0)] = 0,
    json: Json = False,
) -> None:
    """Write cross-validation splits by patient. Each patient is in one test part; folds have similar tumor volumes.

        slicemill split lits-store/ folds/ --folds 5
        slicemill train lits-store/ runs/fold-0 --split folds/fold-0.json
        slicemill split luna-store/ folds/ --subsets

    The files are JSON with the case ids of train, validation and test, readable by other tools.
    """
    from dataclasses import asdict

    from slicemill.store.split import write_split
    from slicemill.store.tables import read_table
    from slicemill.train.split import make_folds, make_subset_folds

    if not 0 < validation < 1:
        raise UsageError(f"--validation {validation}: must be above 0 and below 1.")
    if subsets and folds is not None:
        raise UsageError("--subsets takes the folds from the folders; leave out --folds.")
    manifest = read_table(store, "manifest")
    if subsets:
        splits = make_subset_folds(manifest, validation=validation)
    else:
        made = make_folds(manifest, folds=folds or FOLDS, validation=validation, seed=seed)
        splits = {f"fold-{fold}": parts for fold, parts in enumerate(made)}
    files: list[dict[str, object]] = []
    for name, parts in splits.items():
        path = out / f"{name}.json"
        write_split(path, parts)
        print_line(f"{path}: {len(parts.train)} train, {len(parts.validation)} validation, {len(parts.test)} test")
        files.append({"file": str(path), **asdict(parts)})
    if json:
        print_json(files)
