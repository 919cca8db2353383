"""What a node shows at other nodes' doors, and how it comes by a token of its own."""

from __future__ import annotations

import asyncio
import hashlib
from pathlib import Path

import httpx
import pytest

from ringrift_cluster import badge
from ringrift_cluster.api.locks import proof
from ringrift_cluster.badge import Badge, JoinRefused
from statemachine.commands import ConfigureVoters, CreateToken, RevokeToken
from statemachine.values import Scope, Voter
from tests.support.memory_replica import MemoryReplica

VOTERS = {"a": "https://10.0.0.1:8770", "b": "https://10.0.0.2"}


def shown(one: Badge, url: str, **headers: str) -> str | None:
    request = next(one.auth_flow(httpx.Request("GET", url, headers=headers)))
    return request.headers.get("authorization")


def test_the_configured_token_is_shown_to_voters_alone() -> None:
    one = Badge("n", "root", None, VOTERS.values())
    assert shown(one, "https://10.0.0.1:8770/feed/entries") == "Bearer root"
    assert shown(one, "https://10.0.0.2:443/feed/entries") == "Bearer root"
    for stranger in ("http://10.0.0.1:8770/", "https://10.0.0.1:8771/", "https://10.0.0.9:8770/artifacts/x"):
        assert shown(one, stranger) is None
    one.take("own")
    assert shown(one, "https://10.0.0.1:8770/") == "Bearer own"
    assert shown(one, "https://10.0.0.1:8770/", authorization="Bearer a caller's") == "Bearer a caller's"
    assert shown(Badge("n", None, None, ()), "https://10.0.0.1:8770/") is None


def test_other_nodes_are_shown_a_proof_that_is_good_for_one_path() -> None:
    one = Badge("n", "root", "own", VOTERS.values())
    given = shown(one, "https://10.0.0.9:8770/artifacts/x?part=1")
    assert given == proof("n", hashlib.sha256(b"own").hexdigest(), "/artifacts/x")
    assert "own" not in given
    assert given != shown(one, "https://10.0.0.9:8770/artifacts/y")
    assert shown(one, "http://10.0.0.8:1/artifacts/x") == given, "it is nothing that could be used elsewhere"


def test_a_node_that_bought_its_token_learns_of_voters_that_were_added() -> None:
    async def scenario() -> None:
        replica = MemoryReplica("n")
        one = Badge("n", None, "own", ())
        url = "http://10.0.0.5:8770"
        assert shown(one, f"{url}/peers") != "Bearer own"
        replica.run(ConfigureVoters((Voter("e", "10.0.0.5:8771", url),), ""))
        assert await one._mint(replica) is True
        assert shown(one, f"{url}/peers") == "Bearer own"
        assert not replica.machine.state.tokens, "it has a token and draws none"

    asyncio.run(scenario())


def test_a_node_with_the_configured_token_keeps_a_token_of_its_own() -> None:
    async def scenario() -> None:
        replica = MemoryReplica("n")
        replica.run(CreateToken("node:n", Scope.NODE, hashlib.sha256(b"of the process before").hexdigest(), "n"))
        one = Badge("n", "root", None, ["https://x:1"])
        assert await one._mint(replica) is False
        assert await one._mint(replica) is True
        first = shown(one, "https://x:1/")
        assert first is not None
        row = replica.machine.state.index.tokens[hashlib.sha256(first.split()[1].encode()).hexdigest()]
        assert (row.name, row.scope, row.peer) == ("node:n", Scope.NODE, "n")
        replica.run(RevokeToken("node:n"))
        assert await one._mint(replica) is False
        assert await one._mint(replica) is True
        assert shown(one, "https://x:1/") not in (None, first)
        assert not one.joined

    asyncio.run(scenario())


