"""`bench luna`: the folds of a folder in LUNA16's form, command by command, to one FROC curve of all its scans.

A command that ended well is written to ``steps.jsonl`` with its seconds, and not run again while its words, the scans,
the tables and the settings are the same, what it made exists, and no command before it ran again. Every command
continues work of its own that was stopped; a training that began with other inputs is removed, and begins anew.
"""

import csv
import shutil
import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from slicemill.bench.studies.luna_folder import LunaFolder
from slicemill.bench.studies.luna_plan import (
    JOIN,
    KINDS,
    RATES,
    Kind,
    LunaOptions,
    LunaStep,
    Rate,
    describe_time,
    estimate,
    make_plan,
)
from slicemill.bench.studies.runner import CommandRunner, lock_experiment
from slicemill.common.countdown import Countdown
from slicemill.common.documents import from_document, from_toml, to_document
from slicemill.common.errors import InputError
from slicemill.common.files import append_line, read_json, read_lines, read_text, sha256_of_json, write_bytes
from slicemill.common.terminal import count_noun, format_table, print_line, print_lines
from slicemill.store.reader import Store, open_store
from slicemill.store.tables import points_sha256, store_sha256
from slicemill.train.run.claim import claim_to_train

STEPS, LOG = "steps.jsonl", "log.txt"
SAME_WORK: Mapping[Kind, Kind] = {"ingest candidates": "ingest", "judge": "infer"}
"""Kinds that take as long as another one, whose rate they have until one of their own has run."""
TRAININGS: Mapping[Kind, Callable[[Store], str]] = {"train": store_sha256, "train crops": points_sha256}
"""Kinds that continue what is in their run folder, and the hash of what they read of the store."""


@dataclass(frozen=True, kw_only=True)
class StepLine:
    """A line of ``steps.jsonl``: a command that began, or one that ended well."""

    mark: str
    """Hash of the scans, tables and settings."""
    words: tuple[str, ...]
    makes: str
    kind: str
    amount: float
    seconds: float | None = None
    """Its time; None where it began."""
    inputs: str | None = None
    """Hash of all that a training depends on (`hash_inputs`); None for other commands."""


@dataclass(frozen=True, kw_only=True)
class History:
    """What runs into a folder have done."""

    lines: tuple[StepLine, ...]

    def rates(self) -> dict[Kind, Rate]:
        """Return the rates of each kind: those of commands that ran through here, else RATES.

        A command that was stopped and continued has no time of its own, so it does not count.
        """
        begun: dict[tuple[str, tuple[str, ...]], int] = defaultdict(int)
        amounts: dict[str, list[tuple[float, float]]] = defaultdict(list)
        for line in self.lines:
            key = (line.mark, line.words)
            if line.seconds is None:
                begun[key] += 1
            elif begun[key] == 1:
                amounts[line.kind].append((line.amount, line.seconds))
        rates = dict(RATES)
        for kind in KINDS:
            work, seconds = (sum(column) for column in zip(*amounts[kind], strict=True)) if amounts[kind] else (0, 0)
            if work and seconds and kind != "train":  # which has a limit
                source = f"{count_noun(len(amounts[kind]), 'command')} of this run"
                rates[kind] = Rate(per_second=work / seconds, unit=RATES[kind].unit, source=source)
        for kind, same in SAME_WORK.items():
            if not amounts[kind] and amounts[same]:
                rates[kind] = rates[same]
        return rates

    def find_inputs(self, run: Path) -> str | None:
        """Return the hash of what the last training into a run folder began with; None if there was none."""
        return next((line.inputs for line in reversed(self.lines) if Path(line.makes).name == run.name), None)

    def find_left(self, plan: Sequence[LunaStep], mark: str) -> list[LunaStep]:
        """Return the commands that must run."""
        places = {step.words: number for number, step in enumerate(plan)}
        makers = {str(step.makes): number for number, step in reversed([*enumerate(plan)])}
        done: set[tuple[str, ...]] = set()
        for line in self.lines:
            if line.seconds is None:  # what later commands made before is out of date from here on
                first = places.get(line.words, makers.get(line.makes, 0))
                done -= {step.words for step in plan[first:]}
            elif line.mark == mark:
                done.add(line.words)
        for number, step in enumerate(plan):
            if step.words not in done or not step.makes.exists():
                return list(plan[number:])
        return []


def read_history(out: Path) -> History:
    """Read what runs into a folder have done."""
    where = str(out / STEPS)
    return History(lines=tuple(from_document(StepLine, line, where) for line in read_lines(out / STEPS)))


def mark_of(folder: LunaFolder, options: LunaOptions) -> str:
    """Return the hash of all that the commands read."""
    return folder.mark(*([] if options.config is None else [options.config]))


