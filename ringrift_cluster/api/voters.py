"""Who votes: listed at any node, changed at the leader, one voter at a time."""

from __future__ import annotations

import asyncio
import logging
from typing import Annotated

import httpx
import msgspec
from msgspec import Meta, Struct

from ringrift_cluster.api.endpoint import Call, Routes
from ringrift_cluster.api.problems import Problem
from ringrift_cluster.api.services import Learner
from ringrift_cluster.api.writes import REQUEST_ID, Requested, noted
from ringrift_cluster.members import urls_of
from ringrift_cluster.problem import read_problem
from ringrift_cluster.raft.changes import VoterState
from ringrift_cluster.raft.configuration import Configuration
from ringrift_cluster.raft.engine import RaftReplica
from ringrift_cluster.raft.wire import split_address
from ringrift_cluster.replica import NoLeader
from statemachine.errors import UNDECODABLE, Code
from statemachine.rows import PeerStatus
from statemachine.values import Id, Scope, Voter

log = logging.getLogger("ringrift.voters")

route = Routes("voters", "Who votes. A change is an entry of the log and counts from the moment it is appended.")

#: one call waits this long for a voter to catch up; the same request may be sent again
CATCH_UP_S = 20.0
ASK_S = 10.0
ASK_AGAIN_S = 0.3


class VoterRow(Struct, frozen=True):
    """One voter. State: voter, silent, excluded, catching up; unknown when the leader could not be asked."""

    node_id: str
    raft_address: str
    address: str
    log_id: str
    role: str
    state: str
    match: int
    lag: int
    silent_ms: int
    detail: str = ""


class VoterList(Struct, frozen=True):
    """The list in effect; `index` is the entry that made it so."""

    voters: list[VoterRow]
    index: int
    leader_id: str | None


class WhomToAsk(Struct, frozen=True, forbid_unknown_fields=True):
    #: ask nobody else
    local: bool = False


EXAMPLE_ROW = VoterRow("a", "10.0.0.1:8771", "http://10.0.0.1:8770", "5f1c", "leader", "voter", 1204, 0, 0)


@route("GET", "/raft/voters", "Who votes", scope=Scope.READ, answer=VoterList([EXAMPLE_ROW], 3, "a"))
async def voters(call: Call, query: WhomToAsk) -> VoterList:
    """As the leader sees it, whichever node is asked; without a leader, as this node knows it."""
    replica = call.services.replica
    status = replica.status()
    if isinstance(replica, RaftReplica) and (status.role == "leader" or query.local):
        return _listed(call, {s.node: s for s in await replica.voter_states()})
    found = None if query.local else await _at_the_leader(call)
    return found or _listed(call, {})


async def _at_the_leader(call: Call) -> VoterList | None:
    services = call.services
    leader, http = services.leader_address(), services.http
    if leader is None or http is None:
        return None
    given = call.header(b"authorization")
    headers = {"authorization": given} if given else {}
    try:
        answer = await http.get(f"{leader}/raft/voters", params={"local": "true"}, headers=headers, timeout=ASK_S)
        return msgspec.json.decode(answer.content, type=VoterList) if answer.status_code == 200 else None
    except (httpx.HTTPError, *UNDECODABLE) as error:
        log.info("event=voters_not_asked leader=%s reason=%s", leader, error)
        return None


def _listed(call: Call, states: dict[str, VoterState]) -> VoterList:
    state, status = call.services.replica.live_state(), call.services.replica.status()
    configured = state.voters if state is not None else None
    rows = {v.node: v for v in configured.voters} if configured is not None else {}
    unknown = VoterState("", "unknown", 0, 0, 0)
    found, urls = [], urls_of(state)
    for node in sorted({*status.voters, *rows, *states}):
        row = rows.get(node, Voter(node, "", call.services.voters.get(node, "")))
        seen = states.get(node, unknown)
        role = "leader" if node == status.leader_id else "voter" if node in status.voters else "-"
        lag = max(status.commit - seen.applied, 0) if seen is not unknown else 0
        found.append(
            VoterRow(
                node,
                row.raft,
                urls.get(node, row.url),
                row.log_id,
                role,
                seen.state,
                seen.match,
                lag,
                seen.silent_ms,
                seen.detail,
            )
        )
    return VoterList(found, configured.index if configured is not None else 0, status.leader_id)


class VoterChange(Requested, frozen=True, kw_only=True):
    node_id: Id


class VotersChanged(Struct, frozen=True):
    """The voters after the change, the entry that made it, and a sentence when that deserves a thought."""

    voters: list[str]
    index: int
    warning: str = ""


