"""One run of an experiment: train a variant on a fold with a seed, and score the validation and test cases.

Everything goes through the commands of a user: train, export, tune, infer, evaluate. A run leaves::

    OUT/runs/<run>/settings.toml  train/  model.onnx  segmented/  scores/  log.txt
    OUT/results/<run>.json        small, written last: if it exists, the run is finished
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from slicemill.bench.records.quality import PARTS
from slicemill.bench.schema.base import origin
from slicemill.bench.studies.results import (
    QUALITY_RUN,
    ExperimentFolder,
    FoldRun,
    RegionVolumes,
    RunInputs,
    RunResult,
    ScoredCase,
    TrainingSummary,
)
from slicemill.bench.studies.runner import CommandRunner
from slicemill.common.documents import to_document
from slicemill.common.errors import InputError
from slicemill.common.files import read_json, write_bytes, write_json
from slicemill.measure.evaluation.detection import BAND_NAMES
from slicemill.store.reader import Store, open_store
from slicemill.train.config import Config, to_toml
from slicemill.train.run.checkpoint import read_state


@dataclass(frozen=True, kw_only=True)
class RunRequest:
    """A run to do."""

    run: FoldRun
    config: Config
    inputs: RunInputs
    """Inputs that its result records."""


def run_fold(
    request: RunRequest, folder: ExperimentFolder, runner: CommandRunner, log: Callable[[str], None]
) -> RunResult:
    """Train (or resume), export, tune if requested, segment and score. Write the result and return it.

    Parameters
    ----------
    log : callable
        Called with the name of each command before it starts.

    Raises
    ------
    InputError
        A command failed; the message holds its last line and names the log.
    """
    run, inputs = request.run, request.inputs
    work, split_file, store = folder.run_folder(run), folder.split_file(run.fold), open_store(folder.store)
    settings, trained, model = work / "settings.toml", work / "train", work / "model.onnx"
    scans = [folder.data / store[case_id].info.image.name for part in PARTS for case_id in inputs.split[part]]
    write_bytes(settings, to_toml(request.config).encode())

    def run_command(*words: object) -> None:
        log(str(words[0]))
        runner.run_slicemill(words, work / "log.txt")

    run_command("train", folder.store, trained, "--config", settings, "--split", split_file)
    start = time.perf_counter()
    run_command("export", trained, model, *(word for option in inputs.export.items() for word in option))
    if inputs.tune["tuned"]:
        run_command("tune", model, folder.store, "--split", split_file)
    run_command("infer", model, *scans, "--out", work / "segmented")
    run_command("evaluate", work / "segmented", folder.store, "--out", work / "scores")
    state = read_state(trained)
    result = RunResult(
        benchmark=QUALITY_RUN,
        **origin(),
        **asdict(run),
        **vars(inputs),
        training=TrainingSummary(
            epochs=state.epoch,
            best_epoch=state.best_epoch,
            minutes=round(state.seconds / 60, 2),
            slices_per_second=round(sum(row["slices_per_second"] for row in state.rows) / len(state.rows), 2),
        ),
        minutes=round((state.seconds + time.perf_counter() - start) / 60, 2),
        cases=read_scores(work / "scores" / "evaluation.json", inputs.split, store),
    )
    write_json(folder.result_file(run), to_document(result))
    return result


def read_scores(evaluation: Path, split: Mapping[str, Sequence[str]], store: Store) -> tuple[ScoredCase, ...]:
    """Read the scores of the validation and test cases from an evaluation.

    Raises
    ------
    InputError
        A case was not scored.
    """
    document = read_json(evaluation)
    rows = {row["case_id"]: row for row in document["by_case"]}
    scored = [(part, case_id) for part in PARTS for case_id in split.get(part, ())]
    missing = [case_id for _, case_id in scored if case_id not in rows]
    if missing:
        raise InputError(f"{evaluation}: has no scores of {', '.join(missing[:5])}; see log.txt next to its folder.")
    regions = [key.removeprefix("dice_") for key in document["by_case"][0] if key.startswith("dice_")]
    return tuple(
        ScoredCase(
            case_id=case_id,
            patient_id=store[case_id].info.patient_id,
            part=part,
            regions={region: read_region(rows[case_id], region) for region in regions},
            lesions=read_lesions(rows[case_id]),
        )
        for part, case_id in scored
    )


def read_lesions(row: Mapping[str, Any]) -> dict[str, tuple[int, int]]:
    """Read the lesions found, and all, by volume, from the row of a case in an evaluation; empty without a tumor label.

    >>> read_lesions({"lesions_below_1_ml": 3, "lesions_found_below_1_ml": 1})
    {'below_1_ml': (1, 3)}
    """
    return {
        band: (row[f"lesions_found_{band}"], row[f"lesions_{band}"]) for band in BAND_NAMES if f"lesions_{band}" in row
    }


def read_region(row: Mapping[str, Any], region: str) -> RegionVolumes:
    """Read the overlap of one region from the row of a case in an evaluation.

    >>> read_region({"dice_t": 0.5, "recall_t": 0.5, "reference_t_ml": 2.0, "predicted_t_ml": 2.0}, "t").overlap_ml
    1.0
    """
    reference = row[f"reference_{region}_ml"]
    return RegionVolumes(
        dice=row[f"dice_{region}"],
        reference_ml=reference,
        predicted_ml=row[f"predicted_{region}_ml"],
        overlap_ml=reference * (row[f"recall_{region}"] or 0.0),
    )
