"""Liveness: before a suspect is declared dead, look whether it answers somewhere else.

The clock moves peers from alive to suspect to dead. A node whose heartbeats do not get through, but which answers a
probe, is vouched for: it is spared from death (its leases are not extended by it).
"""

from __future__ import annotations

from collections.abc import Collection

from statemachine.commands import Command, VouchForPeer
from statemachine.rows import PeerStatus
from statemachine.state import State


def suspects(state: State) -> list[tuple[str, int, str]]:
    """(peer, incarnation, address) of suspects whose time is half over, and that have an address to probe."""
    half = state.timing.dead_after_ms // 2
    return [
        (p.peer, p.incarnation, p.address)
        for p in state.peers.values()
        if p.status is PeerStatus.SUSPECT
        and p.address
        and state.now_ms - max(p.heard_at_ms, p.vouched_at_ms) >= min(half, state.timing.suspect_after_ms)
    ]


def vouch(answered: Collection[tuple[str, int]], by: str) -> list[Command]:
    """Commands for the suspects that answered the probe of `by`."""
    return [VouchForPeer(peer=peer, incarnation=incarnation, by=by) for peer, incarnation in sorted(answered)]
