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
        r"RINGRIFT_MAX_JOB_REASSIGNMENT_ATTEMPTS",
        "`max_attempts` of a stage in config/KEY says it",
    ),
    (
        r"RINGRIFT_(WORK_QUEUE_\w+|QUEUE_MAX_\w+|MAX_CONCURRENT_EVALUATIONS)",
        "it is a setting of the whole cluster now: ringrift-node settings set limits",
    ),
    (r"RINGRIFT_(MAX_ACTIVE_PROCESSES|\w+_MAX_SELFPLAY)", "--max-processes and --cpu-slots say how much runs here"),
    (r"RINGRIFT_P2P_(MIN_MEMORY_GB|LOAD_AVG_MAX_MULT)", "jobs reserve the memory and the slots that they need"),
    (r"RINGRIFT_P2P_SPAWN_RATE_LIMIT", "--starts-per-s says how fast jobs are started"),
    (r"RINGRIFT_ELECTION_TIMEOUT", "--network says how far apart the voters are"),
    (
        r"RINGRIFT_(STALENESS|ELO_VELOCITY|CURRICULUM|QUALITY)_WEIGHT",
        "`weight` in config/KEY says it",
    ),
    (r"RINGRIFT_EXTRACTED_LOOPS", "a controller is turned off with ringrift-node settings set controller/NAME"),
    (
        r"RINGRIFT_(MIN_NODES|MAX_NODES|AUTOSCALE_DRY_RUN|SCALE_UP_\w+|SCALE_DOWN_\w+|TERMINATION_\w+|MIN_IDLE_\w+)",
        "the cluster neither rents machines nor gives them back",
    ),
    (r"RINGRIFT_FORCE_RELAY_MODE", "a node dials out to the voters and is asked through that connection"),
    (
        r"RINGRIFT_ADMIN_TOKEN",
        "--auth-token-file has the root token; ringrift-node token create makes others",
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
