"""The commands `slicemill bench quality | yardstick | nodules | nodule-rules | nodule-context | luna`."""

from pathlib import Path
from typing import Annotated, Any

import typer

from slicemill.bench.options import Json
from slicemill.common.options import require_finite
from slicemill.common.terminal import print_line
from slicemill.infer.request import Provider

Collection = Annotated[Path | None, typer.Option(help="Collection of scans with masks.")]
Phantoms = Annotated[
    int, typer.Option(help="Number of phantoms with liver and tumor to make instead of --data.", min=0)
]
Out = Annotated[Path, typer.Option(help="Folder of the experiment. Repeat the command to resume it.")]


def quality(
    data: Collection = None,
    phantoms: Phantoms = 0,
    table: Annotated[
        Path | None,
        typer.Option(help="Variants as TOML; by default bench/studies/sarcoma.toml, or phantoms.toml with --phantoms."),
    ] = None,
    labels: Annotated[str | None, typer.Option(help="Names of the label values, like tumor=1.")] = None,
    folds: Annotated[int | None, typer.Option(help="Folds; each patient is in the test part of one.")] = None,
    only_folds: Annotated[str | None, typer.Option(help="Run only these folds, like 0,2.")] = None,
    variants: Annotated[str | None, typer.Option(help="Run only these variants, like default,one-slice.")] = None,
    seeds: Annotated[str | None, typer.Option(help="Seeds of the trainings, like 0,1,2.")] = None,
    epochs: Annotated[int | None, typer.Option(help="Epochs of every training.")] = None,
    steps: Annotated[int | None, typer.Option(help="Steps of an epoch.")] = None,
    jobs: Annotated[int, typer.Option(help="Trainings at a time, each on its share of the cores.", min=1)] = 1,
    out: Out = Path("quality"),
    json: Json = None,
    picture: Annotated[Path | None, typer.Option(help="PNG to draw; by default quality.png in the folder.")] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="List the runs with their estimated times, and stop.")
    ] = False,
) -> None:
    """Train variants of the settings on folds by patient, and compare their Dice patient by patient.

    A TOML file names the variants: settings that all share, and what each variant changes. The first variant is the
    reference. Every training takes the same number of steps, or of `minutes` if the table has them. Each run goes
    through train, export, infer and evaluate. The best variant is chosen by the validation parts; the test parts are
    shown too. The same command resumes a killed run. Later calls with other variants or seeds add to the same record.

    slicemill bench quality --data sarcoma/ --dry-run
    slicemill bench quality --data sarcoma/ --jobs 2
    slicemill bench quality --data sarcoma/ --variants default --seeds 0,1,2
    slicemill bench quality --phantoms 200 --only-folds 0
    """
    from dataclasses import replace

    from slicemill.bench.options import parse_integers, parse_names
    from slicemill.bench.records.output import print_record
    from slicemill.bench.records.quality_figure import draw_dice
    from slicemill.bench.studies.design import read_design
    from slicemill.bench.studies.dry_run import show_plan
    from slicemill.bench.studies.experiment import Experiment, run_experiment
    from slicemill.bench.studies.summary import summarize
    from slicemill.common.errors import ConfigError, UsageError

    design = read_design(table or _shipped_table(phantoms))
    if design.minutes and epochs is not None:
        raise UsageError("--epochs: the table limits the trainings by minutes. Remove the option, or `minutes`.")
    changes: dict[str, Any] = {"labels": labels, "folds": folds, "epochs": epochs, "steps": steps}
    changes["seeds"] = None if seeds is None else parse_integers("--seeds", seeds)
    try:
        design = replace(design, **{name: value for name, value in changes.items() if value is not None})
    except ConfigError as error:
        raise UsageError(str(error)) from error
    experiment = Experiment(
        design=design,
        out=out,
        data=data,
        phantoms=phantoms,
        variants=parse_names(variants),
        only_folds=parse_integers("--only-folds", only_folds),
        jobs=jobs,
    )
    if dry_run:
        show_plan(experiment)
        return
    record = summarize(design, run_experiment(experiment))
    record_path, picture_path = json or out / "quality.json", picture or out / "quality.png"
    draw_dice(picture_path, record)
    print_record(record.as_json(), record_path)
    print_line(f"picture: {picture_path}; record: {record_path}")


