"""A running cluster moves to TLS, one node after the other, while clients work."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import httpx
import pytest

from ringrift_cluster.api.items import NewWork
from ringrift_cluster.client import Client
from ringrift_cluster.tls import client_context
from tests.support.cluster import NodeProcess, TestCluster, eventually
from tests.support.load import Load
from tests.support.pki import Authority

pytestmark = pytest.mark.cluster
TOKEN = "operators-own-secret"


@pytest.fixture
def plain(tmp_path: Path) -> Iterator[TestCluster]:
    """Three voters and a follower without TLS; voters know each other by the cluster's secret."""
    cluster = TestCluster(tmp_path, voters=3, followers=1, cpu_slots=0, token=TOKEN)
    cluster.lay_out()
    secret = tmp_path / "secret"
    secret.write_text("the voters' secret")
    secret.chmod(0o600)
    for name, node in cluster.nodes.items():
        cluster.nodes[name] = replace(node, flags=(*node.flags, "--cluster-secret-file", str(secret)))
    try:
        for node in cluster.nodes.values():
            node.start()
        for node in cluster.nodes.values():
            eventually(lambda node=node: node.get("/status")["ready"], f"{node.name} to be ready", 60.0)
        yield cluster
    finally:
        cluster.stop()


def restart(cluster: TestCluster, name: str, **changes: object) -> NodeProcess:
    node = cluster.nodes[name]
    assert node.terminate(60.0) == 0
    node = cluster.nodes[name] = replace(node, **changes)  # type: ignore[arg-type]
    node.start()
    eventually(lambda: node.get("/ready")["ready"], f"{name} to be ready", 60.0)
    return node


@pytest.mark.skipif(not os.environ.get("RINGRIFT_TEST_LONG"), reason="make voters runs it")
def test_voters_and_followers_move_to_tls_one_after_the_other_under_load(plain: TestCluster, tmp_path: Path) -> None:
    authority = Authority(tmp_path / "pki")
    trust = client_context(authority.ca)
    http = [node.url for node in plain.nodes.values()]
    https = [url.replace("http:", "https:") for url in http]
    order = sorted(plain.nodes, reverse=True)
    with Load(http, TOKEN, authority.ca) as load:
        for name in order:
            files = authority.issue(name, voter=name.startswith("v"))
            node = plain.nodes[name]
            flags = (*node.flags, "--tls-cert", str(files.cert), "--tls-key", str(files.key), "--tls-ca", str(files.ca))
            moving = restart(plain, name, flags=(*flags, "--tls-transition"))
            assert "tls_transition is on" in str(moving.get("/status"))
            # It takes both from now on.
            assert httpx.get(f"https://127.0.0.1:{node.port}/health", verify=trust).status_code == 200
            load.goes_on()
        load.addresses = https
        for name in order:
            restart(plain, name, flags=plain.nodes[name].flags[:-1], trust=trust)
            load.goes_on()
    assert not load.failures
    for node in plain.nodes.values():
        with pytest.raises(httpx.HTTPError):
            httpx.get(f"http://127.0.0.1:{node.port}/health", timeout=5.0)

    def everyone_is_https() -> bool:
        for node in plain.nodes.values():
            voters = node.get("/raft/voters")["voters"]
            peers = node.get("/peers")["peers"]
            if not all(v["address"].startswith("https:") for v in voters):
                return False
            if not all(p["address"].startswith("https:") and p["status"] == "alive" for p in peers):
                return False
        return True

    eventually(everyone_is_https, "every address of the log to be under https", 60.0)
    # A follower's writes go to the voters with their tokens again.
    follower = plain.nodes["f1"]
    with Client(follower.url, token=TOKEN, ca=authority.ca, retry_s=30.0) as client:
        client.work_add(NewWork(work_id="through-the-follower", work_type="load"))
    for work in ("through-the-follower", *load.added[::20]):
        eventually(lambda work=work: plain.nodes["v1"].get(f"/work/{work}"), f"{work} to be known")
    plain.same_digest()
