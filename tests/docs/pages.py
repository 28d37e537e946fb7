"""The pages of the documentation with their code blocks.

Blocks in ``sh`` and ``python`` are run by the tests, page by page, from top to bottom. A block whose title begins with
"Not tested" is only parsed; the title is shown on the page and says why. A comment ``<!-- run with: scans store -->``
names what a page's blocks find in their folder (`INPUTS`); ``scans as lits`` gives it another name.
"""

import re
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).parents[2]
HISTORY = HERE / "docs" / "changelog-details.md"
"""What earlier versions were like, in the words and with the options of their time."""
PAGES = (HERE / "README.md", *(page for page in sorted((HERE / "docs").rglob("*.md")) if page != HISTORY))
FENCE = re.compile(r"^```(\w*)([^\n]*)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
GENERATED = re.compile(r"<!-- (?!end|run|generated)[\w:, -]+ -->\n.*?<!-- end -->", re.DOTALL)
NOT_TESTED = "Not tested"
INPUTS = ("scans", "store", "run", "model.onnx")


@dataclass(frozen=True, kw_only=True)
class Block:
    """A code block."""

    language: str
    title: str
    text: str

    @property
    def is_run(self):
        return self.language in ("sh", "python") and not self.title.startswith(NOT_TESTED)


def name_of(page):
    """Return a page's path in the checkout, as the name of a test."""
    return page.relative_to(HERE).as_posix()


def read_blocks(page):
    """Return the code blocks of a page."""
    blocks = []
    for language, rest, text in FENCE.findall(page.read_text()):
        title = re.search(r'title="([^"]*)"', rest)
        blocks.append(Block(language=language, title=title[1] if title else "", text=text))
    return blocks


def read_inputs(page):
    """Return name in the page's folder -> name of the input."""
    found = re.search(r"<!-- run with: ([^\n]*?) -->", page.read_text())
    words = re.findall(r"(\S+)(?: as (\S+))?", found[1]) if found else [("scans", "")]
    return {other or name: name for name, other in words}


def read_prose(page):
    """Return a page without code blocks and generated tables."""
    return GENERATED.sub("", FENCE.sub("", page.read_text()))


def inline_code(page):
    """Return the pieces of code within the text, on one line each."""
    return [" ".join(piece.split()) for piece in re.findall(r"`([^`]+)`", FENCE.sub("", page.read_text()))]
