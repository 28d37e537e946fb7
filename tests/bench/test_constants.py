"""Tuned constants: each is measured with other values and then restored."""

import importlib
from dataclasses import replace

import pytest

import slicemill.ct.pictures
from slicemill.bench.harness.subject import phantom_subject
from slicemill.bench.records.readme import format_record
from slicemill.bench.schema.base import origin
from slicemill.bench.stages.constants import Constant, make_constants, measure_constant
from slicemill.common.documents import to_document


@pytest.fixture(scope="module")
def constants(tmp_path_factory):
    return {one.where: one for one in make_constants(tmp_path_factory.mktemp("work"), phantom_subject(8, size=64))}


def values_of(constants):
    return {
        where: getattr(importlib.import_module(where.rpartition(".")[0]), where.rpartition(".")[2])
        for where in constants
    }


def test_each_is_measured_and_restored(constants):
    before = values_of(constants)
    rows = {where: to_document(measure_constant(constant, rounds=1)) for where, constant in constants.items()}
    assert values_of(constants) == before
    for where, row in rows.items():
        assert row["chosen"] == before[where]
        assert row["values"][str(before[where])]["time"] == 1
        assert set(row["values"]) == {str(value) for value in (*constants[where].values, before[where])}
    assert rows["slicemill.ct.pictures.LEVEL"]["values"]["0"]["bytes"] > 1.2
    table = format_record({"benchmark": "constants", "constants": rows, "subject": "x", "rounds": 1, **origin()})
    assert "| `slicemill.ct.pictures.LEVEL` | slices as PNG | 0: " in table
    assert "**2: 1**" in table
    assert "of the bytes)" in table


def test_the_work_sees_the_value_that_is_tried(constants):
    seen = []
    measure_constant(
        Constant(
            where="slicemill.ct.pictures.LEVEL",
            values=(0, 3),
            what="",
            work=lambda: seen.append(slicemill.ct.pictures.LEVEL),
        ),
        1,
    )
    assert set(seen) == {0, 2, 3}
    with pytest.raises(RuntimeError, match="no"):
        measure_constant(replace(constants["slicemill.ct.pictures.LEVEL"], work=failing), 1)
    assert slicemill.ct.pictures.LEVEL == 2


def failing():
    raise RuntimeError("no")
