"""Environment names of the former orchestrator that mean nothing any more, and what came in their place."""

from __future__ import annotations

import re
from collections.abc import Mapping

_RAFT = "consensus is always Raft"
_RETIRED: tuple[tuple[str, str], ...] = (
    (r"RINGRIFT_CONSENSUS_MODE", _RAFT),
    (r"RINGRIFT_MEMBERSHIP_MODE", "membership is the committed log"),
    (r"RINGRIFT_RAFT_ENABLED", _RAFT),
    (r"RINGRIFT_RAFT_(USE_MANUAL_TICK|COMPACTION_MIN_ENTRIES|AUTO_UNLOCK_TIME)", "the log tends to itself"),
    (r"RINGRIFT_SWIM_.+", "membership is the committed log"),
    (r"RINGRIFT_GOSSIP_.+", "there is no gossip"),
    (r"RINGRIFT_IS_COORDINATOR", "voters elect the leader; --cluster says who votes"),
    (r"RINGRIFT_P2P_AGENT_MODE", "every node runs an agent; --role follower keeps it from voting"),
    (r"RINGRIFT_COORDINATOR_URL", "every node finds the leader itself; --cluster names the voters"),
    (r"RINGRIFT_P2P_AUTO_UPDATE", "a node does not replace its own code"),
    (r"RINGRIFT_P2P_GIT_.+", "a node does not replace its own code"),
    (
        r"RINGRIFT_(P2P_HEARTBEAT_INTERVAL|P2P_PEER_TIMEOUT|WORK_CLAIM_TIMEOUT|JOB_\w+_TIMEOUT)",
        "it is a setting of the whole cluster now: ringrift-node settings set timing",
    ),
    (
        r"RINGRIFT_(WORK_QUEUE_\w+|QUEUE_MAX_\w+|MAX_JOB_REASSIGNMENT_ATTEMPTS|MAX_CONCURRENT_EVALUATIONS)",
        "it is a setting of the whole cluster now: ringrift-node settings set limits",
    ),
)


def retired(environ: Mapping[str, str]) -> list[str]:
    """One sentence for each variable of the former orchestrator that no longer means anything."""
    return [
        f"{name} is ignored: {reason}."
        for name in sorted(environ)
        for pattern, reason in _RETIRED
        if re.fullmatch(pattern, name)
    ]
