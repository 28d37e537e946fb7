"""The plan of `bench luna`: the commands of all folds, in order, and the seconds that they would take.

1. `ingest` makes one store of all scans, `split --subsets` the folds.
2. Each fold trains its segmentation, which finds the candidates of the fold's own subset. So the candidates of each
   scan are those of a segmentation that never saw it.
3. All candidates are joined, and ingested as what the classifiers learn from.
4. Each fold trains its classifier, is tuned on its validation part, and judges its own subset.
5. The judged candidates are joined, and scored by `froc`; those of the segmentations alone, too.
"""

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from slicemill.bench.studies.luna_folder import LunaFolder, Subset
from slicemill.common.countdown import Step
from slicemill.train.crops.settings import CropConfig

Kind = Literal[
    "ingest", "split", "train", "export", "infer", "join", "ingest candidates", "train crops", "tune", "judge", "froc"
]
KINDS: tuple[Kind, ...] = get_args(Kind)
JOIN: Kind = "join"


@dataclass(frozen=True, kw_only=True)
class Rate:
    """How fast commands of a kind are."""

    per_second: float
    unit: str
    source: str
    """Where the figure is from."""


GUESS = "a guess"
IMAGES = 2
"""Of each slice: `infer --mirror` labels its mirror image, too."""
RATES: Mapping[Kind, Rate] = {
    "ingest": Rate(per_second=378.0, unit="slices", source="one core, bench/results/ingest.json"),
    "split": Rate(per_second=0.1, unit="commands", source=GUESS),
    "train": Rate(per_second=1.0, unit="seconds", source="the limit --minutes"),
    "export": Rate(per_second=0.05, unit="commands", source=GUESS),
    "infer": Rate(per_second=15.55, unit="slices", source="two cores, bench/results/infer.json"),
    "join": Rate(per_second=1.0, unit="commands", source=GUESS),
    "ingest candidates": Rate(per_second=378.0, unit="slices", source="one core, bench/results/ingest.json"),
    "train crops": Rate(per_second=129.0, unit="crops", source="two cores with AVX2, a run of `bench nodules`"),
    "tune": Rate(per_second=0.5, unit="scans", source=GUESS),
    "judge": Rate(per_second=15.55, unit="slices", source="two cores, bench/results/infer.json"),
    "froc": Rate(per_second=0.02, unit="commands", source=GUESS),
}
"""Rates before any command has run. Later, those of the run itself are used."""


@dataclass(frozen=True, kw_only=True)
class LunaOptions:
    """Options of `bench luna`."""

    data: Path
    """Folder in LUNA16's form."""
    out: Path
    """Folder of everything that is made."""
    minutes: float = 600.0
    """Time limit of each segmentation's training."""
    epochs: int | None = None
    """Epochs of each segmentation, at most; None takes the recipe's."""
    crop_epochs: int | None = None
    """Epochs of each classifier; None takes the default."""
    config: Path | None = None
    """Settings of the segmentations as TOML, on top of --recipe nodules."""
    provider: str = "auto"
    """Execution provider of the inference."""


@dataclass(frozen=True, kw_only=True)
class LunaStep:
    """One command."""

    kind: Kind
    fold: str = ""
    """Name of its fold; empty for those of all folds."""
    words: tuple[str, ...]
    """Words after ``slicemill``; of a join, the target and its tables."""
    makes: Path
    """File or folder that exists afterwards."""
    amount: float = 1.0
    """Its work, in the unit of its kind's rate."""

    @property
    def name(self) -> str:
        """Return kind and fold."""
        return f"{self.kind} {self.fold}".rstrip()

    @property
    def line(self) -> str:
        """Return the command as it is shown."""
        if self.kind == JOIN:
            return f"(join {len(self.words) - 1} tables into {self.words[0]})"
        return shlex.join(["slicemill", *self.words])


@dataclass(frozen=True, kw_only=True)
class _Fold:
    """The files of one fold."""

    subset: Subset
    out: Path

    @property
    def split(self) -> Path:
        return self.out / "folds" / f"{self.subset.name}.json"

    @property
    def run(self) -> Path:
        return self.out / "runs" / f"segmentation-{self.subset.name}"

    @property
    def segmentation(self) -> Path:
        return self.out / "models" / f"segmentation-{self.subset.name}.onnx"

    @property
    def crops_run(self) -> Path:
        return self.out / "runs" / f"classifier-{self.subset.name}"

    @property
    def model(self) -> Path:
        return self.out / "models" / f"{self.subset.name}.nodules"

    @property
    def found(self) -> Path:
        return self.out / "found-by-segmentation" / self.subset.name

    @property
    def judged(self) -> Path:
        return self.out / "found" / self.subset.name


