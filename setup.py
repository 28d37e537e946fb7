"""The description on a package index: README.md without what only a checkout can show; the rest: pyproject.toml."""

import re
from pathlib import Path

RELATIVE = r"\((?!https?:|mailto:|#)[^)\s]+\)"
"""The target of a Markdown link into the repository."""
PICTURE = rf"^!\[[^]]*\]{RELATIVE}\n+(?:\*(?!\*)(?:[^\n]|\n(?!\n))*\*\n+)?"
"""A picture of the repository on lines of its own, and its caption: a paragraph in italics."""
CODE_OR_LINK = rf"^```.*?^```$|(?<!!)\[(?P<text>[^]]+)\]{RELATIVE}|`[^`\n]*`"
"""Code, which stays as it is, or a link into the repository. What begins first is matched."""


def describe_package(readme: str) -> str:
    """Return a README without pictures of the repository; links into it become plain text."""
    text = re.sub(PICTURE, "", readme, flags=re.MULTILINE)
    return re.sub(CODE_OR_LINK, lambda match: match["text"] or match[0], text, flags=re.MULTILINE | re.DOTALL)


if __name__ == "__main__":
    from setuptools import setup

    setup(
        long_description=describe_package((Path(__file__).parent / "README.md").read_text(encoding="utf-8")),
        long_description_content_type="text/markdown",
    )
