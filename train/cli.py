"""The commands `slicemill train` and `slicemill export`."""

from pathlib import Path
from typing import Annotated

import typer

from store.errors import ConfigError
from store.files import local_path
from store.screen import errors_shown, say


def train(
    store: Annotated[str, typer.Argument(help="Slice store with masks.")],
    run: Annotated[Path, typer.Argument(help="Folder of the run, made or gone on with.")],
    config: Annotated[Path | None, typer.Option(help="Settings as TOML; options on the command line go first.")] = None,
    split: Annotated[
        Path | None,
        typer.Option(help="JSON with the case ids of train, validation and test, instead of a random split."),
    ] = None,
    context: Annotated[int | None, typer.Option(help="Slices seen around the one to label: 1, 3, 5 or 7.")] = None,
    size: Annotated[
        int | None, typer.Option(help="Side to which slices are padded or cropped; 0 is the largest slice.")
    ] = None,
    width: Annotated[int | None, typer.Option(help="Channels of the first level.")] = None,
    batch: Annotated[int | None, typer.Option(help="Slices per step.")] = None,
    epochs: Annotated[int | None, typer.Option(help="Epochs.")] = None,
    steps: Annotated[
        int | None, typer.Option(help="Steps per epoch; 0 is as many slices as the training part has.")
    ] = None,
    max_minutes: Annotated[
        float | None, typer.Option(help="End after so many minutes of training; 0 is no limit.")
    ] = None,
    learning_rate: Annotated[float | None, typer.Option(help="Highest learning rate.")] = None,
    tumor_share: Annotated[float | None, typer.Option(help="Share of the drawn slices that hold tumor.")] = None,
    augment: Annotated[
        float | None, typer.Option(help="Strength of mirroring, turning, scaling, shading and noise, 0 to 1.")
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Of the split, the draws and the weights.")] = None,
    device: Annotated[str | None, typer.Option(help="auto, cpu, cuda or cuda:N.")] = None,
    precision: Annotated[str | None, typer.Option(help="auto, fp32 or bf16.")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Forget an earlier run in this folder.")] = False,
) -> None:
    """Train a 2.5-D U-Net on a slice store, split by patient; the same command again goes on after a kill.

    slicemill train lits-store/ runs/first --epochs 100
    slicemill train lits-store/ runs/quick --width 16 --max-minutes 25
    """
    with errors_shown():
        from store.reader import open_store
        from train.config import Config, read_config
        from train.loop import train as fit
        from train.setup import CURVES, METRICS, SPLIT, common_labels, remove_run

        settings = (read_config(config) if config else Config()).changed(
            context=context, size=size, width=width, batch=batch, epochs=epochs, steps=steps, max_minutes=max_minutes,
            learning_rate=learning_rate, tumor_share=tumor_share, augment=augment, seed=seed, device=device, precision=precision,
        )  # fmt: skip
        place = local_path(store)
        if overwrite:
            common_labels(open_store(place))
            remove_run(run)
        state = fit(place, run, settings, split_file=split, tell=say)
        say(
            f"best: epoch {state.best_epoch} of {state.epoch}, mean Dice {state.best_score:.3f} on validation, {state.seconds / 60:.1f} minutes"
        )
        say(f"curves: {run / CURVES}, {run / METRICS}; split: {run / SPLIT}; or `tensorboard --logdir {run}`")


def export(
    run: Annotated[Path, typer.Argument(help="Folder of a training run.")],
    model: Annotated[Path, typer.Argument(help="ONNX file to write.")],
    store: Annotated[
        Path | None, typer.Option(help="Store for the proof of parity, when the one of the training was moved.")
    ] = None,
    min_lesion_ml: Annotated[
        float,
        typer.Option(help="Tumors smaller than this are removed after inference; in the model's metadata.", min=0),
    ] = 0.0,
) -> None:
    """Write the best network of a run as one ONNX file: int16 HU in, uint8 labels out, everything inside.

    The file appears only after onnxruntime gave the same labels as torch on slices of the validation cases.

        slicemill export runs/first liver.onnx
    """
    with errors_shown():
        from train.export import export as write

        if model.suffix != ".onnx":
            raise ConfigError(f"{model}: a model's name ends in .onnx.")
        say("building the graph, and proving its labels against torch's on slices of the validation cases")
        metadata = write(run, model, store_path=store, min_lesion_ml=min_lesion_ml)
        parity = metadata["parity"]
        say(
            f"parity: {parity['labels_differing']} of {parity['pixels']:,} label pixels differ on {parity['slices']} slices "
            f"(limit {parity['limit']:g}), probabilities by at most {parity['max_probability_difference']:.2g}"
        )
        say(
            f"model: {model} ({model.stat().st_size / 1e6:.1f} MB), labels {metadata['labels']}, context {metadata['context']}"
        )
