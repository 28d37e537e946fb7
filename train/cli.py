"""The commands `slicemill train` and `slicemill export`."""

import os
from pathlib import Path
from typing import Annotated, Literal

import typer

from slicemill.common.errors import UsageError
from slicemill.common.files import parse_location
from slicemill.common.options import MACHINE, NETWORK, OUTPUT, RERUN, require_finite
from slicemill.common.terminal import print_line, print_lines
from slicemill.train.option_values import parse_batch, parse_size, print_config
from slicemill.train.settings import Recipe

SLICES, TRAINING, CROPS = "Slices", "Training", "Classifier of candidates"
"""Panels of the options in --help."""
CACHE_GB = 20.0
WAITING_THREADS = {"OMP_WAIT_POLICY": "passive", "GOMP_SPINCOUNT": "10000"}
"""Variables that OpenMP reads when torch is loaded: its threads spin for a moment while they wait for each other, then
sleep. A step of width 8 with 16 crops of 64 pixels takes 0.11 s on two cores, as with threads that always
spin, and 0.21 s if they sleep at once. Threads that spin long take the core that another one needs: beside ten busy
processes, the step takes 1.7 s, 19 s if they spin ten times as long, and 1.1 s if they sleep at once. The results are
the same."""


def train(
    store: Annotated[str, typer.Argument(help="Slice store with masks.")],
    run: Annotated[Path, typer.Argument(help="Folder of the run; a run that is already in it is continued.")],
    config: Annotated[
        Path | None, typer.Option(help="Settings as TOML; options of the command line override them.")
    ] = None,
    recipe: Annotated[
        Recipe | None,
        typer.Option(
            is_eager=True,  # --show-config shows its settings
            help="Settings that --config and options change; nodules: nodules in the lung, ingested with --points.",
        ),
    ] = None,
    split: Annotated[
        Path | None,
        typer.Option(help="JSON with the case ids of train, validation and test, instead of a random split."),
    ] = None,
    context: Annotated[
        int | None,
        typer.Option(
            show_default="3",
            help="Slices in the input: 1, 3, 5 or 7; the middle one is labeled.",
            rich_help_panel=SLICES,
        ),
    ] = None,
    context_spacing_mm: Annotated[
        float | None,
        typer.Option(
            callback=require_finite,
            show_default="0",
            help="Distance between these slices in mm; 0 uses adjacent slices.",
            rich_help_panel=SLICES,
        ),
    ] = None,
    spacing_mm: Annotated[
        float | None,
        typer.Option(
            callback=require_finite,
            show_default="0",
            help="In-plane pixel size that slices are resampled to, mm; 0 keeps that of the scan.",
            rich_help_panel=SLICES,
        ),
    ] = None,
    crop: Annotated[
        int | None,
        typer.Option(show_default="0", help="Side of training crops; 0 trains on full slices.", rich_help_panel=SLICES),
    ] = None,
    size: Annotated[
        int | None,
        typer.Option(
            show_default="0",
            help="Side to which slices are padded or cropped; 0 is the largest slice.",
            rich_help_panel=SLICES,
        ),
    ] = None,
    width: Annotated[
        int | None, typer.Option(show_default="16", help="Channels of the first level.", rich_help_panel=NETWORK)
    ] = None,
    batch: Annotated[
        str | None,
        typer.Option(
            show_default="16",
            help="Slices per step, over all processes; auto uses as many as fit into the GPU's memory.",
            rich_help_panel=TRAINING,
        ),
    ] = None,
    epochs: Annotated[int | None, typer.Option(show_default="40", help="Number of epochs.")] = None,
    steps: Annotated[
        int | None,
        typer.Option(
            show_default="0",
            help="Steps per epoch; 0 makes an epoch as long as the number of training slices.",
            rich_help_panel=TRAINING,
        ),
    ] = None,
    max_minutes: Annotated[
        float | None,
        typer.Option(
            callback=require_finite, show_default="0", help="Time limit of training in minutes; 0 means no limit."
        ),
    ] = None,
    learning_rate: Annotated[
        float | None,
        typer.Option(
            callback=require_finite, show_default="0.002", help="Highest learning rate.", rich_help_panel=TRAINING
        ),
    ] = None,
    tumor_share: Annotated[
        float | None,
        typer.Option(
            callback=require_finite,
            show_default="0.5",
            help="Share of the training slices that contain tumor.",
            rich_help_panel=TRAINING,
        ),
    ] = None,
    augment: Annotated[
        float | None,
        typer.Option(
            callback=require_finite,
            show_default="0.4",
            help="Strength of the augmentation, 0 to 1.",
            rich_help_panel=TRAINING,
        ),
    ] = None,
    seed: Annotated[
        int | None,
        typer.Option(
            show_default="0", help="Seed of the split, the sampling and the weights.", rich_help_panel=TRAINING
        ),
    ] = None,
    device: Annotated[str | None, typer.Option(show_default="auto", help="auto, cpu, cuda or cuda:N.")] = None,
    precision: Annotated[
        Literal["auto", "fp32", "bf16", "fp16"] | None,
        typer.Option(show_default="auto", help="Number format of the network.", rich_help_panel=MACHINE),
    ] = None,
    cache_dir: Annotated[
        Path | None,
        typer.Option(
            help="Cache for slices of a store in a bucket; by default a temporary folder.", rich_help_panel=MACHINE
        ),
    ] = None,
    cache_gb: Annotated[
        float, typer.Option(callback=require_finite, help="Size of this cache, GB.", min=0, rich_help_panel=MACHINE)
    ] = CACHE_GB,
    crops: Annotated[
        bool,
        typer.Option(
            "--crops",
            is_eager=True,  # --show-config shows its settings
            rich_help_panel=CROPS,
            help="Train a classifier on cubes around the store's points and candidates: nodule or not.",
        ),
    ] = False,
    malignancy: Annotated[
        bool, typer.Option("--malignancy", rich_help_panel=CROPS, help="Add malignant or not to the run of --from.")
    ] = False,
    base: Annotated[
        Path | None,
        typer.Option("--from", rich_help_panel=CROPS, help="Run of --crops with which --malignancy starts."),
    ] = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", rich_help_panel=RERUN, help="Remove an earlier run in this folder.")
    ] = False,
    _show_config: Annotated[
        bool,
        typer.Option(
            "--show-config",
            help="Print all settings as TOML for --config, by default or of --recipe or --crops, and exit.",
            callback=print_config,
        ),
    ] = False,
) -> None:
    """Train a 2.5-D U-Net on a slice store, split by patient. After a kill, the same command continues.

    slicemill train lits-store/ runs/first --epochs 100
    slicemill train lits-store/ runs/quick --width 16 --max-minutes 25
    slicemill train luna-store/ runs/nodules --recipe nodules
    slicemill train luna-store/ runs/nodules --crops
    slicemill train luna-store/ runs/malignancy --crops --malignancy --from runs/nodules
    """
    for name, value in WAITING_THREADS.items():
        os.putenv(name, value)
    if crops or malignancy or base is not None:
        if not crops:
            raise UsageError("--malignancy and --from: apply to --crops; add --crops.")
        from slicemill.train.crops.request import CropRequest, refuse_slice_options

        refuse_slice_options({
            "recipe": recipe, "context": context, "context_spacing_mm": context_spacing_mm, "spacing_mm": spacing_mm,
            "crop": crop, "size": size, "width": width, "steps": steps, "tumor_share": tumor_share, "augment": augment,
            "precision": precision, "cache_dir": cache_dir, "cache_gb": None if cache_gb == CACHE_GB else cache_gb,
        })  # fmt: skip
        request = CropRequest(
            store=parse_location(store), run=run, config=config, split=split,
            malignancy=malignancy, base=base, overwrite=overwrite,
        )  # fmt: skip
        request.train(
            {
                "batch": None if batch is None else parse_batch(batch, auto=False),
                "epochs": epochs, "max_minutes": max_minutes, "learning_rate": learning_rate, "seed": seed,
                "device": device,
            },
            print_lines,
        )  # fmt: skip
        return
    from slicemill.common.remote import RemotePath
    from slicemill.store.cache import SliceCache
    from slicemill.train.config import make_config, read_config
    from slicemill.train.loop import train as fit

    defaults = make_config(recipe)
    settings = (read_config(config, defaults) if config else defaults).replace(
        context=context, context_spacing_mm=context_spacing_mm, size=size, crop=crop, spacing_mm=spacing_mm,
        width=width, batch=None if batch is None else parse_batch(batch), epochs=epochs, steps=steps,
        max_minutes=max_minutes, learning_rate=learning_rate, tumor_share=tumor_share, augment=augment, seed=seed,
        device=device, precision=precision,
    )  # fmt: skip
    location = parse_location(store)
    cache = SliceCache(cache_dir, round(cache_gb * 1e9)) if isinstance(location, RemotePath) else None
    fit(location, run, settings, split_file=split, cache=cache, overwrite=overwrite, log=print_lines)


