"""Collections of two patterns, the options --image and --mask."""

import os
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

from slicemill.common.errors import PairingError
from slicemill.common.left_out import LeftOut
from slicemill.common.terminal import count_noun
from slicemill.ingest.case_ids import join_path, separate_case_ids
from slicemill.ingest.discover import CaseFiles, Collection, make_collection
from slicemill.ingest.globs import Texts, match_pattern


def from_patterns(images: str, masks: str | None, *, with_labels: bool = True) -> Collection:
    """Pair the files of two patterns by the text that the wildcards match: ``ct/*_ct.nii.gz``, ``seg/*_liver.nii.gz``.

    This text is the case id, too. If one pattern has fewer wildcards, only its number of first texts is compared:
    ``*/P*_ct.nii`` and ``*/GT.nii``. `with_labels` tells whether the labels of a ``dataset.json`` are read.

    Raises
    ------
    UsageError
        A pattern has no ``*``, or is a URL.
    PairingError
        A pattern matches nothing, two files match with the same text, or no or few masks pair.
    """
    image_of, mask_of = match_pattern(images), match_pattern(masks) if masks else {}
    image_of, mask_of = _shorten(images, image_of, masks or "", mask_of)
    root = Path(os.path.commonpath([path.parent.absolute() for path in (*image_of.values(), *mask_of.values())]))
    relative = {key: path.absolute().relative_to(root).as_posix() for key, path in image_of.items()}
    longer = {relative[key]: join_path(relative[key], _join(key)) for key in image_of}
    ids, notes = separate_case_ids({relative[key]: _join(key) for key in image_of}, longer)
    cases = []
    for key, image in image_of.items():
        case_id, mask = ids[relative[key]], mask_of.get(key)
        cases.append(
            CaseFiles(
                case_id=case_id, patient_id=case_id, image=image.absolute(), mask=mask and mask.absolute(), root=root
            )
        )
    alone = {key: path for key, path in mask_of.items() if key not in image_of}
    if masks:
        _check_pairs(images, masks, image_of, mask_of)
    left_out = [LeftOut(path, f"no image of {images} matches with {'/'.join(key)!r}") for key, path in alone.items()]
    return make_collection(cases, root, left_out, notes, with_labels=with_labels)


def _join(key: Texts) -> str:
    """Return a case id made of the texts of the wildcards; a text that only repeats the one before counts once.

    >>> _join(("Patient_01", "Patient_01")), _join(("site/a", "7"))
    ('Patient_01', 'site_a_7')
    """
    texts = [text.replace("/", "_") for text in key if text]
    return "_".join(text for index, text in enumerate(texts) if index == 0 or text != texts[index - 1])


def _shorten(
    images: str, image_of: Mapping[Texts, Path], masks: str, mask_of: Mapping[Texts, Path]
) -> tuple[dict[Texts, Path], dict[Texts, Path]]:
    """Return the files by as many texts as the pattern with fewer wildcards has."""
    if not mask_of:
        return dict(image_of), {}
    count = min(len(next(iter(image_of))), len(next(iter(mask_of))))
    for pattern, files in ((images, image_of), (masks, mask_of)):
        numbers = Counter(key[:count] for key in files)
        if twice := next((key for key, number in numbers.items() if number > 1), None):
            raise PairingError(
                f"{numbers[twice]} files match with {'/'.join(twice)!r}; --image and --mask need the same "
                "number of *, or one file for each text of their first *.",
                where=pattern,
            )
    return ({key[:count]: path for key, path in files.items()} for files in (image_of, mask_of))  # type: ignore[return-value]


def _check_pairs(images: str, masks: str, image_of: Mapping[Texts, Path], mask_of: Mapping[Texts, Path]) -> None:
    """Check that most files of the two patterns match.

    Raises
    ------
    PairingError
        Fewer pairs than files without partner on both sides.
    """
    pairs = len(image_of.keys() & mask_of.keys())
    if pairs < min(len(image_of), len(mask_of)) - pairs:
        texts = [
            ", ".join(repr("/".join(key)) for key in sorted(files.keys() - others.keys())[:3])
            for files, others in ((image_of, mask_of), (mask_of, image_of))
        ]
        raise PairingError(
            f"--image {images} --mask {masks}: {count_noun(len(image_of), 'image')} and "
            f"{count_noun(len(mask_of), 'mask')}, but only {count_noun(pairs, 'pair')} with the same text for *. "
            f"Images: {texts[0]}. Masks: {texts[1]}. Move the * to the part that both share, or use --pairs."
        )
