"""Liveness: before a suspect is declared dead, look whether it answers, from here or from somewhere else.

The clock moves peers from alive to suspect to dead. A node whose heartbeats do not get through, but which answers a
probe, is vouched for: it is spared from death (its leases are not extended by it). What the leader cannot reach it
lets other peers try, another few each time, so a broken path between two machines takes no third one for dead.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import blake2b
from heapq import nsmallest

from statemachine.commands import Command, VouchForPeer
from statemachine.rows import SSH, PeerStatus
from statemachine.state import State

#: suspects probed in one round, and peers that are asked about one that does not answer the leader
PROBES = 64
HELPERS = 3


@dataclass(frozen=True, slots=True)
class Suspect:
    peer: str
    incarnation: int
    address: str
    #: (peer, address) of those that are asked when it does not answer the leader
    helpers: tuple[tuple[str, str], ...]


def suspects(state: State, leader: str) -> list[Suspect]:
    """Suspects whose time is half over, and that have an address to probe.

    A host without an agent has none: at its gateway's address only the gateway answers.
    """
    half = state.timing.dead_after_ms // 2
    late = [
        p
        for p in state.peers.values()
        if p.status is PeerStatus.SUSPECT
        and p.address
        and p.role != SSH
        and state.now_ms - max(p.heard_at_ms, p.vouched_at_ms) >= min(half, state.timing.suspect_after_ms)
    ][:PROBES]
    if not late:
        return []
    alive = [p for p in state.peers.values() if p.status is PeerStatus.ALIVE and p.role != SSH]
    able = [(p.peer, p.address) for p in alive if p.address and p.peer != leader]

    def draw(suspect: str) -> tuple[tuple[str, str], ...]:
        def rank(one: tuple[str, str]) -> bytes:
            return blake2b(f"{suspect} {one[0]} {state.now_ms}".encode(), digest_size=8).digest()

        return tuple(nsmallest(HELPERS, able, key=rank))

    return [Suspect(p.peer, p.incarnation, p.address, draw(p.peer)) for p in late]


def vouch(answered: Mapping[tuple[str, int], str]) -> list[Command]:
    """Commands for the suspects (peer, incarnation) that answered, by the node that heard them."""
    return [VouchForPeer(peer=peer, incarnation=number, by=by) for (peer, number), by in sorted(answered.items())]