def gallery(
    store: Annotated[str, typer.Argument(help="Slice store with masks.")],
    out: Annotated[Path, typer.Option(help="PNG to write.")] = Path("gallery.png"),
    config: Annotated[Path | None, typer.Option(help="Settings as TOML.")] = None,
    augment: Annotated[float | None, typer.Option(callback=require_finite, help="Strength, 0 to 1.")] = None,
    seed: Annotated[int | None, typer.Option(help="Seed of the augmentation.")] = None,
) -> None:
    """Draw the augmentation of training on slices of a store, each kind alone and all combined.

    slicemill gallery lits-store/ --augment 1
    """
    from slicemill.ct.pictures import save_png
    from slicemill.store.reader import open_store
    from slicemill.train.config import Config, read_config
    from slicemill.train.report.gallery import draw_gallery

    settings = (read_config(config) if config else Config()).replace(augment=augment, seed=seed)
    save_png(out, draw_gallery(open_store(store), settings))
    print_line(f"gallery: {out}")


def export(
    run: Annotated[Path, typer.Argument(help="Folder of a training run.")],
    model: Annotated[Path, typer.Argument(help="ONNX file to write.")],
    store: Annotated[
        Path | None,
        typer.Option(
            rich_help_panel="Parity check", help="Store for the parity check; by default the store of the training run."
        ),
    ] = None,
    min_lesion_ml: Annotated[
        float,
        typer.Option(
            callback=require_finite,
            rich_help_panel=OUTPUT,
            help="Tumors smaller than this are removed after inference; written to the model's metadata.",
            min=0,
        ),
    ] = 0.0,
    fp16: Annotated[
        bool, typer.Option("--fp16", rich_help_panel=OUTPUT, help="Also write NAME.fp16.onnx, for GPUs.")
    ] = False,
    bytes_in: Annotated[
        bool,
        typer.Option(
            "--bytes",
            rich_help_panel=OUTPUT,
            help="Also write NAME.bytes.fp16.onnx, for TensorRT, which does not support int16.",
        ),
    ] = False,
    probability: Annotated[
        bool,
        typer.Option(
            "--probability",
            rich_help_panel=OUTPUT,
            help="Add an output with the probability of each class; inference gets slower.",
        ),
    ] = False,
    size: Annotated[
        str | None,
        typer.Option(
            rich_help_panel=OUTPUT,
            help="HEIGHTxWIDTH of the input slices, like 256x256; by default the size of the training slices.",
        ),
    ] = None,
    segmentation: Annotated[
        Path | None,
        typer.Option(
            rich_help_panel=CROPS,
            help="Segmentation model whose candidates the classifier was trained on; NAME.nodules holds both models.",
        ),
    ] = None,
    mirror: Annotated[
        bool,
        typer.Option(
            "--mirror",
            rich_help_panel=CROPS,
            help="These candidates were found with infer --mirror; runs with the classifier then mirror, too.",
        ),
    ] = False,
    check: Annotated[
        bool,
        typer.Option(
            "--check", rich_help_panel="Parity check", help="Write nothing; repeat the parity check of existing files."
        ),
    ] = False,
) -> None:
    """Write the best network of a run as one ONNX file, from int16 HU to uint8 labels.

    Files are written only if onnxruntime and torch compute the same labels on slices of the validation cases.

        slicemill export runs/first liver.onnx
        slicemill export runs/first liver.onnx --fp16 --bytes
        slicemill export runs/first liver-256.onnx --size 256x256
        slicemill export runs/first liver.onnx --check
        slicemill export runs/nodules classifier.onnx --segmentation lung.onnx
    """
    from slicemill.train.crops.folder import is_crop_run

    if is_crop_run(run):
        from slicemill.train.crops.request import refuse_slice_options
        from slicemill.train.export.crop_request import CropExportRequest

        options = {"min_lesion_ml": min_lesion_ml, "fp16": fp16, "bytes": bytes_in, "probability": probability}
        refuse_slice_options({name: one or None for name, one in {**options, "size": size}.items()})
        request_of_crops = CropExportRequest(
            run=run, model=model, store=store, segmentation=segmentation, mirror=mirror
        )
        print_line("comparing the probabilities of onnxruntime and torch on crops of the validation cases")
        parity_of_crops = request_of_crops.check() if check else request_of_crops.write(print_line).parity
        print_line(request_of_crops.describe(parity_of_crops))
        return
    for name, given in (("--segmentation", segmentation is not None), ("--mirror", mirror)):
        if given:
            raise UsageError(f"{name}: applies to a run of `slicemill train --crops`. Remove it.")
    from slicemill.train.export.audit import gflop_a_slice
    from slicemill.train.export.request import ExportRequest

    if check and size:
        raise UsageError("--check takes the size from the file; remove --size.")
    request = ExportRequest(
        run=run,
        model=model,
        store=store,
        min_lesion_ml=min_lesion_ml,
        fp16=fp16,
        bytes_in=bytes_in,
        probability=probability,
        size=parse_size(size) if size else None,
    )
    print_line("comparing the labels of onnxruntime and torch on slices of the validation cases")
    parities = request.check() if check else {path: card.parity or {} for path, card in request.write().items()}
    for path, parity in parities.items():
        print_line(
            f"{path}: {path.stat().st_size / 1e6:.1f} MB, {gflop_a_slice(path):.1f} GFLOP a slice; "
            f"{parity['labels_differing']} of {parity['pixels']:,} label pixels differ on "
            f"{parity['slices']} slices (limit {parity['limit']:g}; {parity['ties']} ties not counted), "
            f"probabilities by at most {parity['max_probability_difference']:.2g}; onnx checker: passed"
        )
        if ".bytes." in path.name:
            print_line(f"{path}: passes the static TensorRT checks; not run in TensorRT")