def yardstick(
    data: Collection = None,
    phantoms: Phantoms = 0,
    table: Annotated[Path | None, typer.Option(help="Settings as in bench quality.")] = None,
    variant: Annotated[str | None, typer.Option(help="Variant of slicemill's settings; by default the first.")] = None,
    only_folds: Annotated[str, typer.Option(help="Folds to compare on, like 0,2.")] = "0",
    minutes: Annotated[float, typer.Option(callback=require_finite, help="Training time of each, minutes.")] = 20.0,
    out: Out = Path("quality"),
    json: Json = None,
) -> None:
    """Compare slicemill with nnU-Net's 2D configuration on the same folds, for the same minutes on the same device.

    nnU-Net is installed from pinned versions into its own environment in the folder of the experiment. It keeps its
    plans and defaults, except when it stops. Both run one after the other, with all cores: nothing else should run.
    Finished folds are not repeated.

    slicemill bench yardstick --data sarcoma/ --minutes 20
    slicemill bench yardstick --data sarcoma/ --minutes 20 --only-folds 0,1,2,3
    """
    from slicemill.bench.options import parse_integers
    from slicemill.bench.records.output import print_record
    from slicemill.bench.studies.design import read_design
    from slicemill.bench.studies.experiment import Experiment
    from slicemill.bench.studies.nnunet_comparison import NnunetComparison, compare_with_nnunet

    experiment = Experiment(
        design=read_design(table or _shipped_table(phantoms)),
        out=out,
        data=data,
        phantoms=phantoms,
        variants=(variant,) if variant else (),
        only_folds=parse_integers("--only-folds", only_folds),
    )
    record = compare_with_nnunet(NnunetComparison(experiment=experiment, minutes=minutes))
    print_record(record.as_json(), json or out / "yardstick.json")
    print_line(f"record: {json or out / 'yardstick.json'}")


def nodules(
    size: Annotated[int, typer.Option(help="Pixels along a slice's side.", min=128, max=1024)] = 416,
    chests: Annotated[int, typer.Option(help="Chests to train the segmentation on, and to validate it.")] = 52,
    unseen: Annotated[int, typer.Option(help="Further chests of the classifier.")] = 18,
    test_chests: Annotated[int, typer.Option(help="Chests to test on.")] = 40,
    malignancy_chests: Annotated[int, typer.Option(help="Chests of ten nodules each to test malignancy on.")] = 12,
    seed: Annotated[int, typer.Option(help="Seed of the chests to train on, at most 99.")] = 41,
    test_seed: Annotated[int, typer.Option(help="Seed of the test chests; those of malignancy have the next.")] = 9010,
    minutes: Annotated[
        float, typer.Option(callback=require_finite, help="Time limit of the segmentation's training.", min=0.1)
    ] = 36.0,
    crop_minutes: Annotated[
        float, typer.Option(callback=require_finite, help="Time limit of the classifier's training.", min=0.1)
    ] = 16.0,
    malignancy_minutes: Annotated[
        float, typer.Option(callback=require_finite, help="Time limit of the training of malignancy.", min=0.1)
    ] = 5.0,
    seeds: Annotated[str, typer.Option(help="Seeds of the trainings, like 0,1,2.")] = "0",
    out: Out = Path("nodule-chests"),
    json: Json = None,
) -> None:
    """Train on synthetic chests with nodules, and score by LUNA16's rules on chests that no network has seen.

    The segmentation alone ranks its candidates, and then the classifier. Malignancy is compared with the diameter.
    Trainings have time limits, so results depend on the speed of the machine. It takes hours, and about 25 GB for one
    seed. The same command resumes a killed run.

    slicemill bench nodules --out nodule-chests/
    slicemill bench nodules --out nodule-chests/ --seeds 0,1,2
    """
    from slicemill.bench.options import parse_integers
    from slicemill.bench.records.output import print_record
    from slicemill.bench.studies.nodule_chests import ChestStudy, run

    study = ChestStudy(
        out=out,
        size=size,
        chests=chests,
        unseen=unseen,
        test_chests=test_chests,
        malignancy_chests=malignancy_chests,
        seed=seed,
        test_seed=test_seed,
        minutes=minutes,
        crop_minutes=crop_minutes,
        malignancy_minutes=malignancy_minutes,
        seeds=parse_integers("--seeds", seeds),
    )
    record_path = json or out / "nodules.json"
    print_record(run(study).as_json(), record_path)
    print_line(f"record: {record_path}")