@route(
    "POST",
    "/admin/voters/add",
    "Make a follower a voter",
    scope=Scope.ADMIN,
    example=VoterChange(node_id="d"),
    answer=VotersChanged(["a", "b", "c", "d"], 1204, "4 voters survive no more failures than 3 do; use 3 or 5."),
    errors=("no_leader", "change_refused", "outcome_unknown", "unreachable", Code.NOT_FOUND),
)
async def add(call: Call, body: VoterChange) -> VotersChanged:
    """The follower begins a log, catches up over its raft port, and counts once it has. Of a voter that moved, the
    addresses are written down. Sent again under the same request id it takes effect once."""
    replica = _leading(call)
    state = replica.live_state()
    peer = state.peers.get(body.node_id)
    if peer is None:
        raise Problem(Code.NOT_FOUND, f"no node {body.node_id!r} is known; start it as a follower first")
    if peer.status is not PeerStatus.ALIVE:
        raise Problem("change_refused", f"{body.node_id} is {peer.status}, not alive; start it first")
    await noted(call, "voters.add", body.node_id)
    learner = await _learner(call, body.node_id, peer.address)
    voter = Voter(body.node_id, learner.raft, learner.url, learner.log_id)
    return _changed(await replica.add_voter(voter, request=_request(call, body), timeout_s=CATCH_UP_S))


@route(
    "POST",
    "/admin/voters/remove",
    "Let a voter vote no longer",
    scope=Scope.ADMIN,
    example=VoterChange(node_id="d"),
    answer=VotersChanged(["a", "b", "c"], 1210),
    errors=("no_leader", "change_refused", "outcome_unknown"),
)
async def remove(call: Call, body: VoterChange) -> VotersChanged:
    """A leader hands over before it is removed. The node goes on as a follower; its log is set aside."""
    replica = _leading(call)
    await noted(call, "voters.remove", body.node_id)
    return _changed(await replica.remove_voter(body.node_id, request=_request(call, body)))


class LearnFor(Struct, frozen=True, forbid_unknown_fields=True):
    """The cluster that asks."""

    cluster_id: Annotated[str, Meta(max_length=128)]


@route(
    "POST",
    "/raft/learn",
    "Begin a log here that may become a voter's",
    scope=Scope.NODE,
    example=LearnFor("demo"),
    answer=Learner("10.0.0.4:8771", "http://10.0.0.4:8770", "77ab"),
    errors=("change_refused", "forbidden", Code.CONFLICT),
)
async def learn(call: Call, body: LearnFor) -> Learner:
    """Sent by the leader to the node that it adds; by itself it changes nothing in the cluster."""
    services, caller = call.services, call.caller
    if caller.peer and caller.peer not in services.replica.status().voters:
        raise Problem("forbidden", f"{caller.peer} is no voter; a log is begun for the leader alone")
    own = services.replica.status().cluster_id
    if own != body.cluster_id:
        raise Problem(Code.CONFLICT, f"this node follows cluster {own or '?'}, not {body.cluster_id}")
    if services.learn is None:
        raise Problem("change_refused", "this node cannot begin a log")
    return await services.learn()


def _request(call: Call, body: VoterChange) -> str:
    return body.request_id or call.header(REQUEST_ID)


def _leading(call: Call) -> RaftReplica:
    """This node's replica, if it leads; the answer names who does otherwise."""
    replica = call.services.replica
    if not isinstance(replica, RaftReplica) or replica.status().role != "leader":
        raise NoLeader("the voters are changed at the leader")
    return replica


async def _learner(call: Call, node: str, address: str) -> Learner:
    """Ask a node to have a log ready, with this voter's own token: the operator's is nothing for a node to see."""
    services = call.services
    headers = {"content-type": "application/json"}
    body = msgspec.json.encode(LearnFor(services.replica.status().cluster_id))
    if services.http is None:
        raise Problem("unreachable", "this node asks no others")
    url, until = f"{address}/raft/learn", services.monotonic_s() + ASK_S
    while True:
        try:
            answer = await services.http.post(url, content=body, headers=headers, timeout=ASK_S)
        except httpx.HTTPError as error:
            raise Problem(
                "change_refused", f"{node} does not answer at {address} ({str(error) or type(error).__name__})"
            ) from None
        if answer.status_code != httpx.codes.UNAUTHORIZED or services.monotonic_s() > until:
            break
        # A leader that has just started draws its own token first, and the node has to hear of it.
        await asyncio.sleep(ASK_AGAIN_S)
    if answer.status_code != 200:
        problem = read_problem(answer.content)
        raise Problem("change_refused", f"{node} cannot become a voter: {problem.detail}")
    try:
        learner = msgspec.json.decode(answer.content, type=Learner)
        split_address(learner.raft)
        return learner
    except (*UNDECODABLE, ValueError) as error:
        raise Problem("change_refused", f"{node} at {address} gave an answer that is not understood: {error}") from None


def _changed(present: Configuration) -> VotersChanged:
    names = sorted(present.names)
    return VotersChanged(names, present.index, warning_about(len(names)))


def warning_about(count: int) -> str:
    """What to think of so many voters; empty when there is nothing to say."""
    if count == 1:
        return "one voter alone: when it is lost, so is the cluster; use 3 or 5."
    if count % 2 == 0:
        return f"{count} voters survive no more failures than {count - 1} do; use 3 or 5."
    return f"{count} voters make every commit wait for {count // 2 + 1} of them; use 3 or 5." if count > 7 else ""
