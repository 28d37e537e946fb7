"""Dask clients: another scheduler, workers of another file system, and no Dask."""

import sys

import pytest

from slicemill.common import cluster as connection
from slicemill.common.errors import ConfigError
from slicemill.ct.labels import LITS_LABELS
from slicemill.ingest import pipeline
from slicemill.ingest.discover import discover
from slicemill.ingest.outcomes import CaseOutcome
from slicemill.ingest.params import Params
from slicemill.ingest.pipeline import IngestOptions, ingest
from tests.ingest.runs import contents

LITS = Params(labels=LITS_LABELS)


@pytest.mark.slow
def test_another_scheduler_gives_the_same_store(cluster, collection, tmp_path, stored):
    address, _ = cluster
    report = ingest(discover(collection), tmp_path / "store", LITS, IngestOptions(scheduler=address))
    assert report.count("done") == 6
    assert contents(tmp_path / "store") == contents(stored)


def test_a_case_that_its_worker_wrote_elsewhere_is_a_failure(copied, tmp_path, monkeypatch):
    class Future:
        status = "finished"

        def __init__(self, outcome):
            self.outcome = outcome

        def exception(self):
            return None

        def result(self):
            return self.outcome

    class Client:
        def __enter__(self):
            return self

        def __exit__(self, *_):
            return None

        def submit(self, _work, task, *_arguments, **_options):
            return Future(CaseOutcome(case_id=task.case.case_id, status="done", slices=1))

    monkeypatch.setattr(pipeline, "open_client", lambda *_: Client())
    monkeypatch.setattr("distributed.as_completed", list)
    report = ingest(discover(copied), tmp_path / "store", LITS, IngestOptions(workers=1))
    assert report.count("failed") == 6
    assert "a folder that this process cannot see" in report.failures[0].reason


@pytest.mark.parametrize("scheduler", [None, "tcp://127.0.0.1:1"])
def test_without_dask_the_extra_to_install_is_named_and_nothing_is_converted(copied, tmp_path, monkeypatch, scheduler):
    monkeypatch.setitem(sys.modules, "distributed", None)
    with pytest.raises(ConfigError, match=r"Dask is not installed.*pip install 'slicemill\[ingest\]'"):
        ingest(discover(copied), tmp_path / "store", LITS, IngestOptions(scheduler=scheduler))
    assert not list((tmp_path / "store").rglob("c"))


def test_a_scheduler_that_does_not_answer_is_named(copied, tmp_path, monkeypatch):
    monkeypatch.setattr(connection, "RESPONSE_SECONDS", 1)
    with pytest.raises(ConfigError, match="--scheduler tcp://127.0.0.1:1: cannot connect to the Dask scheduler"):
        ingest(discover(copied), tmp_path / "store", LITS, IngestOptions(scheduler="tcp://127.0.0.1:1"))
