"""The benchmarks still run; what they measure is asserted nowhere."""

from __future__ import annotations

import asyncio
import shutil
import tempfile
from pathlib import Path

import pytest

from tests.bench import cluster, etcd, feed, heartbeats
from tests.bench.sitting import Sitting


def test_the_table_compares_what_was_measured_and_names_what_was_not() -> None:
    sitting = Sitting()
    sitting.note("propose.64.per_s", 15_000.0)
    sitting.note("etcd.64.per_s", 7_500.0)
    sitting.note("propose.1.p50_ms", 2.0)
    sitting.note("etcd.1.p50_ms", 1.0)
    sitting.lacks("PostgreSQL is not installed")
    table = sitting.table().splitlines()
    assert "| in process, 64 in flight | 15,000 /s | 7,500 /s | 2.00 x | >= 1.5 x | yes |" in table
    assert "| in process, one client, p50 | 2.00 ms | 1.00 ms | 2.00 x | <= 1 x | no |" in table
    assert not any("cycles" in line for line in table)
    assert table[-1] == "Not measured: PostgreSQL is not installed"


@pytest.mark.skipif(shutil.which("etcd") is None, reason="etcd is not installed")
def test_the_client_of_etcd_puts() -> None:
    with tempfile.TemporaryDirectory() as folder:
        servers = etcd.EtcdCluster(Path(folder))
        try:
            for name in "abc":
                servers.start(name)
            port = servers.ports[servers.leader()]
            assert asyncio.run(etcd.puts(port, 64, 0.3))
        finally:
            servers.stop()


@pytest.mark.cluster
def test_the_loads_of_a_cluster_run(monkeypatch: pytest.MonkeyPatch) -> None:
    sitting = Sitting()
    with cluster.voters() as one:
        for part in (cluster, feed, heartbeats):
            monkeypatch.setattr(part, "voters", lambda: _Lent(one))
        cluster.run(sitting, 0.3)
        feed.run(sitting, 1.0, followers=20)
        heartbeats.run(sitting, 1.0, peers=300)
    assert {"http.64.per_s", "http.batch.cycles_per_s", "feed.arrival_p99_ms", "heartbeats.cpu_percent"} <= set(
        sitting.figures
    )


class _Lent:
    """A running cluster that is not ended here."""

    def __init__(self, one: cluster.TestCluster) -> None:
        self._one = one

    def __enter__(self) -> cluster.TestCluster:
        return self._one

    def __exit__(self, *exc: object) -> None: ...
