"""Patterns of file names: which files they match, and with which texts."""

import glob
import re
from pathlib import Path, PurePosixPath

from slicemill.common.errors import PairingError, UsageError
from slicemill.common.files import Location
from slicemill.common.terminal import count_noun
from slicemill.ct.formats.dicom.lookup import holds_series
from slicemill.ct.formats.names import SHOWN_SUFFIXES, is_scan_name

Texts = tuple[str, ...]
"""The texts that the wildcards of a pattern match."""


def compile_pattern(pattern: str) -> re.Pattern[str]:
    """Return the regular expression of a pattern, with a group for each wildcard.

    It is made by hand because the groups are needed: `glob.translate` and pathspec have none.

    >>> compile_pattern("**/*_ct.nii").fullmatch("a/b/p1_ct.nii").groups()
    ('a/b', 'p1')
    """
    return re.compile(
        "".join(
            {"**/": r"(?:(.*)/)?", "*": r"([^/]*)"}.get(part, re.escape(part))
            for part in re.split(r"(\*\*/|\*)", pattern)
        )
    )


def match_pattern(pattern: str) -> dict[Texts, Path]:
    """Return the scans or masks that a pattern matches, by the texts that its wildcards match."""
    if "://" in pattern:
        raise UsageError(
            "patterns are for local files; pass the folder of the bucket, or list its files in a CSV (--pairs).",
            where=pattern,
        )
    if "*" not in pattern:
        raise UsageError("a pattern needs at least one *; its match pairs images with masks.", where=pattern)
    compiled = compile_pattern(pattern)
    matches: dict[Texts, Path] = {}
    names = sorted(glob.glob(pattern, recursive=True))  # noqa: PTH207 (patterns may be absolute)
    for name in names:
        match = compiled.fullmatch(name)
        if match and (is_scan_name(Path(name).name) or holds_series(Path(name))):
            key = tuple(group or "" for group in match.groups())
            if key in matches:
                raise PairingError(f"{matches[key]} and {name} match {pattern} with the same text {'/'.join(key)!r}.")
            matches[key] = Path(name)
    if not matches:
        scans = f"{SHOWN_SUFFIXES} file and no folder with a DICOM series"
        if names:
            why = f"matches {count_noun(len(names), 'path')}, like {Path(names[0]).name}, but no {scans}."
        else:
            why = f"matches no {scans}; quote the pattern, so that the shell does not expand it."
        raise PairingError(why, where=pattern)
    return matches


def fits_below(relative: str, pattern: str, source: Location) -> bool:
    """Return whether a path fits a pattern below the source, or its name fits a pattern without folders."""
    pattern = pattern.removeprefix(f"{source.as_posix()}/").removeprefix("./")
    text = relative if "/" in pattern else PurePosixPath(relative).name
    return compile_pattern(pattern).fullmatch(text) is not None
