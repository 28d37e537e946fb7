"""`bench yardstick`: slicemill and nnU-Net's 2D configuration on the same folds, minutes and device.

1. An environment for nnU-Net is made once in the experiment's folder, from the versions in ``nnunet/requirements.txt``.
2. The fold's cases are exported from the store as NIfTI in nnU-Net's layout, with the fold as ``splits_final.json``.
3. nnU-Net plans, preprocesses, trains for the minutes and segments the test cases (``nnunet/peer.py``).
4. slicemill trains for the same minutes, with the settings of one variant, and segments the test cases.
5. ``slicemill evaluate`` scores both.

The minutes are those of training epochs with their validation, on both sides. Planning, preprocessing, ingest, export
and prediction are not counted. Both run one after the other, with all cores: nothing else should run.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

from slicemill.bench.peers.environment import NNUNET_FOLDER, prepare_environment
from slicemill.bench.records.quality import NnunetRecord
from slicemill.bench.schema.base import origin
from slicemill.bench.studies.experiment import Experiment, prepare
from slicemill.bench.studies.fold_run import RunRequest, read_scores, run_fold
from slicemill.bench.studies.results import (
    ExperimentFolder,
    FoldRun,
    NnunetResult,
    Result,
    RunInputs,
    RunResult,
    check_same_inputs,
    plain_json,
)
from slicemill.bench.studies.runner import CommandRunner, lock_experiment
from slicemill.bench.studies.summary import CONVENTION, cases_of, dice_gain, main_region, score_region
from slicemill.common.documents import read_document, to_document
from slicemill.common.errors import ConfigError, StoreError, UsageError
from slicemill.common.files import read_json, to_json, write_bytes, write_json
from slicemill.common.terminal import print_line
from slicemill.store.dataset_plan import plan_dataset
from slicemill.store.reader import Store
from slicemill.store.split import Split
from slicemill.store.to_dataset import export_dataset
from slicemill.train.run.device import choose_device
from slicemill.train.run.setup import common_labels

DATASET = "Dataset001_fold"
ITERATIONS = {"cuda": 250, "cpu": 10}
"""Iterations of an epoch. On a GPU, nnU-Net's default; on a CPU, where an iteration takes seconds, fewer."""
AnyResult = TypeVar("AnyResult", RunResult, NnunetResult)


@dataclass(frozen=True, kw_only=True)
class NnunetComparison:
    """Options of the comparison."""

    experiment: Experiment
    """Its first variant has slicemill's settings. Its folds and its first seed are used."""
    minutes: float
    """Training time of each contender, minutes."""

    def __post_init__(self) -> None:
        """Check that there is time to train."""
        if not self.minutes > 0:
            raise UsageError(f"--minutes {self.minutes:g}: must be above 0.")

    @property
    def variant(self) -> str:
        """Return the variant of slicemill's settings."""
        return self.experiment.runs()[0].variant

    def run(self, contender: str, fold: int) -> FoldRun:
        """Return a contender's run. The minutes are part of its name."""
        name = f"{contender}-{self.minutes:g}-minutes".replace(".", "-")
        return FoldRun(variant=name, fold=fold, seed=self.experiment.design.seeds[0])

    def make_request(self, fold: int, store: Store) -> RunRequest:
        """Return the request of slicemill's run on a fold."""
        design, run = self.experiment.design, self.run(self.variant, fold)
        config = replace(design, minutes=self.minutes).config(self.variant, run.seed)
        inputs = self.experiment.request(replace(run, variant=self.variant), store).inputs
        return RunRequest(run=run, config=config, inputs=replace(inputs, settings=plain_json(asdict(config))))


@dataclass(frozen=True, kw_only=True)
class NnunetTools:
    """Tools and paths of a training of nnU-Net."""

    folder: ExperimentFolder
    runner: CommandRunner
    store: Store
    python: Path
    """Interpreter of nnU-Net's environment."""


def compare_with_nnunet(comparison: NnunetComparison) -> NnunetRecord:
    """Do the unfinished runs on every fold and return the record.

    Raises
    ------
    InputError
        nnU-Net cannot be installed, or a command failed; the message names the log.
    """
    experiment = comparison.experiment
    folder = experiment.folder
    nnunet_results: list[NnunetResult] = []
    slicemill_results: list[RunResult] = []
    with lock_experiment(folder.out) as runner:
        store = prepare(experiment, runner)
        python = prepare_environment(folder.out / "nnunet", NNUNET_FOLDER / "requirements.txt", "nnU-Net")
        tools = NnunetTools(folder=folder, runner=runner, store=store, python=python)
        device = choose_device("auto").type
        for fold in experiment.folds:
            request = comparison.make_request(fold, store)
            peer_settings = {"minutes": comparison.minutes, "iterations": ITERATIONS[device], "device": device}
            peer_inputs = replace(request.inputs, settings=peer_settings, export={}, tune={})
            print_line(f"fold {fold}: nnU-Net, {comparison.minutes:g} minutes of training on {device}")
            run = comparison.run("nnunet-2d", fold)
            done = _read_finished(NnunetResult, folder, run, peer_inputs)
            nnunet_results.append(done or run_nnunet(run, peer_inputs, tools))
            print_line(f"fold {fold}: {comparison.variant}, {comparison.minutes:g} minutes")
            own = _read_finished(RunResult, folder, request.run, request.inputs)
            slicemill_results.append(own or run_fold(request, folder, runner, print_line))
    return summarize_comparison(comparison, nnunet_results, slicemill_results)


