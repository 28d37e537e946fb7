"""Codes of labels (SNOMED CT): what a segment of a DICOM object is, where it lies, and of which category it is.

The names of organs and of tumor that models and collections usually have are known. Others come from a table of the
user, or are written as tissue, with a warning.
"""

import csv
import io
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from slicemill.common.errors import ConfigError
from slicemill.common.files import read_text
from slicemill.ct.labels import Labels

MOST_SCHEME, MOST_VALUE, MOST_MEANING = 16, 16, 64
"""Characters of the value representations SH and LO (DICOM PS3.5 table 6.2-1)."""
COLUMNS = ("label", "category", "type", "region")
FORBIDDEN = re.compile(r"[\\\x00-\x1f\x7f]")


@dataclass(frozen=True, slots=True)
class Concept:
    """A code of a coding scheme."""

    scheme: str
    value: str
    meaning: str


@dataclass(frozen=True, slots=True)
class LabelCodes:
    """The codes of one label."""

    category: Concept
    type: Concept
    region: Concept | None = None
    """The organ in which it lies; None for an organ itself."""
    side: Concept | None = None
    """Left or right."""


ANATOMICAL = Concept("SCT", "91723000", "Anatomical Structure")
ABNORMAL = Concept("SCT", "49755003", "Morphologically Abnormal Structure")
TISSUE = LabelCodes(Concept("SCT", "85756007", "Tissue"), Concept("SCT", "85756007", "Tissue"))
ORGANS = {
    "liver": Concept("SCT", "10200004", "Liver"),
    "lung": Concept("SCT", "39607008", "Lung"),
    "kidney": Concept("SCT", "64033007", "Kidney"),
    "spleen": Concept("SCT", "78961009", "Spleen"),
    "pancreas": Concept("SCT", "15776009", "Pancreas"),
}
FINDINGS = {
    "tumor": Concept("SCT", "108369006", "Neoplasm"),
    "tumour": Concept("SCT", "108369006", "Neoplasm"),
    "cancer": Concept("SCT", "108369006", "Neoplasm"),
    "neoplasm": Concept("SCT", "108369006", "Neoplasm"),
    "metastasis": Concept("SCT", "14799000", "Neoplasm, Secondary"),
    "metastases": Concept("SCT", "14799000", "Neoplasm, Secondary"),
    "lesion": Concept("SCT", "52988006", "Lesion"),
    "nodule": Concept("SCT", "27925004", "Nodule"),
    "mass": Concept("SCT", "4147007", "Mass"),
}
SIDES = {"left": Concept("SCT", "7771000", "Left"), "right": Concept("SCT", "24028007", "Right")}
IGNORED_WORDS = frozenset({"and", "of", "the", "in"})


def find_codes(name: str, organ: str | None = None) -> LabelCodes | None:
    """Return the codes of a label by the words of its name; None if one of them is unknown.

    Parameters
    ----------
    organ
        Name of the label of the organ in which a tumor lies, if the tumor's own name does not have it.

    >>> find_codes("left kidney").type.meaning, find_codes("left kidney").side.meaning
    ('Kidney', 'Left')
    >>> find_codes("tumor", "liver").region.meaning, find_codes("liver vessel")
    ('Liver', None)
    """
    words = [word for word in re.split(r"[\W_\d]+", name.casefold()) if word and word not in IGNORED_WORDS]
    singular = [word if word in FINDINGS or word in ORGANS else word.removesuffix("s") for word in words]
    organs = [ORGANS[word] for word in singular if word in ORGANS]
    findings = [FINDINGS[word] for word in singular if word in FINDINGS]
    sides = [SIDES[word] for word in words if word in SIDES]
    if len(organs) > 1 or len(findings) > 1 or len(sides) > 1:
        return None
    if len(organs) + len(findings) + len(sides) != len(words) or not (organs or findings):
        return None
    side = sides[0] if sides else None
    if not findings:
        return LabelCodes(ANATOMICAL, organs[0], side=side)
    of_organ = find_codes(organ) if organ and not organs else None
    region = organs[0] if organs else (of_organ.type if of_organ else None)
    return LabelCodes(ABNORMAL, findings[0], region, side or (of_organ.side if of_organ else None))


def choose_codes(labels: Labels, table: Mapping[str, LabelCodes] | None = None) -> tuple[dict[str, LabelCodes], str]:
    """Return the codes of each label, and a warning about the names without one, or an empty text.

    Parameters
    ----------
    table
        Codes of the user (`read_code_table`), which take precedence.
    """
    chosen: dict[str, LabelCodes] = {}
    unknown = []
    for name in labels.values:
        codes = (table or {}).get(name) or find_codes(name, labels.organ if name == labels.tumor else None)
        if codes is None:
            unknown.append(name)
        chosen[name] = codes or TISSUE
    if not unknown:
        return chosen, ""
    return chosen, f"written as Tissue, because their codes are unknown: {', '.join(unknown)}; --codes TABLE names them"


def read_code_table(path: Path) -> dict[str, LabelCodes]:
    """Read a CSV with the columns label, category, type and region; codes are like ``SCT^10200004^Liver``.

    Raises
    ------
    ConfigError
        The file is no such table.
    """
    rows = csv.DictReader(io.StringIO(read_text(path)))
    if not set(COLUMNS[:3]) <= set(rows.fieldnames or ()):
        raise ConfigError(
            f"a table of codes has the columns {', '.join(COLUMNS)} (region may lack); this one has "
            f"{', '.join(rows.fieldnames or ()) or 'none'}.",
            where=path,
        )
    table = {}
    for number, row in enumerate(rows, 2):
        where = f"{path}, line {number}"
        name = (row["label"] or "").strip()
        if not name or name in table:
            raise ConfigError(f"each line needs a label of its own; this one has {name!r}.", where=where)
        region = (row.get("region") or "").strip()
        table[name] = LabelCodes(
            category=parse_concept(row["category"] or "", where),
            type=parse_concept(row["type"] or "", where),
            region=parse_concept(region, where) if region else None,
        )
    return table


def parse_concept(text: str, where: object) -> Concept:
    """Parse ``SCT^10200004^Liver``.

    Raises
    ------
    ConfigError
        The text is no code, or a part is longer than DICOM allows.
    """
    parts = [part.strip() for part in text.split("^")]
    most = (MOST_SCHEME, MOST_VALUE, MOST_MEANING)
    if len(parts) != len(most) or not all(parts) or FORBIDDEN.search(text):
        raise ConfigError(
            f"a code is SCHEME^VALUE^MEANING, like SCT^10200004^Liver; this one is {text!r}.", where=where
        )
    for part, count in zip(parts, most, strict=True):
        if len(part) > count:
            raise ConfigError(f"{part!r} has {len(part)} characters; DICOM allows {count} there.", where=where)
    return Concept(*parts)
