"""The commands `ingest`, `train` and `export` as functions, which return their records.

The functions of commands are named for what they act on, because `slicemill.ingest`, `slicemill.train`,
`slicemill.infer` and `slicemill.measure` are packages: a function of the same name would be replaced by the package as
soon as anything imports from it.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Unpack

from slicemill.common.errors import UsageError
from slicemill.common.extras import name_missing_extras
from slicemill.common.files import Location, parse_location
from slicemill.common.terminal import print_line
from slicemill.train.settings import Recipe, TrainSettings

if TYPE_CHECKING:
    from collections.abc import Sequence

    from slicemill.ct.geometry_option import Geometry, Uneven
    from slicemill.ingest.discover import Collection
    from slicemill.ingest.outcomes import IngestReport
    from slicemill.ingest.params import CaseIdKind, Overlap
    from slicemill.store.layout import ProfileName
    from slicemill.store.model_card import ModelCard, Parity
    from slicemill.train.config import Config
    from slicemill.train.run.metrics import EpochMetrics


@name_missing_extras()
def ingest_scans(
    source: str | Location | None = None,
    store: str | Location | None = None,
    *,
    pairs: str | Location | None = None,
    images: str | None = None,
    masks: str | None = None,
    no_masks: bool = False,
    labels: str | Mapping[str, int] | None = None,
    organ: str | None = None,
    tumor: str | None = None,
    prefix: str | None = None,
    patient: str | None = None,
    geometry: "Geometry" = "error",
    overlap: "Overlap" = "error",
    workers: int = 0,
    threads: int = 0,
    profile: "ProfileName" = "compact",
    scheduler: str | None = None,
    shard: str | None = None,
    overwrite: bool = False,
    retry_failed: bool = False,
    rehash: bool = False,
    keep_text: bool = False,
    strict: bool = False,
    uneven: "Uneven" = "refuse",
    case_id: "CaseIdKind" = "name",
    salt: str | Location | None = None,
    keep_uids: bool = False,
    points: str | Location | None = None,
    excluded: str | Location | None = None,
    candidates: str | Location | None = None,
    lungs: str | Location | None = None,
) -> "IngestReport":
    """Convert CT scans and their masks into a slice store; a repeated call converts only what is new or changed.

    The options are those of the command `slicemill ingest`; `slicemill.ingest.request.IngestRequest` explains each.
    Worker processes are started: in a script, call this under ``if __name__ == "__main__":``.

    Parameters
    ----------
    source
        Folder with the scans. Pass `pairs` or `images` instead to list them.
    store
        Folder or URL of the store to create or extend.
    labels
        Names of the label values (or of the structures' files); by default those that the collection declares.

    Returns
    -------
    IngestReport
        An outcome for every case: done, unchanged or failed with a reason (`failures`). A failed case raises nothing.

    Raises
    ------
    PairingError
        Images and masks cannot be recognized or paired.
    StoreError
        The store has cases with other parameters.
    UsageError
        Options exclude each other, or the store is missing.

    >>> report = slicemill.ingest_scans("lits", "lits-store")         # doctest: +SKIP
    >>> report.count("done"), [one.reason for one in report.failures]   # doctest: +SKIP
    (131, [])
    """
    from slicemill.ingest.request import IngestRequest

    request = IngestRequest(
        source=source, store=store, pairs=pairs, images=images, masks=masks, no_masks=no_masks, labels=labels,
        organ=organ, tumor=tumor, prefix=prefix, patient=patient, geometry=geometry, overlap=overlap, workers=workers,
        threads=threads, profile=profile, scheduler=scheduler, shard=shard, overwrite=overwrite,
        retry_failed=retry_failed, rehash=rehash, keep_text=keep_text, strict=strict, uneven=uneven, case_id=case_id,
        salt=salt, keep_uids=keep_uids, points=points, excluded=excluded, candidates=candidates, lungs=lungs,
    )  # fmt: skip
    report = request.run(request.collection())
    if report.bug is not None:
        raise report.bug
    return report


@name_missing_extras()
def find_scans(
    source: str | Location | None = None,
    *,
    pairs: str | Location | None = None,
    images: str | None = None,
    masks: str | None = None,
    no_masks: bool = False,
    labels: str | Mapping[str, int] | None = None,
    prefix: str | None = None,
    patient: str | None = None,
) -> "Collection":
    """Return the cases that `ingest_scans` would convert, the labels that they declare, and the files left out.

    Raises
    ------
    PairingError
        Images and masks cannot be recognized or paired.

    >>> [case.case_id for case in slicemill.find_scans("lits").cases]      # doctest: +SKIP
    ['volume-0', 'volume-1']
    """
    from slicemill.ingest.request import IngestRequest

    return IngestRequest(
        source=source, pairs=pairs, images=images, masks=masks, no_masks=no_masks, labels=labels, prefix=prefix,
        patient=patient,
    ).collection()  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class TrainedRun:
    """The result of a training run."""

    run: Path
    """Folder of the run, with its report, weights and tables."""
    epochs: int
    """Number of completed epochs, those of earlier calls included."""
    best_epoch: int
    """The epoch whose weights are exported."""
    best_dice: float
    """Mean Dice of the validation cases in that epoch, 0 to 1."""
    minutes: float
    """Training time, those of earlier calls included."""
    history: "Sequence[EpochMetrics]"
    """Metrics of each epoch, as in ``metrics.csv``."""


@name_missing_extras()
def train_network(
    store: str | Location,
    run: str | Path,
    *,
    config: "Config | str | Path | None" = None,
    recipe: "Recipe | None" = None,
    split: str | Path | None = None,
    cache_dir: str | Path | None = None,
    cache_gb: float = 20.0,
    overwrite: bool = False,
    log: Callable[[str], None] = print_line,
    **settings: Unpack[TrainSettings],
) -> TrainedRun:
    """Train a 2.5-D U-Net on a slice store, split by patient. A repeated call continues a run that was stopped.

    Parameters
    ----------
    store
        Slice store with masks.
    run
        Folder of the run.
    config
        Settings as a record or as a TOML file.
    recipe
        Settings that a TOML file starts from: ``nodules`` for nodules in the lung. A record has all settings itself.
    split
        JSON with the case ids of train, validation and test, instead of a random split.
    cache_dir, cache_gb
        Folder and size, GB, of the cache for slices of a store in a bucket.
    overwrite
        Remove an earlier run in this folder.
    log
        Called with lines of text.
    **settings
        Any setting of `slicemill.train.config.Config`; they take precedence over `config`.

    Raises
    ------
    ConfigError
        A setting does not exist or is not possible, a recipe came with a record, or the folder belongs to a run with
        other settings.
    StoreError
        The store has no masks or too few patients.

    >>> run = slicemill.train_network("lits-store", "runs/first", epochs=100)     # doctest: +SKIP
    >>> run.best_epoch, run.best_dice                                             # doctest: +SKIP
    (87, 0.81)
    """
    from slicemill.common.remote import RemotePath
    from slicemill.store.cache import SliceCache
    from slicemill.train.config import Config, make_config, read_config
    from slicemill.train.loop import train

    if isinstance(config, Config):
        if recipe is not None:
            raise UsageError("recipe: pass it without a record of settings, which has all of them.")
        given = config
    else:
        given = make_config(recipe) if config is None else read_config(Path(config), make_config(recipe))
    location = parse_location(store)
    folder = None if cache_dir is None else Path(cache_dir)
    state = train(
        location,
        Path(run),
        given.replace(**settings),
        split_file=None if split is None else Path(split),
        cache=SliceCache(folder, round(cache_gb * 1e9)) if isinstance(location, RemotePath) else None,
        overwrite=overwrite,
        log=log,
    )
    return TrainedRun(
        run=Path(run),
        epochs=state.epoch,
        best_epoch=state.best_epoch,
        best_dice=state.best_score,
        minutes=state.seconds / 60,
        history=tuple(state.history),
    )


@name_missing_extras()
def export_model(
    run: str | Path,
    model: str | Path,
    *,
    store: str | Path | None = None,
    min_lesion_ml: float = 0.0,
    fp16: bool = False,
    bytes_in: bool = False,
    probability: bool = False,
    size: tuple[int, int] | None = None,
) -> "dict[Path, ModelCard]":
    """Write the best network of a run as one ONNX file, from int16 HU to uint8 labels, and return its metadata.

    Files are written only if onnxruntime and torch compute the same labels on slices of the validation cases. The
    options are those of the command `slicemill export`; `slicemill.train.export.request.ExportRequest` explains each.

    Parameters
    ----------
    size
        Height and width of the input slices, pixels; by default those of the training.

    Returns
    -------
    dict
        Path of each file to its metadata; the first is `model`.

    Raises
    ------
    ModelError
        There is no trained network, it does not support that size, or the labels differ.
    UsageError
        The name does not end in .onnx.

    >>> list(slicemill.export_model("runs/first", "liver.onnx", fp16=True))       # doctest: +SKIP
    [PosixPath('liver.onnx'), PosixPath('liver.fp16.onnx')]
    """
    from slicemill.train.export.request import ExportRequest

    return ExportRequest(
        run=Path(run), model=Path(model), store=None if store is None else Path(store), min_lesion_ml=min_lesion_ml,
        fp16=fp16, bytes_in=bytes_in, probability=probability, size=size,
    ).write()  # fmt: skip


@name_missing_extras()
def check_model(run: str | Path, model: str | Path, *, store: str | Path | None = None) -> "dict[Path, Parity]":
    """Compare the labels of exported files with those of their run's network, and write nothing.

    Raises
    ------
    ModelError
        There is no such file, or its labels differ.

    >>> slicemill.check_model("runs/first", "liver.onnx")           # doctest: +SKIP
    """
    from slicemill.train.export.request import ExportRequest

    return ExportRequest(run=Path(run), model=Path(model), store=None if store is None else Path(store)).check()
