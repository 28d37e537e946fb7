"""Extension of griffe, which reads docstrings for the API page: doctests after a section are a section of their own.

Without a heading, griffe takes them for a part of the section before them, like an error under "Raises".
"""

import re
from typing import Any

import griffe

DOCTEST = re.compile(r"(?<=\n\n)(?=>>> )")
HEADING = "Examples\n--------\n"


class ExampleSections(griffe.Extension):
    """Puts the heading "Examples" above the first doctest of a docstring that has sections."""

    def on_instance(self, *, obj: griffe.Object, **_: Any) -> None:
        """Change the docstring of a module, class, function or attribute."""
        if obj.docstring is not None and "\n---" in obj.docstring.value and HEADING not in obj.docstring.value:
            obj.docstring.value = DOCTEST.sub(HEADING, obj.docstring.value, count=1)
