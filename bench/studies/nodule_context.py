"""How much the neighbors of a slice tell: segmentations of nodules that see seven slices, and one, on the same chests.

A vessel that crosses a slice looks like a nodule there. Each network is trained with the same settings, steps and
seed; only `context` differs. Both find candidates in the test scans of the split, which are scored as whole scans by
LUNA16's rules. The difference of their CPM has an interval from a bootstrap of the patients that both share.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from slicemill.bench.schema.base import origin
from slicemill.bench.schema.nodules import ContextScore, NoduleContextRecord
from slicemill.bench.studies.runner import CommandRunner, lock_experiment
from slicemill.common.errors import ConfigError, UsageError
from slicemill.common.files import write_bytes
from slicemill.common.terminal import print_line
from slicemill.measure.evaluation.findings import Findings, read_store_findings
from slicemill.measure.evaluation.froc import ScanHits, compare_cpm, make_curve
from slicemill.measure.evaluation.luna16 import are_near, find_all_hits, read_candidates
from slicemill.store.reader import Store, open_store
from slicemill.store.split import read_split
from slicemill.train.config import Config, to_toml

Floats = npt.NDArray[np.float64]
LOG, TESTED = "log.txt", "test-cases.txt"


@dataclass(frozen=True, kw_only=True)
class ScoredCandidates:
    """The candidates of a network in the test scans."""

    hits: list[ScanHits]
    """Of each scan, by LUNA16's rules: the 100 most probable candidates."""
    found: int
    """Nodules among all candidates."""
    false_alarms: int
    """Candidates in no nodule and no excluded finding, of all."""


@dataclass(frozen=True, kw_only=True)
class ContextStudy:
    """What is compared, and on which scans."""

    store: Path
    """Store with points and masks of nodules."""
    scans: Path
    """Folder of the scans that the store was made of."""
    split: Path
    """Training and validation cases, and the test cases that are scored."""
    out: Path
    """Folder of runs, models and candidates."""
    config: Config
    """Settings of all trainings, but for `context` and `seed`."""
    contexts: tuple[int, ...] = (7, 1)
    """Slices that the networks see; the first one is the reference."""
    seeds: tuple[int, ...] = (0,)

    def __post_init__(self) -> None:
        """Check the lists, and that all networks take the same number of steps, which the record states.

        Raises
        ------
        UsageError
            There are no two contexts, or no seed; or a training ends by time or by its scores.
        """
        if not self.config.steps or self.config.max_minutes or self.config.patience:
            raise UsageError(
                f"steps = {self.config.steps}, max_minutes = {self.config.max_minutes:g}, patience = "
                f"{self.config.patience}: the networks are compared after equal steps. Set steps above 0 in --config, "
                "and the others to 0."
            )
        if len(set(self.contexts)) < 2 or len(set(self.contexts)) != len(self.contexts):
            raise UsageError("--contexts: name at least two different numbers of slices, like 7,1.")
        if not self.seeds:
            raise UsageError("--seeds: name at least one.")
        for context in self.contexts:
            self.config.replace(context=context)


def run(study: ContextStudy) -> NoduleContextRecord:
    """Train, find candidates and score them, for each context and seed; what is done is not done again.

    Raises
    ------
    InputError
        A command failed, or a scan is not in the folder.
    ConfigError
        The split has no test cases with a nodule, or another process works in the folder.
    """
    store = open_store(study.store)
    tested = read_split(study.split, store.case_ids).test
    if not tested:
        raise ConfigError("names no test cases, which are scored.", where=study.split)
    scans = _find_scans(store, study.scans, tested)
    with lock_experiment(study.out) as runner:
        write_bytes(study.out / TESTED, "".join(f"{case}\n" for case in tested).encode())
        findings = read_store_findings(study.store, study.out / TESTED, None)
        if not any(len(points) for points in findings.included.values()):
            raise ConfigError("its test cases have no nodule, so that nothing can be found.", where=study.split)
        scored = {
            (context, seed): _score(study, runner, scans, findings, context, seed)
            for seed in study.seeds
            for context in study.contexts
        }
    return make_record(study, scored, findings)


def _find_scans(store: Store, folder: Path, tested: Sequence[str]) -> list[Path]:
    scans = [folder / store[case_id].info.image.name for case_id in tested]
    missing = [scan for scan in scans if not scan.exists()]
    if missing:
        raise ConfigError(f"is not there; --scans must be the folder that {store.root} was made of.", where=missing[0])
    return scans


def _score(
    study: ContextStudy, runner: CommandRunner, scans: Sequence[Path], findings: Findings, context: int, seed: int
) -> ScoredCandidates:
    """Train a network, and score its candidates."""
    name = f"context-{context}-seed-{seed}"
    run, found, log = study.out / name, study.out / f"{name}-found", study.out / LOG
    model, settings = study.out / f"{name}.onnx", study.out / f"{name}.toml"
    write_bytes(settings, to_toml(study.config.replace(context=context, seed=seed)).encode())
    for words in (
        ("train", study.store, run, "--config", settings, "--split", study.split),
        ("export", run, model),
        ("infer", model, *scans, "--out", found, "--candidates"),
    ):
        print_line(f"{name}: {words[0]}")
        runner.run_slicemill(words, log)
    return score_candidates(read_candidates(found / "candidates.csv", findings), findings)


def score_candidates(candidates: Mapping[str, Floats], findings: Findings) -> ScoredCandidates:
    """Score candidates by scan, float64[n, 4], x, y, z in mm, probability."""
    none = np.empty((0, 4))
    found = false = 0
    for scan in findings.scans:
        rows = candidates.get(scan, none)
        hits = [are_near(rows, one) for one in findings.included.get(scan, none)]
        ignored = [are_near(rows, one) for one in findings.excluded.get(scan, none)]
        found += sum(bool(hit.any()) for hit in hits)
        false += int((~np.any([np.zeros(len(rows), dtype=bool), *hits, *ignored], axis=0)).sum())
    return ScoredCandidates(hits=find_all_hits(candidates, findings, None), found=found, false_alarms=false)


def make_record(
    study: ContextStudy, scored: Mapping[tuple[int, int], ScoredCandidates], findings: Findings
) -> NoduleContextRecord:
    """Return the record of scored candidates, by context and seed."""
    scores = []
    patients = None if findings.patients is None else [findings.patients[scan] for scan in findings.scans]
    for (context, seed), one in scored.items():
        sensitivity = make_curve(one.hits).between()
        less = None
        if context != study.contexts[0]:
            less = compare_cpm(one.hits, scored[study.contexts[0], seed].hits, patients)
        scores.append(
            ContextScore(
                context=context,
                seed=seed,
                cpm=round(float(sensitivity.mean()), 4),
                sensitivity=[round(float(value), 4) for value in sensitivity],
                found=one.found,
                false_alarms=one.false_alarms,
                over_first=None if less is None else round(less.difference, 4),
                over_first_interval=None if less is None else [round(value, 4) for value in less.interval],
            )
        )
    config = study.config
    return NoduleContextRecord(
        scans=len(findings.scans),
        nodules=sum(len(points) for points in findings.included.values()),
        steps=config.epochs * config.steps,
        width=config.width,
        context_spacing_mm=config.context_spacing_mm,
        scores=scores,
        **origin(),
    )
