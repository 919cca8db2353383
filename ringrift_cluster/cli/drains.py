"""Nodes that leave: drained, watched until they are empty, put back, forgotten for good."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator
from typing import Annotated

import msgspec
import typer
from typer import Option

from ringrift_cluster.cli.call import Call, asks
from ringrift_cluster.cli.cluster import said
from ringrift_cluster.cli.options import EXIT_REFUSED, EXIT_USAGE, Node, Reason, fail
from ringrift_cluster.cli.output import console, emit_json
from ringrift_cluster.client import Client, Unavailable, Unreachable
from ringrift_cluster.client.errors import Conflict

#: how often the jobs of a node that is being drained are looked at
LOOK_S = 1.0
#: jobs that outlive the deadline by more than this have not ended as they were told to
OVERDUE_S = 300.0

_UNITS = {"": 1.0, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86_400.0}


def seconds(text: str) -> float:
    """`90`, `90s`, `10m`, `2h` or `1d` in seconds. Exits with a sentence when it is none of them."""
    found = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?)\s*([smhd]?)", text.strip())
    if found is None:
        raise fail(f"--deadline {text!r} is no span; write 90s, 10m or 2h.", EXIT_USAGE)
    return float(found[1]) * _UNITS[found[2]]


class Watched(msgspec.Struct, frozen=True):
    """What one look at a node's jobs saw: those that ended since the one before, and how many still run."""

    node: str
    ended: tuple[str, ...]
    running: int
    problem: str = ""


@asks
def drain(
    call: Call,
    node_id: Node,
    reason: Reason = "",
    deadline: Annotated[
        str, Option(help="Stop the jobs that still run after this: 90s, 10m, 2h. Left out: let them finish.")
    ] = "0",
    monitor: Annotated[bool, Option("--monitor", help="Show its jobs end, and return when it is empty.")] = False,
) -> None:
    """Take a node out of placement. With --monitor exit code 0: it is empty. 1: it was put back, or is overdue."""
    deadline_s = seconds(deadline)
    with call.client() as client:
        done = client.drain(node_id, reason=reason, deadline_s=deadline_s)
        if not monitor:
            call.emit(done, said(f"{node_id} gets no new work"))
            return
        last = Watched(node_id, (), 0)
        for last in watch(client, node_id, deadline_s):
            _show(last, call.as_json)
        if last.problem:
            raise typer.Exit(EXIT_REFUSED)


def watch(
    client: Client,
    node: str,
    deadline_s: float,
    monotonic_s: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
) -> Iterator[Watched]:
    """One value a change, the last one with no jobs or with a problem."""
    began, known = monotonic_s(), None
    while True:
        try:
            seen = client.peer(node)
        except (Unavailable, Unreachable):
            sleep(LOOK_S)  # the voters have no leader for a moment; the drain goes on without us
            continue
        live, problem = {job.job for job in seen.jobs}, ""
        if live and not seen.peer.draining:
            problem = f"{node} was put back into placement"
        elif live and deadline_s and monotonic_s() - began > deadline_s + OVERDUE_S:
            problem = f"{len(live)} jobs of {node} still run long after the deadline"
        ended = () if known is None else tuple(sorted(known - live))
        if known is None or ended or problem or not live:
            yield Watched(node, ended, len(live), problem)
        if problem or not live:
            return
        known = live
        sleep(LOOK_S)


def _show(value: Watched, as_json: bool) -> None:
    if as_json:
        emit_json(value)
        return
    out = console()
    for job in value.ended:
        out.print(f"{job} ended", markup=False)
    if value.problem:
        out.print(f"! {value.problem}", markup=False)
    elif value.running:
        out.print(f"{value.running} jobs run on {value.node}", markup=False)
    else:
        out.print(f"{value.node} is empty", markup=False)


@asks
def undrain(call: Call, node_id: Node) -> None:
    """Put a node back into placement."""
    with call.client() as client:
        call.emit(client.undrain(node_id), said(f"{node_id} takes work again"))


@asks
def retire(call: Call, node_id: Node, reason: Reason = "") -> None:
    """Forget a node for good, with its token. It must be drained, or dead, and its process must have ended."""
    with call.client() as client:
        try:
            done = client.remove_peer(node_id, reason)
        except Conflict as error:
            if not client.peer(node_id).peer.draining:
                raise
            hint = f"if its process has ended, ask again when `ringrift-node peers` shows {node_id} as suspect"
            raise fail(f"{error}; {hint}", EXIT_REFUSED) from error
        call.emit(done, said(f"{node_id} is no node of the cluster any more"))