def make_plan(folder: LunaFolder, options: LunaOptions) -> list[LunaStep]:
    """Return the commands in order."""
    out = options.out
    folds = [_Fold(subset=subset, out=out) for subset in folder.subsets]
    store, alone, judged = out / "store", out / "candidates-segmentation.csv", out / "candidates.csv"
    ingest = [folder.root, store, "--points", folder.annotations, "--lungs", folder.lungs]
    ingest += [] if folder.excluded is None else ["--excluded", folder.excluded]
    steps = [
        _step("ingest", ["ingest", *ingest], store, amount=folder.slices),
        _step("split", ["split", store, out / "folds", "--subsets"], out / "folds"),
    ]
    for fold in folds:
        steps += _plan_segmentation(fold, store, options)
    steps += [
        _step(JOIN, [alone, *(fold.found / "candidates.csv" for fold in folds)], alone),
        _step("ingest candidates", ["ingest", *ingest, "--candidates", alone], store, amount=folder.slices),
    ]
    for fold in folds:
        steps += _plan_classifier(fold, store, folder, options)
    steps.append(_step(JOIN, [judged, *(fold.judged / "candidates.csv" for fold in folds)], judged))
    for table, scores in ((alone, out / "scores-segmentation"), (judged, out / "scores")):
        steps.append(_step("froc", ["froc", table, store, "--out", scores], scores / "froc.json"))
    return steps


def _step(kind: Kind, words: Sequence[object], makes: Path, *, fold: str = "", amount: float = 1.0) -> LunaStep:
    return LunaStep(kind=kind, fold=fold, words=tuple(map(str, words)), makes=makes, amount=amount)


def _plan_segmentation(fold: _Fold, store: Path, options: LunaOptions) -> list[LunaStep]:
    """Return the commands that train a segmentation, and find the candidates of the subset it has not seen."""
    name = fold.subset.name
    train: list[object] = ["train", store, fold.run, "--recipe", "nodules", "--split", fold.split]
    train += ["--max-minutes", f"{options.minutes:g}"]
    train += [] if options.epochs is None else ["--epochs", options.epochs]
    train += [] if options.config is None else ["--config", options.config]
    infer = ["infer", fold.segmentation, fold.subset.folder, "--out", fold.found, "--candidates", "--mirror"]
    return [
        _step("train", train, fold.run, fold=name, amount=60 * options.minutes),
        _step("export", ["export", fold.run, fold.segmentation, "--probability"], fold.segmentation, fold=name),
        _step(
            "infer", [*infer, "--provider", options.provider], fold.found / "candidates.csv", fold=name,
            amount=IMAGES * fold.subset.slices,
        ),
    ]  # fmt: skip


def _plan_classifier(fold: _Fold, store: Path, folder: LunaFolder, options: LunaOptions) -> list[LunaStep]:
    """Return the commands that train a classifier, tune it, and judge the candidates of the subset."""
    name, epochs = fold.subset.name, options.crop_epochs
    train: list[object] = ["train", store, fold.crops_run, "--crops", "--split", fold.split]
    train += [] if epochs is None else ["--epochs", epochs]
    judge = ["infer", fold.model, fold.subset.folder, "--out", fold.judged, "--mirror"]
    judge += ["--provider", options.provider]
    export = ["export", fold.crops_run, fold.model, "--segmentation", fold.segmentation, "--mirror"]
    crops = (
        2.0 * folder.nodules * (epochs or CropConfig().epochs)
    )  # an epoch draws about as many of each class as nodules
    others = folder.scans - len(fold.subset.files)
    return [
        _step("train crops", train, fold.crops_run, fold=name, amount=crops),
        _step("export", export, fold.model, fold=name),
        _step("tune", ["tune", fold.model, store, "--split", fold.split], fold.model, fold=name, amount=0.15 * others),
        _step("judge", judge, fold.judged / "candidates.csv", fold=name, amount=IMAGES * fold.subset.slices),
    ]


def estimate(step: LunaStep, rates: Mapping[Kind, Rate]) -> Step:
    """Return a command with its seconds; a training with a time limit takes this time on every machine."""
    return Step(name=step.name, seconds=step.amount / rates[step.kind].per_second, limited=step.kind == "train")


def describe_time(seconds: float) -> str:
    """Return a duration in words.

    >>> [describe_time(seconds) for seconds in (50, 1500, 7000, 400_000)]
    ['below 1 minute', '25 minutes', '1.9 hours', '4.6 days']
    """
    if seconds < 60:
        return "below 1 minute"
    if seconds < 5400:
        return f"{seconds / 60:.0f} minutes"
    return f"{seconds / 3600:.1f} hours" if seconds < 2 * 86400 else f"{seconds / 86400:.1f} days"
