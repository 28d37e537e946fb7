"""An opened model of kind `crops`: its card, and a session that turns crops into probabilities."""

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from slicemill.common.errors import ModelError
from slicemill.ct.crops import SIDE
from slicemill.infer.network.external_weights import read_weights_beside
from slicemill.infer.network.model import check_ends
from slicemill.infer.runtime.providers import Provider, make_session
from slicemill.store.crop_card import INPUT, MALIGNANCY, NODULE, CropCard, decode_crop_metadata
from slicemill.store.model_card import METADATA_KEY

BATCH = 64
"""Crops in a batch: 14 MB of input."""
Floats = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class CropScores:
    """Probabilities of crops, 0 to 1."""

    nodule: Floats
    """float32[n]."""
    malignancy: Floats | None
    """float32[n], given a nodule; None if the model does not output it."""


class Classifier:
    """A session and the card of its file; safe to use from several threads."""

    def __init__(self, path: Path, content: bytes, provider: Provider, device: int = 0) -> None:
        self.path = path
        self.sha256 = hashlib.sha256(content).hexdigest()
        self._session, self.provider, _ = make_session(content, path, provider, device)
        self.card, self.gives_malignancy = read_crop_card(self._session, path)

    def run(self, crops: npt.NDArray[np.int16]) -> CropScores:
        """Return the probabilities of crops int16[n, 48, 48, 48], HU, in batches of BATCH.

        Raises
        ------
        ModelError
            A probability is not between 0 and 1.
        """
        names = [NODULE, *([MALIGNANCY] if self.gives_malignancy else [])]
        parts = [
            self._session.run(names, {INPUT: crops[first : first + BATCH]}) for first in range(0, len(crops), BATCH)
        ]
        columns = [
            np.concatenate([np.zeros(0, np.float32), *(part[index] for part in parts)]) for index in range(len(names))
        ]
        for name, column in zip(names, columns, strict=True):
            if column.shape != (len(crops),) or not ((column >= 0) & (column <= 1)).all():
                raise ModelError(f"its output {name} has values that are no probabilities.", where=self.path)
        return CropScores(columns[0], columns[1] if self.gives_malignancy else None)


def open_classifier(path: Path, provider: Provider = "auto", device: int = 0) -> Classifier:
    """Open a model of kind `crops`.

    Raises
    ------
    ModelError
        The file cannot be read, or it is of another kind or contract.
    ProviderError
        The provider does not run here.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise ModelError(f"cannot be read: {error.strerror}.", where=path) from error
    content = read_weights_beside(content, path)
    check_ends(content, path)
    return Classifier(path, content, provider, device)


def read_crop_card(session: Any, path: Path) -> tuple[CropCard, bool]:
    """Read the metadata of a session, check that its graph fits, and return whether it has the output `malignancy`.

    Raises
    ------
    ModelError
        It is not a model of kind `crops`, or its graph does not fit the contract.
    """
    try:
        text = session.get_modelmeta().custom_metadata_map.get(METADATA_KEY)
        inputs = {entry.name: entry for entry in session.get_inputs()}
        outputs = {entry.name: entry.type for entry in session.get_outputs()}
    except UnicodeDecodeError as error:
        raise ModelError(f"has a text that is not UTF-8 ({error}); export it again.", where=path) from error
    if text is None:
        raise ModelError("has no slicemill metadata; make the classifier with `slicemill export`.", where=path)
    card = decode_crop_metadata(text, str(path))
    crop = inputs.get(INPUT)
    if (
        crop is None
        or len(inputs) != 1
        or crop.type != "tensor(int16)"
        or list(crop.shape)[1:] != [SIDE] * 3
        or isinstance(crop.shape[0], int)
        or not {NODULE} <= outputs.keys() <= {NODULE, MALIGNANCY}
        or set(outputs.values()) != {"tensor(float)"}
    ):
        shown = {name: (entry.type, entry.shape) for name, entry in inputs.items()}
        raise ModelError(
            f"its inputs {shown} and outputs {outputs} do not fit the contract: {INPUT} int16[n, {SIDE}, {SIDE}, "
            f"{SIDE}], {NODULE} float32[n], optional {MALIGNANCY}. Export it again.",
            where=path,
        )
    return card, MALIGNANCY in outputs
