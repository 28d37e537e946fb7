"""The commands `slicemill train` and `slicemill export`."""

from pathlib import Path
from typing import Annotated

import typer

from slicemill.common.errors import UsageError
from slicemill.common.files import parse_location
from slicemill.common.options import require_finite
from slicemill.common.terminal import print_line, report_errors


def train(
    store: Annotated[str, typer.Argument(help="Slice store with masks.")],
    run: Annotated[Path, typer.Argument(help="Folder of the run, made or gone on with.")],
    config: Annotated[Path | None, typer.Option(help="Settings as TOML; options on the command line go first.")] = None,
    split: Annotated[
        Path | None,
        typer.Option(help="JSON with the case ids of train, validation and test, instead of a random split."),
    ] = None,
    context: Annotated[int | None, typer.Option(help="Slices seen around the one to label: 1, 3, 5 or 7.")] = None,
    context_spacing_mm: Annotated[
        float | None,
        typer.Option(
            callback=require_finite,
            help="Distance of those slices in mm, whatever the scan's own; 0 takes its neighbors.",
        ),
    ] = None,
    spacing_mm: Annotated[
        float | None,
        typer.Option(
            callback=require_finite, help="In-plane pixel size that slices are resampled to; 0 keeps their own."
        ),
    ] = None,
    crop: Annotated[
        int | None, typer.Option(help="Side of the parts of slices that are trained on; 0 trains on whole slices.")
    ] = None,
    size: Annotated[
        int | None, typer.Option(help="Side to which slices are padded or cropped; 0 is the largest slice.")
    ] = None,
    width: Annotated[int | None, typer.Option(help="Channels of the first level.")] = None,
    batch: Annotated[
        str | None,
        typer.Option(help="Slices per step, over all processes; auto takes as many as the GPU's memory holds."),
    ] = None,
    epochs: Annotated[int | None, typer.Option(help="Epochs.")] = None,
    steps: Annotated[
        int | None, typer.Option(help="Steps per epoch; 0 is as many slices as the training part has.")
    ] = None,
    max_minutes: Annotated[
        float | None,
        typer.Option(callback=require_finite, help="End after so many minutes of training; 0 is no limit."),
    ] = None,
    learning_rate: Annotated[float | None, typer.Option(callback=require_finite, help="Highest learning rate.")] = None,
    tumor_share: Annotated[
        float | None, typer.Option(callback=require_finite, help="Share of the drawn slices that hold tumor.")
    ] = None,
    augment: Annotated[
        float | None, typer.Option(callback=require_finite, help="Strength of the random changes, 0 to 1.")
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Of the split, the draws and the weights.")] = None,
    device: Annotated[str | None, typer.Option(help="auto, cpu, cuda or cuda:N.")] = None,
    precision: Annotated[str | None, typer.Option(help="auto, fp32, bf16 or fp16.")] = None,
    cache_dir: Annotated[
        Path | None,
        typer.Option(help="Where slices of a store in a bucket are kept; by default with the temporary files."),
    ] = None,
    cache_gb: Annotated[
        float, typer.Option(callback=require_finite, help="How much of them is kept, GB.", min=0)
    ] = 20.0,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Forget an earlier run in this folder.")] = False,
) -> None:
    """Train a 2.5-D U-Net on a slice store, split by patient; the same command again goes on after a kill.

    slicemill train lits-store/ runs/first --epochs 100
    slicemill train lits-store/ runs/quick --width 16 --max-minutes 25
    """
    with report_errors():
        from slicemill.common.remote import RemotePath
        from slicemill.store.cache import SliceCache
        from slicemill.train.config import Config, read_config
        from slicemill.train.loop import train as fit

        settings = (read_config(config) if config else Config()).changed(
            context=context, context_spacing_mm=context_spacing_mm, size=size, crop=crop, spacing_mm=spacing_mm,
            width=width, batch=None if batch is None else slices_a_step(batch), epochs=epochs, steps=steps, max_minutes=max_minutes,
            learning_rate=learning_rate, tumor_share=tumor_share, augment=augment, seed=seed, device=device, precision=precision,
        )  # fmt: skip
        place = parse_location(store)
        cache = SliceCache(cache_dir, round(cache_gb * 1e9)) if isinstance(place, RemotePath) else None
        fit(place, run, settings, split_file=split, cache=cache, overwrite=overwrite, tell=print_line)


def slices_a_step(text: str) -> int:
    """Return the setting `batch` for what stands on the command line.

    Raises
    ------
    UsageError
        It is neither a number nor auto.
    """
    if text == "auto":
        return 0
    if not text.isdecimal() or int(text) < 1:
        raise UsageError(f"--batch {text}: must be a number of slices, or auto.")
    return int(text)


def size_from(text: str) -> tuple[int, int]:
    """Return height and width for what stands on the command line.

    Raises
    ------
    UsageError
        It is no size.

    >>> size_from("256x192"), size_from("512")
    ((256, 192), (512, 512))
    """
    height, _, width = text.partition("x")
    sides = [height, width or height]
    if not all(side.isdecimal() and len(side) < 6 and int(side) for side in sides):
        raise UsageError(f"--size {text}: expected HEIGHTxWIDTH in pixels, like 256x256.")
    return int(sides[0]), int(sides[1])


def split(
    store: Annotated[str, typer.Argument(help="Slice store with masks.")],
    out: Annotated[Path, typer.Argument(help="Folder for fold-0.json, fold-1.json, ...")],
    folds: Annotated[int, typer.Option(help="How many.", min=2)] = 5,
    validation: Annotated[
        float, typer.Option(callback=require_finite, help="Share of the patients that choose the checkpoint.")
    ] = 0.15,
    seed: Annotated[int, typer.Option(help="The same seed gives the same folds.", min=0)] = 0,
) -> None:
    """Write splits for cross-validation: by patient, each in the test part of one fold, tumor burdens evenly dealt out.

        slicemill split lits-store/ folds/ --folds 5
        slicemill train lits-store/ runs/fold-0 --split folds/fold-0.json

    The files hold the case ids of train, validation and test; other tools can read them, too.
    """
    with report_errors():
        from slicemill.store.split import write_split
        from slicemill.store.tables import read_table
        from slicemill.train.split import make_folds

        if not 0 < validation < 1:
            raise UsageError(f"--validation {validation}: a share lies between 0 and 1.")
        for fold, parts in enumerate(
            make_folds(read_table(store, "manifest"), folds=folds, validation=validation, seed=seed)
        ):
            write_split(out / f"fold-{fold}.json", parts)
            print_line(
                f"{out / f'fold-{fold}.json'}: {len(parts.train)} train, {len(parts.validation)} validation, {len(parts.test)} test"
            )


def gallery(
    store: Annotated[str, typer.Argument(help="Slice store with masks.")],
    out: Annotated[Path, typer.Option(help="PNG to write.")] = Path("gallery.png"),
    config: Annotated[Path | None, typer.Option(help="Settings as TOML.")] = None,
    augment: Annotated[float | None, typer.Option(callback=require_finite, help="Strength, 0 to 1.")] = None,
    seed: Annotated[int | None, typer.Option(help="Of the random changes.")] = None,
) -> None:
    """Draw what each kind of random change of training does to slices of a store, one by one and all together.

    slicemill gallery lits-store/ --augment 1
    """
    with report_errors():
        from slicemill.ct.pictures import save_png
        from slicemill.store.reader import open_store
        from slicemill.train.config import Config, read_config
        from slicemill.train.report.gallery import gallery as draw

        settings = (read_config(config) if config else Config()).changed(augment=augment, seed=seed)
        save_png(out, draw(open_store(store), settings))
        print_line(f"gallery: {out}")


def export(
    run: Annotated[Path, typer.Argument(help="Folder of a training run.")],
    model: Annotated[Path, typer.Argument(help="ONNX file to write.")],
    store: Annotated[
        Path | None, typer.Option(help="Store for the proof of parity, when the one of the training was moved.")
    ] = None,
    min_lesion_ml: Annotated[
        float,
        typer.Option(
            callback=require_finite,
            help="Tumors smaller than this are removed after inference; in the model's metadata.",
            min=0,
        ),
    ] = 0.0,
    fp16: Annotated[bool, typer.Option("--fp16", help="Also NAME.fp16.onnx, for GPUs.")] = False,
    bytes_in: Annotated[
        bool, typer.Option("--bytes", help="Also NAME.bytes.fp16.onnx, for TensorRT, which has no int16.")
    ] = False,
    probability: Annotated[
        bool,
        typer.Option(
            "--probability", help="Also an output with the probability of every class; costs time in every run."
        ),
    ] = False,
    size: Annotated[
        str | None,
        typer.Option(help="HEIGHTxWIDTH of the slices that the file takes, like 256x256; else those of the training."),
    ] = None,
    check: Annotated[
        bool, typer.Option("--check", help="Write nothing: prove the files that are there, and say what is in them.")
    ] = False,
) -> None:
    """Write the best network of a run as ONNX: int16 HU in, uint8 labels out, everything inside, in one file.

    A file appears only after onnxruntime gave the same labels as torch on slices of the validation cases.

        slicemill export runs/first liver.onnx
        slicemill export runs/first liver.onnx --fp16 --bytes
        slicemill export runs/first liver-256.onnx --size 256x256
        slicemill export runs/first liver.onnx --check
    """
    with report_errors():
        from dataclasses import replace

        from slicemill.train.export.audit import gflop_a_slice
        from slicemill.train.export.model_file import FLAVORS
        from slicemill.train.export.model_file import check as prove
        from slicemill.train.export.model_file import export as write

        if model.suffix != ".onnx":
            raise UsageError(f"{model}: a model's name ends in .onnx.")
        if check and size:
            raise UsageError("--check takes the size from the file; leave --size out.")
        print_line("proving labels against torch's on slices of the validation cases")
        if check:
            proofs = prove(run, model, store_path=store)
        else:
            wanted = [FLAVORS[0], *FLAVORS[1 : 1 + fp16], *FLAVORS[2 : 2 + bytes_in]]
            chosen = [replace(flavor, probability=probability) for flavor in wanted]
            sides = size_from(size) if size else None
            written = write(run, model, flavors=chosen, store_path=store, min_lesion_ml=min_lesion_ml, size=sides)
            proofs = {path: card.parity or {} for path, card in written.items()}
        for path, parity in proofs.items():
            print_line(
                f"{path}: {path.stat().st_size / 1e6:.1f} MB, {gflop_a_slice(path):.1f} GFLOP a slice; "
                f"{parity['labels_differing']} of {parity['pixels']:,} label pixels differ on {parity['slices']} slices "
                f"(limit {parity['limit']:g}; {parity['ties']} ties apart), probabilities by at most "
                f"{parity['max_probability_difference']:.2g}; onnx checker: fine"
            )
            if ".bytes." in path.name:
                print_line(
                    f"{path}: breaks none of TensorRT's rules on types that a graph shows (it has not run there)"
                )
