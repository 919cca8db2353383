"""Voters under mutual TLS: who is believed to be a voter, and by which name."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path

import pytest

from ringrift_cluster.raft.conf import VoterConfig
from ringrift_cluster.tls import Tls
from tests.ringrift_cluster.raft.loopback import SECRET, Loopback, add, until
from tests.support.pki import Authority


class Certified(Loopback):
    """Voters with a certificate each, and no other secret."""

    def __init__(self, directory: Path) -> None:
        super().__init__(directory)
        self.authority = Authority(directory / "pki")
        self.tls = {name: Tls(self.authority.issue(name)) for name in self.voters}

    def config(self, name: str, *, secret: bytes | None = None) -> VoterConfig:
        tls = self.tls.get(name)
        if tls is None:
            return super().config(name, secret=None)
        return replace(super().config(name, secret=None), server_tls=tls.link_server, client_tls=tls.link_client)


def test_certified_voters_need_no_other_secret(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with Certified(tmp_path) as cluster:
            await cluster.start()
            leader = await cluster.leader()
            assert (await leader.propose([add("w1")])).index > 0
            await cluster.others()

    asyncio.run(scenario())


def stranger(kind: str, cluster: Certified, tmp_path: Path) -> None:
    """Give voter c something else than its own certificate."""
    authority = cluster.authority
    match kind:
        case "none at all":
            del cluster.tls["c"]
        case "a node's":
            cluster.tls["c"] = Tls(authority.files("c", authority.make("c", voter=False)))
        case "another voter's":
            cluster.tls["c"] = Tls(authority.files("c", authority.make("b")))
        case "another authority's":
            foreign = Authority(tmp_path / "foreign")
            files = foreign.issue("c")
            # It believes the cluster's voters (and its own authority, or it would not start); they must not believe it.
            foreign.ca.write_bytes(foreign.ca.read_bytes() + authority.ca.read_bytes())
            cluster.tls["c"] = Tls(files)


@pytest.mark.parametrize("kind", ["none at all", "a node's", "another voter's", "another authority's"])
def test_whoever_shows_another_certificate_than_its_own_as_a_voter_stays_out(kind: str, tmp_path: Path) -> None:
    async def scenario() -> None:
        async with Certified(tmp_path) as cluster:
            stranger(kind, cluster, tmp_path)
            await cluster.start()
            leader = await cluster.leader()
            assert (await leader.propose([add("w1")])).index > 0
            # The one whose id sorts first dials, so a and b dial c.
            refusals = cluster.running["a"].counters.refusals
            if kind in ("a node's", "another voter's"):
                await until(lambda: refusals["wrong_certificate"] > 2, "c to be refused for its certificate")
            await until(lambda: leader.status().voters_heard.count("c") == 0, "nobody to hear c")
            assert cluster.running["c"].status().leader_id is None
            assert not cluster.running["c"].status().ready

    asyncio.run(scenario())


def test_a_new_certificate_counts_for_new_links_and_the_old_ones_stay_up(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with Certified(tmp_path) as cluster:
            await cluster.start()
            await cluster.others()
            connections = {name: voter.counters.connections for name, voter in cluster.running.items()}
            cluster.authority.issue("a")
            cluster.tls["a"].refresh()
            leader = await cluster.leader()
            await leader.propose([add("w1")])
            assert {name: voter.counters.connections for name, voter in cluster.running.items()} == connections
            await cluster.stop("b")
            await cluster.start("b")
            await until(lambda: cluster.running["b"].status().ready, "b to be back under a's new certificate")
            # One that the others would refuse is not taken: the voter goes on under the one it has.
            cluster.authority.files("a", cluster.authority.make("a", voter=False))
            cluster.tls["a"].refresh()
            assert "of another node or role" in cluster.tls["a"].complaint
            await cluster.stop("b")
            await cluster.start("b")
            await until(lambda: cluster.running["b"].status().ready, "b to be back under the certificate that a kept")
            assert cluster.running["b"].counters.refusals["wrong_certificate"] == 0

    asyncio.run(scenario())


def test_the_links_of_a_voter_whose_certificate_is_revoked_end_until_it_has_a_new_one(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with Certified(tmp_path) as cluster:
            await cluster.start()
            await cluster.others()
            cluster.authority.revoke("c")
            # Its own operator may keep the list from it: what counts is what the others know.
            for name in "ab":
                cluster.tls[name].refresh()
            links = {name: voter._thread._transport._links for name, voter in cluster.running.items()}
            await until(lambda: not links["c"], "c to stand alone")
            await until(lambda: cluster.running["a"].counters.refusals["tls"] > 2, "c to be refused, and counted")
            assert not links["c"]
            assert (await (await cluster.leader()).propose([add("w1")])).index > 0
            cluster.authority.issue("c")
            cluster.tls["c"].refresh()
            await until(lambda: len(links["c"]) == 2, "c to be back under its new certificate")
            await until(lambda: cluster.running["c"].status().ready, "c to have caught up")
            assert cluster.halted == {}

    asyncio.run(scenario())


class Moving(Certified):
    """Voters that know each other by a secret and come to have certificates, each at its own time."""

    def __init__(self, directory: Path) -> None:
        super().__init__(directory)
        self.stage = dict.fromkeys(self.voters, "plain")

    def config(self, name: str, *, secret: bytes | None = SECRET) -> VoterConfig:
        tls, stage = self.tls[name], self.stage[name]
        plain = replace(Loopback.config(self, name, secret=secret), clear_too=stage == "both")
        if stage == "plain":
            return plain
        return replace(plain, server_tls=tls.link_server, client_tls=tls.link_client)

    def sealed(self) -> dict[str, set[bool]]:
        """Whether each voter's links are under TLS."""
        return {
            name: {
                link.writer.get_extra_info("ssl_object") is not None
                for link in voter._thread._transport._links.values()
            }
            for name, voter in self.running.items()
        }


def test_voters_move_to_tls_one_after_the_other_and_commit_all_the_while(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with Moving(tmp_path) as cluster:
            await cluster.start()
            count = 0
            for stage in ("both", "tls"):
                for name in "cab":
                    await cluster.others()
                    await cluster.stop(name)
                    cluster.stage[name] = stage
                    assert (await (await cluster.leader()).propose([add(f"w{count}")])).index > 0
                    count += 1
                    await cluster.start(name)
                    await until(lambda name=name: cluster.running[name].status().ready, f"{name} to be back")
                    if (stage, name) == ("both", "c"):
                        assert cluster.sealed() == {"a": {False}, "b": {False}, "c": {False}}
                if stage == "both":
                    # Links that both ends can have under TLS are.
                    assert cluster.sealed()["b"] == {True}
            await cluster.others()
            assert cluster.sealed() == {"a": {True}, "b": {True}, "c": {True}}
            refusals = cluster.running["c"].counters.refusals
            before = refusals["tls"]
            cluster.stage["a"] = "plain"
            await cluster.stop("a")
            await cluster.start("a")
            await until(lambda: refusals["tls"] > before, "a voter without TLS to be refused from now on")
            assert cluster.halted == {}

    asyncio.run(scenario())
