from __future__ import annotations

import hashlib
from pathlib import Path

from statemachine.commands import (
    JoinPeer,
    RegisterArtifact,
)
from statemachine.rows import Actual, WorkStatus
from statemachine.settings import Template
from statemachine.values import Input, PeerFacts
from tests.executors.agents import GAMES, node, program, run
from tests.executors.holders import Holder
from tests.executors.memory import MemoryCluster, eventually


def known(cluster: MemoryCluster, data: bytes, address: str) -> str:
    """A file that another node holds."""
    digest = hashlib.sha256(data).hexdigest()
    if "n2" not in cluster.state.peers:
        cluster.must(JoinPeer("n2", 1, "boot-n2", "worker", address, PeerFacts()))
    cluster.must(RegisterArtifact(digest, len(data), "model", "hex8_2p", "n2"))
    return digest


COPY = """
import json, sys
paths = open(sys.argv[2]).read().split()
texts = [open(p).read() for p in [sys.argv[1], *paths]]
open("result.json", "w").write(json.dumps({"metrics": {"read": "|".join(texts)}}))
"""


def test_inputs_come_from_another_node_and_are_listed_for_the_program(tmp_path: Path) -> None:
    data = b"a model"
    holder = Holder(data)

    async def go() -> None:
        async with node(tmp_path) as one:
            digest = known(one.cluster, data, holder.address)
            template = program(COPY)
            template = Template(argv=(*template.argv, "{net}", "{inputs:old/}"))
            one.cluster.setting("template/t", template)
            one.cluster.add("w", "t", inputs=[Input("net", digest), Input("old/1", digest), Input("old/2", digest)])
            one.cluster.place("w", "n1")
            await eventually(lambda: one.cluster.work("w").status is WorkStatus.COMPLETED)
            assert one.cluster.work("w").metrics == {"read": "a model|a model|a model"}
            assert len(holder.ranges) == 1
            await eventually(lambda: one.cluster.state.artifacts[digest].holders == ("n1", "n2"))

    try:
        run(go)
    finally:
        holder.close()


def test_a_corrupted_input_is_refused_before_anything_starts(tmp_path: Path) -> None:
    data = b"a model"
    holder = Holder(b"a modem")

    async def go() -> None:
        async with node(tmp_path) as one:
            digest = known(one.cluster, data, holder.address)
            job = one.granted(program(GAMES), inputs=[Input("net", digest)])
            await eventually(lambda: one.cluster.state.jobs[job.job].actual is Actual.FAILED)
            row = one.cluster.state.jobs[job.job]
            assert row.error_class == "infrastructure"
            assert "other bytes" in row.error
            assert one.agent.status().started == 0
            assert one.agent.bench.blobs.path(digest) is None

    try:
        run(go)
    finally:
        holder.close()


def test_an_input_name_cannot_lead_out_of_its_folder(tmp_path: Path) -> None:
    async def go() -> None:
        async with node(tmp_path) as one:
            digest = one.agent.bench.blobs.add(b"x")
            one.cluster.must(RegisterArtifact(digest, 1, "model", "hex8_2p", "n1"))
            job = one.granted(program(GAMES), inputs=[Input("a/../../../x", digest)])
            await eventually(lambda: one.cluster.state.jobs[job.job].actual is Actual.FAILED)
            assert "no path below inputs/" in one.cluster.state.jobs[job.job].error

    run(go)