def describe_plan(folder: LunaFolder, options: LunaOptions) -> list[str]:
    """Return the commands that are left and the time they would take."""
    plan, history = make_plan(folder, options), read_history(options.out)
    left, rates = history.find_left(plan, mark_of(folder, options)), history.rates()
    seconds = {kind: sum(estimate(step, rates).seconds for step in left if step.kind == kind) for kind in KINDS}
    rows = [
        [kind, sum(step.kind == kind for step in left), f"{rates[kind].per_second:,.4g} {rates[kind].unit}/s",
         describe_time(seconds[kind]), rates[kind].source]
        for kind in KINDS if any(step.kind == kind for step in left)
    ]  # fmt: skip
    excluded = "excluded findings" if folder.excluded else "no table of excluded findings"
    what = (count_noun(len(folder.subsets), "subset"), count_noun(folder.scans, "scan"), f"{folder.slices:,} slices",
            count_noun(folder.nodules, "nodule"), excluded)  # fmt: skip
    total = describe_time(sum(seconds.values()))
    lines = [", ".join(what), *(step.line for step in left)]
    if left:
        lines += format_table(["commands", "number", "rate", "time", "rate is from"], rows).split("\n")
    time_left = f"; {total} by these rates" if left else ""
    lines.append(f"{len(left)} of {count_noun(len(plan), 'command')} left{time_left}")
    return lines


def run_luna(folder: LunaFolder, options: LunaOptions) -> Mapping[str, Any]:
    """Run the commands that are left, and return the content of ``scores/froc.json``.

    Raises
    ------
    InputError
        A command failed, or tables cannot be joined.
    ConfigError
        Another process works in the folder.
    """
    plan, mark = make_plan(folder, options), mark_of(folder, options)
    with lock_experiment(options.out) as runner:
        history = read_history(options.out)
        left, rates = history.find_left(plan, mark), history.rates()
        print_line(f"{len(plan) - len(left)} of {count_noun(len(plan), 'command')} done before")
        countdown = Countdown([estimate(step, rates) for step in left])
        for step in left:
            countdown.begin(step.name)
            print_line(f"[{countdown.place}: {describe_time(countdown.left_seconds)} left in all]")
            print_line(step.line)
            line = start_line(step, mark)
            if step.kind in TRAININGS:
                line = replace(line, inputs=hash_inputs(step, folder))
                if history.find_inputs(step.makes) not in (None, line.inputs):
                    remove_outdated(step.makes)
            _run_step(step, line, options.out, runner)
    judged, alone = (read_json(options.out / name / "froc.json") for name in ("scores", "scores-segmentation"))
    print_lines("\n".join(describe_scores({"segmentations alone": alone, "with the classifiers": judged})))
    print_line(f"curve: {options.out / 'scores' / 'froc.png'}; candidates: {options.out / 'candidates.csv'}")
    return judged


def start_line(step: LunaStep, mark: str) -> StepLine:
    """Return the line of a command that begins."""
    return StepLine(mark=mark, words=step.words, makes=str(step.makes), kind=step.kind, amount=step.amount)


def hash_inputs(step: LunaStep, folder: LunaFolder) -> str:
    """Return the hash of all that a training depends on: its options, split and settings, the tables and the store.

    Names of folders and times of files do not count, so that a training continues after its data were copied.
    """
    options: list[Any] = list(step.words[3:])  # after train STORE RUN
    for name, read in (("--split", read_json), ("--config", _read_settings)):
        if name in options:
            place = options.index(name) + 1
            options[place] = read(Path(options[place]))
    return sha256_of_json([options, folder.table_hashes, TRAININGS[step.kind](open_store(Path(step.words[1])))])


def _read_settings(path: Path) -> dict[str, Any]:
    return from_toml(dict[str, Any], read_text(path), str(path))


def remove_outdated(run: Path) -> None:
    """Remove the run folder of a training that began with other inputs, which `train` would refuse to continue.

    The command that trains there is written down only afterwards, so that a removal that was stopped is repeated.

    Raises
    ------
    ConfigError
        Another command trains in the folder.
    """
    if run.is_dir():
        print_line(f"{run} began with other options, settings, tables or scans; it is removed, and trained anew")
        with claim_to_train(run):
            shutil.rmtree(run)


def _run_step(step: LunaStep, line: StepLine, out: Path, runner: CommandRunner) -> None:
    """Run a command and write that it is done."""
    append_line(out / STEPS, to_document(line))
    start = time.monotonic()
    if step.kind == JOIN:
        target, *tables = map(Path, step.words)
        join_tables(target, tables)
    else:
        step.makes.parent.mkdir(parents=True, exist_ok=True)
        runner.run_slicemill(step.words, out / LOG)
    seconds = time.monotonic() - start
    append_line(out / STEPS, to_document(line) | {"seconds": round(seconds, 3)})


def join_tables(target: Path, tables: Sequence[Path]) -> None:
    """Write tables of candidates with equal columns as one.

    Raises
    ------
    InputError
        A table has other columns than the first, or a scan that another one has.
    """
    header, lines, owner = "", [], dict[str, Path]()
    for table in tables:
        first, *rows = read_text(table).replace("\r\n", "\n").removesuffix("\n").split("\n")
        header = header or first
        if first != header:
            raise InputError(f"has the columns {first!r}; those of {tables[0]} are {header!r}.", where=table)
        for scan in {cells[0] for cells in csv.reader(rows) if cells}:
            if owner.setdefault(scan, table) != table:
                raise InputError(f"has the scan {scan}, which {owner[scan]} has, too.", where=table)
        lines += rows
    write_bytes(target, "".join(f"{line}\n" for line in [header, *lines]).encode())


def describe_scores(scores: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Return the CPM of each way, from its ``froc.json``."""
    rows = [
        [name, one["findings"], one["cpm"], *one["cpm_interval"], one["cpm_at_or_above"]]
        for name, one in scores.items()
    ]
    return format_table(["", "nodules", "CPM", "low", "high", "CPM at or above"], rows).split("\n")
