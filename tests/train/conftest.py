"""The curves of a run take most of the time of a training of few steps: only tests of the curves draw them."""

import pytest
from PIL import Image

from slicemill.train.report import curves


class SmallPicture:
    """In place of a figure of matplotlib."""

    def savefig(self, path, **_):
        Image.new("L", (1, 1)).save(path, format="PNG")


@pytest.fixture(autouse=True)
def no_curves(request, monkeypatch):
    """Write one pixel in place of the curves, but in tests that ask for `drawn_curves`."""
    if "drawn_curves" not in request.fixturenames:
        monkeypatch.setattr(curves, "make_figure", lambda *_: SmallPicture())


@pytest.fixture
def drawn_curves():
    """Let the trainings and reports of a test draw their curves."""
