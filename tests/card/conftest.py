"""The dry card: stand-ins for the CUDA libraries, and models to run on them."""

from pathlib import Path

import pytest

from tests.card import stand_ins
from tests.card.card import Card

COMPUTES_NOTHING = "dry card: stand-ins for the CUDA libraries, which compute nothing; no number here is of a GPU"


def pytest_report_header():
    """Say so above the tests."""
    return COMPUTES_NOTHING


@pytest.fixture(autouse=True, scope="session")
def installed():
    """Skip the tests where the dry card cannot be built."""
    if reason := stand_ins.explain_missing():
        pytest.skip(reason)


@pytest.fixture(scope="session")
def libraries(installed, shared) -> Path:
    """The folder of the stand-ins."""
    return shared("stand-ins", stand_ins.build)


@pytest.fixture
def card(libraries, tmp_path) -> Card:
    """One GPU."""
    return Card(libraries=libraries, folder=tmp_path)


@pytest.fixture(scope="session")
def written(installed, shared):
    """Write a model of a kind once, and return its path."""
    from tests.card.models import write_model

    def write(network: str, flavor: str, labels: str = "lits") -> Path:
        return shared(f"{network}-{flavor}-{labels}.onnx", lambda path: write_model(path, network, flavor, labels))

    return write