def _read_finished(
    kind: type[AnyResult], folder: ExperimentFolder, run: FoldRun, inputs: RunInputs
) -> AnyResult | None:
    """Read a run's result and check that it was made from the same inputs; None if the run is not finished."""
    path = folder.result_file(run)
    if not path.exists():
        return None
    result = read_document(kind, path)
    check_same_inputs(path, result.inputs, inputs)
    print_line(f"{run}: done before")
    return result


def run_nnunet(run: FoldRun, inputs: RunInputs, tools: NnunetTools) -> NnunetResult:
    """Train nnU-Net on a fold, segment its test cases and score them. Write the result and return it.

    Raises
    ------
    InputError
        A command failed; the message names the log.
    """
    work, settings, split = tools.folder.run_folder(run), inputs.settings, inputs.split
    log, dataset = work / "log.txt", work / "raw" / DATASET
    write_dataset(dataset, tools.store, split)
    paths = [f"nnUNet_{name}={work / name}" for name in ("raw", "preprocessed", "results")]
    entry = tools.python.with_name("nnUNetv2_plan_and_preprocess")
    tools.runner.run(("env", *paths, entry, "-d", 1, "-c", "2d", "-np", 1, "-npfp", 1), log)
    folds = [{"train": split["train"], "val": split["validation"]}]
    write_bytes(work / "preprocessed" / DATASET / "splits_final.json", to_json(folds).encode())
    arguments = (NNUNET_FOLDER / "peer.py", DATASET, work, "--minutes", settings["minutes"],
                 "--iterations", settings["iterations"], "--device", settings["device"])  # fmt: skip
    tools.runner.run(("env", *paths, tools.python, *arguments), log)
    tools.runner.run_slicemill(("evaluate", work / "segmented", tools.folder.store, "--out", work / "scores"), log)
    result = NnunetResult(
        benchmark="quality peer",
        **origin(),
        **asdict(run),
        **vars(inputs),
        training=read_json(work / "peer.json"),
        cases=read_scores(work / "scores" / "evaluation.json", {"test": split["test"]}, tools.store),
    )
    write_json(tools.folder.result_file(run), to_document(result))
    return result


def write_dataset(dataset: Path, store: Store, split: Mapping[str, Sequence[str]]) -> None:
    """Write a fold's cases as nnU-Net's raw data, unless an earlier call did.

    Raises
    ------
    ConfigError
        The label values are not 1, 2, 3 and so on, as nnU-Net requires.
    StoreError
        A case could not be written.
    """
    parts = {name: tuple(split[name]) for name in ("train", "validation", "test")}
    named = {case_id for part in parts.values() for case_id in part}
    infos = [store[case_id].info for case_id in store.case_ids if case_id in named]
    plan = plan_dataset(infos, "nnunet", ".nii.gz", {str(dataset): Split(**parts)})
    if plan.changed:  # the masks that nnU-Net predicts are scored against the store
        values = common_labels(store).values
        raise ConfigError(f"{store.root}: nnU-Net needs label values 1, 2, 3 and so on; these are {dict(values)}.")
    report = export_dataset(store, dataset, plan)
    failed = [outcome.reason for outcome in report.outcomes if outcome.status == "failed"]
    if failed:
        raise StoreError(f"{len(failed)} cases could not be exported. The first: {failed[0]}", where=store.root)


def summarize_comparison(
    comparison: NnunetComparison, nnunet_results: Sequence[NnunetResult], slicemill_results: Sequence[RunResult]
) -> NnunetRecord:
    """Derive the record: scores of both on the test parts, and slicemill's gain, patient by patient."""
    results: list[Result] = [*nnunet_results, *slicemill_results]
    regions = list(results[0].cases[0].regions)
    design = comparison.experiment.design

    def describe(group: Sequence[Result]) -> dict[str, Any]:
        cases = cases_of(group, "test")
        training = [result.training for result in group]
        return {"training": training, **{region: score_region(cases, region) for region in regions}}

    return NnunetRecord(
        **origin(),
        collection=results[0].collection,
        folds=comparison.experiment.folds,
        of_folds=design.folds,
        minutes=comparison.minutes,
        variant=comparison.variant,
        settings={**design.settings, **design.variants[comparison.variant]},
        convention=CONVENTION,
        region=main_region(regions),
        contenders={"nnU-Net 2D": describe(nnunet_results), "slicemill": describe(slicemill_results)},
        gain={region: dice_gain(slicemill_results, nnunet_results, "test", region) for region in regions},
        commits=sorted({str(result.machine["commit"]) for result in results}),
    )
