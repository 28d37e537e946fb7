"""Labels of predictions and references, and checks that they are compatible."""

from collections.abc import Sequence

from slicemill.common.errors import LabelError
from slicemill.ct.labels import IGNORE, Labels, format_labels
from slicemill.ct.mask_files import name_labels
from slicemill.measure.inputs.infer_output import read_report
from slicemill.measure.inputs.pairs import Pair, StoredMask
from slicemill.store.reader import Case


def find_labels(pairs: Sequence[Pair]) -> Labels | None:
    """Return the labels of the predictions, or else of the reference store; None if neither defines labels.

    If all masks are DICOM SEG or RTSTRUCT, the names of their segments and structures are the labels.

    The predictions' labels are used only if every prediction has a report or is in a store.

    Raises
    ------
    LabelError
        The predictions have different labels, or labels that differ from those of the references' store.
    """
    predicted = [_prediction_labels(pair) for pair in pairs]
    known = [labels for labels in predicted if labels is not None]
    if not known or len(known) < len(predicted):
        of_references = next((labels for pair in pairs if (labels := _reference_labels(pair)) is not None), None)
        return of_references or _segment_names(pairs)
    if any(labels != known[0] for labels in known):
        raise LabelError(
            "the predictions are from models with different labels; evaluate one model at a time, or pass --labels."
        )
    for pair in pairs:
        stored = _reference_labels(pair)
        if stored is not None and not are_compatible(known[0], stored):
            raise LabelError(
                f"{pair.name}: {_source(pair)} names the labels {_describe(known[0])}, and its reference in the store "
                f"{_describe(stored)}; the labels must be equal. Ingest the references with the model's labels, "
                "or pass --labels that are correct for both."
            )
    return known[0]


def _segment_names(pairs: Sequence[Pair]) -> Labels | None:
    """Return labels with the names of segments, if all masks are DICOM SEG or RTSTRUCT."""
    paths = []
    for pair in pairs:
        if pair.stored is not None or isinstance(pair.reference.mask, StoredMask):
            return None
        paths += [pair.reference.mask.path, pair.prediction]
    return name_labels(paths)


def split_ignored(labels: Labels, pairs: Sequence[Pair]) -> tuple[Labels, int | None]:
    """Return the labels that are scored, and the value of the references' voxels that are left out (`IGNORE`).

    The value is that of the labels, or else that of the references' store; None if neither has it.

    Raises
    ------
    LabelError
        No other label is left, or the value has another name in the references' store.
    """
    if IGNORE in labels.values:
        return labels.without(IGNORE), labels.values[IGNORE]
    stored = {found.values[IGNORE] for pair in pairs if (found := _reference_labels(pair)) and IGNORE in found.values}
    value = stored.pop() if stored else None
    if value in labels.values.values():
        raise LabelError(
            f"the references' store calls the value {value} {IGNORE}, but the scored labels are "
            f"{format_labels(labels.values)}; pass --labels that are correct for both."
        )
    return labels, value


def check_same_labels(pairs: Sequence[Pair], labels: Labels) -> None:
    """Check that the labels of the predictions do not contradict those of the other run.

    Raises
    ------
    LabelError
        The labels of a prediction contradict them.
    """
    for pair in pairs:
        own = _prediction_labels(pair)
        if own is not None and not are_compatible(labels, own):
            raise LabelError(
                f"{pair.prediction}: {_source(pair)} names the labels {_describe(own)}, and the other run "
                f"{_describe(labels)}; the labels must be equal. Compare runs with the same labels, "
                "or pass --labels that are correct for both."
            )


def check_stored_names(case: Case, labels: Labels) -> None:
    """Check that no name of the labels has another value in a stored case.

    Raises
    ------
    LabelError
        One has.
    """
    stored = case.info.labels.values if case.info.labels else {}
    for name, value in labels.values.items():
        if stored.get(name, value) != value:
            raise LabelError(
                f"its store has {name}={stored[name]}, but the labels say {name}={value}. "
                f"Pass labels that are correct for the store: {format_labels(stored)}.",
                where=case.info.case_id,
            )


def are_compatible(labels: Labels, others: Labels) -> bool:
    """Return whether two sets of labels agree in shared names and values, and in organ and tumor.

    >>> full, swapped = Labels({"liver": 1, "tumor": 2}), Labels({"tumor": 1})
    >>> are_compatible(full, Labels({"liver": 1})), are_compatible(full, swapped)
    (True, False)
    """
    contradict = any(
        (name == other_name) != (value == other_value)
        for name, value in labels.values.items()
        for other_name, other_value in others.values.items()
    )
    roles = (labels.organ, others.organ), (labels.tumor, others.tumor)
    return not contradict and all(one is None or other is None or one == other for one, other in roles)


def _prediction_labels(pair: Pair) -> Labels | None:
    if pair.stored is not None:
        return pair.stored.case.info.labels
    report = read_report(pair.prediction)
    return report.read_labels() if report else None


def _reference_labels(pair: Pair) -> Labels | None:
    mask = pair.reference.mask
    return mask.case.info.labels if isinstance(mask, StoredMask) else None


def _describe(labels: Labels) -> str:
    return f"{format_labels(labels.values)} (organ {labels.organ or '-'}, tumor {labels.tumor or '-'})"


def _source(pair: Pair) -> str:
    return "its report" if pair.stored is None else "its store"
