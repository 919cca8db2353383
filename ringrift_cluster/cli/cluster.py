"""The cluster and its nodes: status, peers, leader, settings, events."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import msgspec
import typer
from rich.console import RenderableType
from typer import Argument, Option

from ringrift_cluster import bootstrap
from ringrift_cluster.api.admin import ShuttingDown, Transferred
from ringrift_cluster.api.peers import PeerList
from ringrift_cluster.api.raft import Leader
from ringrift_cluster.api.relay import RelayStatus
from ringrift_cluster.api.settings import SettingList, SettingView
from ringrift_cluster.api.status import Status
from ringrift_cluster.api.writes import Outcome
from ringrift_cluster.cli.call import Call, asks
from ringrift_cluster.cli.options import EXIT_USAGE, Reason, fail, why
from ringrift_cluster.cli.output import console, emit_json, pairs, short, size, span, table
from ringrift_cluster.client.errors import Conflict
from statemachine import settings as st
from statemachine.errors import UNDECODABLE
from statemachine.rows import Event, Peer

#: an age that says that there was no contact at all (a bound of what a node tells)
NEVER_MS = 10**9

settings_app = typer.Typer(no_args_is_help=True, help="What all nodes agree on; changed through the log.")


@asks
def status(call: Call) -> None:
    """The cluster on one page, as the asked node sees it."""
    with call.client() as client:
        call.emit(client.status(), status_lines)


def status_lines(value: Status) -> Iterable[RenderableType]:
    queue = value.work_queue.by_status
    yield f"node {value.node_id} ({value.role}) of cluster {value.cluster_id or '?'}, release {value.version}"
    leader = f"{value.leader_id} at {value.leader_address or '?'}" if value.leader_id else "none known"
    yield f"leader {leader}, term {value.term}; voters heard {len(value.voters_heard)} of {len(value.voters)}"
    behind = f", {value.lag} behind" if value.lag else ""
    contact = f"last contact {span(value.contact_age_ms)} ago" if value.contact_age_ms < NEVER_MS else "no contact yet"
    yield f"applied {value.applied}{behind}, {contact}, digest {value.digest[:16]}"
    yield f"peers {value.alive_peers} alive of {value.total_peers}; jobs {pairs(value.jobs) or 'none'}"
    yield f"work {pairs(queue) or 'none'}"
    for sentence in (value.halted, value.read_only, value.exposure, *value.complaints, *value.refused.values()):
        if sentence:
            yield f"! {sentence}"
    if value.paused:
        yield f"! paused: {value.pause_reason or 'no reason given'}"
    if value.stalled is not None:
        yield f"! nothing runs: {value.stalled.sentence}"
    for alarm in value.alarms:
        yield f"! {alarm.sentence}"
    for sentence in _unwell(value):
        yield f"! {sentence}"
    if value.totals:
        yield ""
        yield table(
            ["config", "games ", "positions ", "trained ", "generations ", "promotions ", "champion"],
            (
                [
                    key,
                    t.games,
                    t.positions,
                    t.training_jobs,
                    t.generations,
                    t.promotions,
                    short(value.champions.get(key, "-")),
                ]
                for key, t in sorted(value.totals.items())
            ),
        )


def _unwell(value: Status) -> Iterator[str]:
    """What does not work on the node that was asked, part by part."""
    agent, files = value.managers.job_manager, value.managers.sync_planner
    if value.leader_id is None:
        yield "no leader is known here: a majority of the voters must run and hear each other (GET /raft/state on each)"
    elif not value.ready and value.halted is None:
        yield "this node has still to catch up with the log"
    if not agent.healthy:
        yield f"this node runs no jobs: {agent.not_ready or 'its agent has not joined the cluster yet'}"
    if files.last_error:
        yield f"the last look at this node's files failed: {files.last_error}"
    for name, loop in sorted(value.loops.items()):
        if loop.enabled and loop.last_error:
            yield f"the last run of {name} failed: {loop.last_error}"


@asks
def peers(call: Call) -> None:
    """All known nodes."""
    with call.client() as client:
        found = client.peers()
        clock_ms = 0 if call.as_json else client.raft_state().clock_ms
        call.emit(found, lambda value: peer_lines(value, clock_ms))


def peer_lines(value: PeerList, clock_ms: int) -> Iterable[RenderableType]:
    yield table(
        ["node", "status", "role", "heard ", "slots ", "gpus ", "memory ", "release", "address", "note"],
        (
            [
                row.peer,
                row.status,
                row.role,
                span(clock_ms - row.heard_at_ms),
                row.facts.cpu_slots,
                len(row.facts.gpus),
                size(row.facts.ram_bytes),
                row.facts.release,
                row.address,
                _note(row),
            ]
            for row in value.peers
        ),
    )
    yield f"{value.alive} alive of {value.total}"


def _note(row: Peer) -> str:
    drained = f"draining: {row.drain_reason}".rstrip(": ") if row.draining else ""
    held = f"held back: {row.held_reason}" if row.held_until_ms else ""
    left = f"left: {row.left}" if row.left else ""
    blamed = f"{row.failures} failures" if row.failures else ""
    return "; ".join(part for part in (left, drained, held, row.facts.not_ready, blamed) if part)


@asks
def leader(
    call: Call,
    transfer: Annotated[bool, Option("--transfer", help="Hand leadership over.")] = False,
    to: Annotated[str | None, Option("--to", help="The voter that should lead; with --transfer.")] = None,
) -> None:
    """Who leads, and who shall with --transfer.

    Leadership goes to the most up-to-date voter unless --to names one.
    """
    with call.client() as client:
        if transfer or to:
            call.emit(client.transfer_leadership(to), _now_leads)
        else:
            call.emit(client.leader(), _leads)


def _now_leads(value: Transferred) -> Iterable[RenderableType]:
    yield f"{value.leader_id} leads now"


def _leads(value: Leader) -> Iterable[RenderableType]:
    yield f"{value.leader_id or 'nobody'} leads in term {value.term}, at {value.address or '?'}"


def said(sentence: str) -> Callable[[Outcome], Iterable[RenderableType]]:
    """A sentence about an outcome, with its place in the log."""
    return lambda outcome: [f"{sentence} (entry {outcome.index})"]


@asks
def pause(call: Call, reason: Reason = "") -> None:
    """Stop placement, claims and policies. What runs goes on."""
    with call.client() as client:
        call.emit(client.pause(True, reason), said("the cluster is paused"))


@asks
def resume(call: Call) -> None:
    """Go on after a pause."""
    with call.client() as client:
        call.emit(client.pause(False), said("the cluster goes on"))


NodeId = Annotated[str | None, Argument(help="The node; the one at --api when left out.")]
LogReason = Annotated[str, Option(help="Why, for the log.")]


@asks
def shutdown(
    call: Call,
    node_id: NodeId = None,
    reason: LogReason = "",
    stop_jobs: Annotated[bool, Option("--stop-jobs", help="Stop its jobs instead of leaving them.")] = False,
) -> None:
    """Stop a node, also one that nobody can dial. Its jobs go on and are adopted, unless --stop-jobs is given."""
    with _to(call, node_id).client() as client:
        stopping = client.shutdown(reason=reason, stop_jobs=stop_jobs, node_id=node_id)
        call.emit(stopping, _leaves)


@asks
def restart(call: Call, node_id: NodeId = None, reason: LogReason = "") -> None:
    """Have a node's process begin anew. It runs the release that is installed there now; its jobs go on."""
    with _to(call, node_id).client() as client:
        call.emit(client.restart(reason=reason, node_id=node_id), _leaves)