class Door:
    """Voters that answer POST /tokens/join one after the other with what is in `answers`."""

    def __init__(self, *answers: tuple[int, str]) -> None:
        self.answers = list(answers)
        self.requests: list[httpx.Request] = []

    def __call__(self, request: httpx.Request) -> httpx.Response:
        self.requests.append(request)
        status, code = self.answers.pop(0) if self.answers else (401, "unauthorized")
        if not status:
            raise httpx.ConnectError("down", request=request)
        return httpx.Response(status, json={"code": code, "detail": f"because of {code}", "name": "node:n", "index": 1})


def joining(door: Door, data_dir: Path) -> str | None:
    async def scenario() -> str | None:
        async with httpx.AsyncClient(transport=httpx.MockTransport(door)) as http:
            return await badge.join(http, VOTERS, "n", "a join token", data_dir, lambda: not door.answers)

    return asyncio.run(scenario())


@pytest.fixture(autouse=True)
def _hurry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(badge, "JOIN_PAUSE_S", 0.001)


def test_a_node_buys_its_token_and_keeps_it_for_its_owner_alone(tmp_path: Path) -> None:
    door = Door((0, ""), (503, "no_leader"), (401, "unauthorized"), (200, ""))
    own = joining(door, tmp_path)
    assert own is not None
    assert badge.stored(tmp_path) == own
    assert (tmp_path / "node-token").stat().st_mode & 0o777 == 0o600
    assert {request.headers["authorization"] for request in door.requests} == {"Bearer a join token"}
    # The secret itself is never sent, and every attempt is the same request.
    assert {request.content for request in door.requests} == {door.requests[0].content}
    assert own.encode() not in door.requests[0].content


def test_a_node_that_was_cut_off_goes_on_with_the_secret_it_had_drawn(tmp_path: Path) -> None:
    cut_off = Door((0, ""), (0, ""))
    assert joining(cut_off, tmp_path) is None
    again = Door((200, ""))
    assert joining(again, tmp_path) is not None
    assert again.requests[0].content == cut_off.requests[0].content


def test_a_join_whose_answer_was_lost_is_found_again_when_its_token_has_ended(tmp_path: Path) -> None:
    door = Door((0, ""), (401, "token_over"), (200, ""))
    assert (secret := joining(door, tmp_path)) is not None
    assert badge.stored(tmp_path) == secret
    assert door.requests[-1].headers["authorization"] == f"Bearer {secret}"
    assert not list(tmp_path.glob("*.draft"))


@pytest.mark.parametrize(
    "answers", [((409, "conflict"),), ((401, "token_over"),), ((401, "unauthorized"), (401, "unauthorized"))]
)
def test_a_node_that_is_not_let_in_says_why(answers: tuple[tuple[int, str], ...], tmp_path: Path) -> None:
    with pytest.raises(JoinRefused, match=f"because of {answers[0][1]}"):
        joining(Door(*answers), tmp_path)
    assert badge.stored(tmp_path) is None


def test_under_tls_no_token_leaves_for_an_address_without_it() -> None:
    one = Badge("n", "root", "own", ("http://10.0.0.1:8770",), sealed=True)
    assert shown(one, "https://10.0.0.1:8770/") == "Bearer own"
    # A voter that has not said yet that it has moved, and a node that has not: both are asked under TLS.
    for url in ("http://10.0.0.1:8770/", "http://10.0.0.9:8770/artifacts/x"):
        for headers in ({}, {"authorization": "Bearer caller"}):
            request = next(one.auth_flow(httpx.Request("GET", url, headers=headers)))
            assert str(request.url) == url.replace("http:", "https:")
            assert "authorization" in request.headers
    # One that has no token yet has nothing to show, and passes none on.
    bare = Badge("n", None, None, ("http://10.0.0.1:8770",), sealed=True)
    forwarded = httpx.Request("GET", "http://10.0.0.1:8770/", headers={"authorization": "Bearer caller"})
    assert "authorization" not in next(bare.auth_flow(forwarded)).headers
