"""Connection to a Dask scheduler: what it needs, and what it silences."""

import logging
import sys

import distributed
import pytest

from slicemill.common import cluster
from slicemill.common.cluster import connect, quiet_dask
from slicemill.common.errors import ConfigError


def test_a_client_of_a_running_scheduler_runs_tasks():
    with (
        distributed.LocalCluster(n_workers=1, threads_per_worker=1, processes=False, dashboard_address=None) as local,
        connect(local.scheduler_address) as client,
    ):
        assert client.submit(pow, 2, 5).result(timeout=20) == 32


def test_a_scheduler_that_does_not_answer_is_named(monkeypatch):
    monkeypatch.setattr(cluster, "RESPONSE_SECONDS", 1)
    message = "--scheduler tcp://127.0.0.1:1: cannot connect to the Dask scheduler"
    with pytest.raises(ConfigError, match=message), connect("tcp://127.0.0.1:1"):
        pass


def test_an_address_that_is_none_is_named():
    with pytest.raises(ConfigError, match="--scheduler no-such-scheme://x: cannot"), connect("no-such-scheme://x"):
        pass


def test_without_dask_the_extra_to_install_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "distributed", None)
    with pytest.raises(ConfigError, match=r"pip install 'slicemill\[ingest\]'"), connect("tcp://127.0.0.1:1"):
        pass


def test_dasks_loggers_are_silent_only_while_dask_is_used():
    loggers = [logging.getLogger(name) for name in ("distributed", "distributed.worker", "distributed.client")]
    before = [logger.level for logger in loggers]
    with quiet_dask():
        assert [logger.level for logger in loggers] == [logging.CRITICAL] * 3
    assert [logger.level for logger in loggers] == before
