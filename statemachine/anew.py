"""A state that goes on in a new cluster: restored from a backup, or from the voters that were left."""

from __future__ import annotations

import hashlib

import msgspec

from statemachine.machine import Machine
from statemachine.rows import VOTERS_KEY, Voters
from statemachine.state import Txn
from statemachine.values import Voter

#: more fences than any cluster gives out between a backup and the day it is needed
FENCE_LEAP = 1 << 32

_encode = msgspec.msgpack.Encoder().encode


def begin_anew(machine: Machine, cluster_id: str, voter: Voter, why: str) -> None:
    """Make the state that of a new cluster with one voter, at the same index.

    Fences leap, so that none is given out again that the old cluster gave out after this point. Jobs that were live
    stay so until their leases lapse on the cluster clock, which stands still until there is a leader. The digest
    differs from the old cluster's from here on.
    """
    txn = Txn(machine.state)
    txn.begin(machine.index, machine.state.cluster)
    txn.fence += FENCE_LEAP
    txn.voters.put(VOTERS_KEY, Voters(machine.index, "", (voter,)))
    txn.emit("ClusterBegunAnew", cluster_id, voter=voter.node, why=why)
    txn.commit()
    machine.chain = hashlib.sha256(machine.chain + _encode((cluster_id, txn.finish()))).digest()
