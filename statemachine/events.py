"""What happened, in the past tense, in the order of the log; the newest few thousand are kept."""

from __future__ import annotations

from msgspec.structs import replace

from statemachine.rows import Event
from statemachine.state import Txn


def emit(txn: Txn, kind: str, key: str, **detail: str) -> None:
    """Append an event to the ring. Empty details are left out."""
    cluster = txn.cluster
    seq = cluster.event_seq + 1
    txn.cluster = replace(cluster, event_seq=seq)
    kept = {k: v for k, v in detail.items() if v}
    txn.events.put(str(seq), Event(seq, txn.index, cluster.clock_ms, kind, key, kept))
    # Numbers are consecutive, so the one that falls out is known; more than one falls after the limit shrank.
    out = seq - txn.state.limits.events
    while out > 0 and txn.events.get(str(out)) is not None:
        txn.events.delete(str(out))
        out -= 1
