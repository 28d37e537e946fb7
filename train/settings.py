"""The settings of training as keyword arguments of `slicemill.train_network`; `Config` explains them."""

from typing import Literal, TypedDict

Recipe = Literal["nodules"]
"""Named sets of settings (`slicemill.train.config.RECIPES`)."""


class TrainSettings(TypedDict, total=False):
    """The fields of `slicemill.train.config.Config`; a test compares them."""

    context: int
    context_spacing_mm: float
    size: int
    crop: int
    spacing_mm: float
    width: int
    depth: int
    stem: int
    window_low: float
    window_high: float
    batch: int
    epochs: int
    steps: int
    max_minutes: float
    save_minutes: float
    patience: int
    optimizer: Literal["muon", "adamw", "sgd"]
    decay: Literal["cosine", "poly"]
    norm: Literal["batch", "instance"]
    deep_supervision: bool
    learning_rate: float
    weight_decay: float
    averaging: float
    tumor_share: float
    organ_share: float
    hard_share: float
    mining: int
    lesion_balance: float
    tumor_weight: float
    ignore: str
    oblique: int
    augment: float
    augmentations: tuple[str, ...] | str
    validation: float
    test: float
    loader_threads: int
    seed: int
    device: str
    precision: Literal["auto", "fp32", "bf16", "fp16"]
    compile: bool
