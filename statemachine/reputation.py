"""What a peer is remembered for: failures and returns from silence. Both fade, and so does what follows from them.

an attempt that fails on it     one failure more, unless the program is as likely to blame (`widespread`)
an attempt that succeeds        half of the failures are forgiven
a half-life                     half of everything is forgotten
too many of either              it is held back: no new work for twice the dead time, then it may try again
"""

from __future__ import annotations

from itertools import islice

from statemachine.rows import Job, Peer, PeerStatus
from statemachine.settings import Timing
from statemachine.state import Txn

#: failures that the program causes, or the installation on one machine
AMBIGUOUS = frozenset({"user", "no_output"})
#: pending items that are looked at for failures of the same kind; those that were tried stand in front
MAX_LOOKED = 256


def faded(count: int, since_ms: int, now_ms: int, timing: Timing) -> int:
    """What is left of a count that was last written at `since_ms`."""
    return count >> min((now_ms - since_ms) // timing.failure_half_life_ms, 62)


def failures(peer: Peer, now_ms: int, timing: Timing) -> int:
    """How many failures still speak against a peer."""
    return faded(peer.failures, peer.failures_at_ms, now_ms, timing)


def hold_ms(timing: Timing) -> int:
    return 2 * timing.dead_after_ms


def widespread(txn: Txn, row: Job, error_class: str) -> bool:
    """Whether a failure speaks against the program rather than against the peer it failed on.

    It does once open items of its type and config have failed so on as many peers as make one item poisoned, or on
    all of a smaller fleet. Otherwise a broken template would hold every node back, and all other work with it;
    a broken installation is seen on its own node only, and is held back.
    """
    if error_class not in AMBIGUOUS:
        return False
    failed_on = {row.peer, *txn.work.require(row.work).failed_on}
    group = txn.state.index.group(row.work_type, row.config)
    for _, _, name in islice(group.queue if group is not None else (), MAX_LOOKED):
        item = txn.work.require(name)
        if item.error_class in AMBIGUOUS:
            failed_on.update(item.failed_on)
    alive = txn.state.index.peers_by_status[PeerStatus.ALIVE]
    return len(failed_on) >= max(2, min(txn.state.limits.poisoned_after_peers, alive))


def blame(txn: Txn, peer: str) -> None:
    """Count a failed attempt against the peer it ran on."""
    row = txn.peers.get(peer)
    if row is None:
        return
    now, limits = txn.now_ms, txn.state.limits
    count = failures(row, now, txn.state.timing) + 1
    row = txn.peers.change(peer, failures=count, failures_at_ms=now)
    if count >= limits.failures_before_hold:
        # What is left lets it try a few again before it is held anew.
        txn.peers.change(peer, failures=count // 2)
        hold(txn, row, f"{count} attempts failed on it lately")


def credit(txn: Txn, peer: str) -> None:
    """An attempt succeeded there: half of what speaks against the peer is forgiven."""
    row = txn.peers.get(peer)
    if row is not None and row.failures:
        left = failures(row, txn.now_ms, txn.state.timing) >> 1
        txn.peers.change(peer, failures=left, failures_at_ms=txn.now_ms)


def returned(txn: Txn, row: Peer) -> None:
    """A peer that was suspected or dead is heard again."""
    now, limits = txn.now_ms, txn.state.limits
    count = faded(row.flaps, row.flaps_at_ms, now, txn.state.timing) + 1
    row = txn.peers.change(row.peer, flaps=count, flaps_at_ms=now)
    if count >= limits.flaps_before_hold:
        hold(txn, row, f"it fell silent and came back {count} times lately")


def hold(txn: Txn, row: Peer, reason: str) -> None:
    """Leave a peer out of placement until its time is over; what it runs goes on."""
    until = txn.now_ms + hold_ms(txn.state.timing)
    txn.peers.change(row.peer, held_until_ms=max(until, row.held_until_ms), held_reason=reason)
    txn.emit("PeerHeld", row.peer, reason=reason, until_ms=str(until))


def let_go(txn: Txn, row: Peer, reason: str) -> None:
    txn.peers.change(row.peer, held_until_ms=0, held_reason="")
    txn.emit("PeerUnheld", row.peer, reason=reason)