def nodule_rules(
    cases: Annotated[int, typer.Option(help="Synthetic chests.", min=1)] = 40,
    seed: Annotated[int, typer.Option(help="Seed of the chests; tests and trainings have others.", min=0)] = 100,
    size: Annotated[int, typer.Option(help="Pixels along a slice's side.", min=128, max=1024)] = 256,
    json: Json = None,
) -> None:
    """Score 200 rules of threshold and shape on synthetic chests with nodules: none may solve them.

    The lung mask is given to the rules. The command exits 1 if the best one reaches a CPM of 0.45.

    slicemill bench nodule-rules --cases 40
    """
    from slicemill.bench.records.output import print_record
    from slicemill.bench.studies.nodule_rules import run

    record = run(cases, seed, size)
    print_record(record.as_json(), json)
    best = record.settings[0]
    if best.cpm >= record.limit:
        print_line(f"a rule solves the synthetic chests, with a CPM of {best.cpm:.3f}: {best.rule}")
        raise SystemExit(1)


def nodule_context(
    store: Annotated[Path, typer.Argument(help="Store with points and masks of nodules.")],
    scans: Annotated[
        Path, typer.Option(help="Folder of the scans that the store was made of; only names of files are compared.")
    ],
    split: Annotated[Path, typer.Option(help="Split file; its test cases are scored.")],
    config: Annotated[
        Path, typer.Option(help="Settings of all networks as TOML, on top of --recipe nodules; it must set steps.")
    ],
    contexts: Annotated[str, typer.Option(help="Slices that the networks see; the first is the reference.")] = "7,1",
    seeds: Annotated[str, typer.Option(help="Seeds of the trainings, like 0,1,2.")] = "0",
    out: Out = Path("nodule-context"),
    json: Json = None,
) -> None:
    """Compare segmentations of nodules that see seven slices, and one: the same steps, scored by LUNA16's rules.

    Each network goes through train, export and infer; the candidates of whole test scans are scored. The same command
    resumes a killed run.

    slicemill bench nodule-context store/ --scans chests/scans --split split.json --config settings.toml
    """
    from slicemill.bench.options import parse_integers
    from slicemill.bench.records.output import print_record
    from slicemill.bench.studies.nodule_context import ContextStudy, run
    from slicemill.train.config import make_config, read_config

    study = ContextStudy(
        store=store,
        scans=scans,
        split=split,
        out=out,
        config=read_config(config, make_config("nodules")),
        contexts=parse_integers("--contexts", contexts),
        seeds=parse_integers("--seeds", seeds),
    )
    record_path = json or out / "nodule-context.json"
    print_record(run(study).as_json(), record_path)
    print_line(f"record: {record_path}")


def luna(
    data: Annotated[Path, typer.Argument(help="Folder with subset0 to subset9, annotations.csv, seg-lungs-LUNA16.")],
    out: Annotated[Path, typer.Option(help="Folder of everything that is made. Repeat the command to resume it.")] = (
        Path("luna")
    ),
    minutes: Annotated[
        float,
        typer.Option(callback=require_finite, help="Time limit of each segmentation's training, minutes.", min=0.1),
    ] = 600.0,
    epochs: Annotated[int | None, typer.Option(help="Epochs of each segmentation, at most.", min=1)] = None,
    crop_epochs: Annotated[
        int | None, typer.Option(help="Epochs of each classifier; by default as `train --crops`.", min=1)
    ] = None,
    config: Annotated[
        Path | None, typer.Option(help="Settings of the segmentations as TOML, on top of --recipe nodules.")
    ] = None,
    provider: Annotated[Provider, typer.Option(help="Execution provider of the inference.")] = "auto",
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="List the commands and the time they would take, and stop.")
    ] = False,
) -> None:
    """Train and test on the folds of LUNA16, or of a folder in its form: one FROC curve of all scans.

    Each subset is judged by networks that never saw it. Candidates that a classifier learns from are found by
    segmentations that never saw their scan. The same command resumes a killed run. Nobody has run it on LUNA16's scans.

        slicemill bench luna luna16/ --dry-run
        slicemill bench luna luna16/ --out luna/ --provider cuda
    """
    from slicemill.bench.studies.luna import describe_plan, run_luna
    from slicemill.bench.studies.luna_folder import find_subsets, open_luna
    from slicemill.bench.studies.luna_plan import LunaOptions
    from slicemill.common.progress import progress

    with progress("headers", len(find_subsets(data)), "subsets") as advance:
        folder = open_luna(data, lambda name: advance(1, name))
    options = LunaOptions(
        data=data, out=out, minutes=minutes, epochs=epochs, crop_epochs=crop_epochs, config=config, provider=provider
    )
    for line in describe_plan(folder, options):
        print_line(line)
    if dry_run:
        print_line("nothing was written (--dry-run)")
        return
    run_luna(folder, options)


def _shipped_table(phantoms: int) -> Path:
    """Return the table of variants that comes with the command."""
    return Path(__file__).parent / ("phantoms.toml" if phantoms else "sarcoma.toml")