def _to(call: Call, node_id: str | None) -> Call:
    """An order without a name is for the first address and for no other."""
    return call if node_id else replace(call, api=call.api.split(",")[0])


def _leaves(value: ShuttingDown) -> Iterable[RenderableType]:
    yield f"{value.node_id}: {value.detail}"


@asks
def channels(call: Call) -> None:
    """Which follower has its channel at which voter."""
    with call.client() as client:
        call.emit(client.channels(), _channel_lines)


def _channel_lines(value: RelayStatus) -> Iterable[RenderableType]:
    yield table(
        ["node", "voter", "open for ", "asked ", "answering "],
        ([c.node_id, c.voter, span(round(c.open_for_s * 1000)), c.asked, c.answering] for c in value.channels),
    )
    if value.not_asked:
        yield f"! not asked, since they do not answer: {', '.join(value.not_asked)}"


@settings_app.command("get")
@asks
def settings_get(
    call: Call,
    name: Annotated[str | None, Argument(help="One setting; all of them when left out.")] = None,
) -> None:
    """Show cluster settings."""
    with call.client() as client:
        if name is None:
            call.emit(client.settings(), _setting_table)
        else:
            call.emit(client.setting(name), _setting_text)


def _setting_table(value: SettingList) -> Iterable[RenderableType]:
    yield table(
        ["setting", "version ", "by", "value"],
        ([row.name, row.version, row.by, bytes(row.value).decode()] for row in value.settings),
    )


