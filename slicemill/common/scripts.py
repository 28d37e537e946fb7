"""Joins JavaScript modules into one classic script, which a page can hold and run from a file without a server.

Each module becomes a function that returns what it exports; an import takes names from the result. Names of different
modules cannot collide. Only the forms that slicemill's own modules have are known; any other is an error.
"""

import re
from pathlib import Path

IMPORT = re.compile(r'^import \{([^}]*)\} from "([./\w]+)\.js";\n', re.MULTILINE)
EXPORT = re.compile(r"^export ((?:async )?(?:function|const|class)) (\w+)", re.MULTILINE)
NOTE = re.compile(r"^ *(?:// .*|/\*\*(?:[^*]|\*(?!/))*\*/)\n", re.MULTILINE)
"""A line or block of comment."""
LEFT = re.compile(r"^\s*(?:import|export)\b|\bimport\(|</script|<!--", re.MULTILINE)


def join_scripts(entry: Path) -> str:
    """Return a module, and all that it imports, as one classic script.

    Parameters
    ----------
    entry : Path
        The module that starts. Imports are relative paths.

    Raises
    ------
    ValueError
        A module has an import or export of another form, or text that ends a script in a page.
    """
    parts: dict[Path, str] = {}

    def add(path: Path, importing: tuple[Path, ...]) -> None:
        if path in importing:
            raise ValueError(f"{path.name} imports itself by way of {importing[-1].name}")
        if path in parts:
            return
        text = NOTE.sub("", path.read_text(encoding="utf-8"))
        for found in IMPORT.finditer(text):
            add(_find(path, found[2]), (*importing, path))
        parts[path] = _wrap(path, text)

    add(entry.resolve(), ())
    return '"use strict";\n' + "".join(parts.values())


def _find(path: Path, imported: str) -> Path:
    return (path.parent / f"{imported}.js").resolve()


def _wrap(path: Path, text: str) -> str:
    exports = [found[2] for found in EXPORT.finditer(text)]
    body = IMPORT.sub(lambda found: f"const {{{found[1].strip()}}} = module_{_find(path, found[2]).stem};\n", text)
    body = EXPORT.sub(r"\1 \2", body)
    left = LEFT.search(body)
    if left:
        raise ValueError(f"{path.name}: {left[0].strip()!r} cannot be joined")
    return f"const module_{path.stem} = (() => {{\n{body}return {{{', '.join(exports)}}};\n}})();\n"
