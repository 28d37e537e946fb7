"""A collection that a test may change."""

import shutil

import pytest


@pytest.fixture
def copied(collection, tmp_path):
    """A copy of the collection, with its times."""
    return shutil.copytree(collection, tmp_path / "collection")