def _setting_text(value: SettingView) -> Iterable[RenderableType]:
    yield f"# {value.name}, version {value.version}{f' by {value.by}' if value.by else ''}"
    yield msgspec.json.format(bytes(value.value).decode(), indent=2)


@settings_app.command("set")
@asks
def settings_set(
    call: Call,
    name: Annotated[
        str,
        Argument(help="timing, limits, retention, artifacts, config/KEY, template/NAME, host/NAME, controller/NAME."),
    ],
    value: Annotated[str, Argument(help="JSON, or @FILE, or - for stdin.")],
    expected_version: Annotated[int, Option(help="Only if nobody changed it since; -1 is whatever is there.")] = -1,
    by: Annotated[str, Option(help="Who, for people.")] = "cli",
) -> None:
    """Change a cluster setting. The whole value is given; fields left out get their defaults."""
    text = read_text(value)
    try:
        encoded = msgspec.Raw(msgspec.json.encode(msgspec.json.decode(text)))
    except UNDECODABLE as error:
        raise fail(f"the value is not JSON: {error}.", EXIT_USAGE) from error
    with call.client() as client:
        done = client.change_setting(name, encoded, expected_version=expected_version, by=by)
        call.emit(done, said(f"{name} is set"))


class Seeded(msgspec.Struct, frozen=True):
    """Which settings of a profile were made, and which existed and were left as they are."""

    profile: str
    made: list[str]
    kept: list[str]


@settings_app.command("seed")
@asks
def settings_seed(
    call: Call,
    profile: Annotated[bootstrap.Profile, Argument(help="fleet: GPU machines; demo: two cores.")],
) -> None:
    """Give a new cluster its first settings; what exists is left as it is."""
    made: list[str] = []
    kept: list[str] = []
    with call.client() as client:
        for name, value in bootstrap.PROFILES[profile]().items():
            encoded = msgspec.Raw(st.encode(value).encode())
            try:
                client.change_setting(name, encoded, expected_version=0, by="bootstrap")
            except Conflict:
                kept.append(name)
            else:
                made.append(name)
        call.emit(Seeded(str(profile), made, kept), _seeded_lines)


def _seeded_lines(value: Seeded) -> Iterable[RenderableType]:
    yield f"{len(value.made)} settings of profile {value.profile} made" + (
        f", {len(value.kept)} existed and were left as they are" if value.kept else ""
    )


def read_text(value: str) -> str:
    """The text itself, or what @FILE or - (stdin) holds."""
    if value == "-":
        return sys.stdin.read()
    if not value.startswith("@"):
        return value
    try:
        return Path(value[1:]).expanduser().read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise fail(f"{value[1:]} cannot be read ({why(error)}).", EXIT_USAGE) from error


@asks
def events(
    call: Call,
    follow: Annotated[bool, Option("--follow", "-f", help="Go on with what happens next.")] = False,
    since: Annotated[int, Option(help="Only events after this number; -1 is from now on.")] = 0,
    kinds: Annotated[str, Option(help="Only these kinds, separated by commas.")] = "",
    key: Annotated[str, Option(help="Only events of this thing.")] = "",
) -> None:
    """What happened, oldest first."""
    wanted = [kind for kind in kinds.split(",") if kind]
    with call.client() as client:
        out = console()
        clock_ms = 0 if call.as_json else client.raft_state().clock_ms
        for event in client.events(since=since, follow=follow, kinds=wanted, key=key):
            if call.as_json:
                emit_json(event)
            else:
                out.print(event_line(event, clock_ms), markup=False)


def event_line(event: Event, clock_ms: int) -> str:
    """What happened, and how long before the cluster clock stood at `clock_ms`."""
    ago = f"{span(clock_ms - event.at_ms)} ago" if event.at_ms < clock_ms else "now"
    return f"{event.seq:>8} {ago:>11} {event.kind} {event.key} {pairs(event.detail)}".rstrip()
