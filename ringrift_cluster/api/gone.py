"""Paths of the protocol that was here before, each with a sentence on what took its place."""

from __future__ import annotations

from ringrift_cluster.api.problems import Problem

_RAFT = "consensus runs on its own port between the voters; see GET /raft/state"
_GOSSIP = "membership is in the replicated log; see GET /peers"
_SWIM = "liveness is decided by heartbeats and the cluster clock; nodes POST /heartbeat, see GET /peers"
_ELECTION = "elections are Raft's own; see GET /election/leader, or hand over with POST /admin/election/start"
_RELAY = "a node opens its channel to a voter by itself; see GET /relay/status, ask through it with POST /relay/forward"
_VOTERS = "the voters are those of the Raft configuration; see GET /raft/state"
_ELO = "ratings are computed from the results in the log, so nothing is synchronised; POST /elo/match"

GONE: dict[str, str] = {
    "/raft/append": _RAFT,
    "/raft/vote": _RAFT,
    "/raft/lock/{name:any}": _RAFT,
    "/gossip": _GOSSIP,
    "/gossip/push": _GOSSIP,
    "/gossip/anti-entropy": _GOSSIP,
    "/serf/event": _GOSSIP,
    "/swim/ping": _SWIM,
    "/swim/indirect-ping": _SWIM,
    "/swim/members": _SWIM,
    "/swim/status": _SWIM,
    "/election": _ELECTION,
    "/election/vote": _ELECTION,
    "/election/heartbeat": _ELECTION,
    "/election/lease": _ELECTION,
    "/election/grant": _ELECTION,
    "/election/reset": _ELECTION,
    "/election/trigger": _ELECTION,
    "/election/start": _ELECTION,
    "/election/force_leader": "no leader can be forced; a majority elects one, POST /admin/election/start hands over",
    "/election/commitment-ack": _ELECTION,
    "/coordinator": _ELECTION,
    "/leader_announcement": _ELECTION,
    "/relay/register": _RELAY,
    "/relay/heartbeat": _RELAY,
    "/relay/enqueue": _RELAY,
    "/relay/peers": _RELAY,
    "/relay/health": _RELAY,
    "/voter-config": _VOTERS,
    "/voter-config/{action}": _VOTERS,
    "/elo/sync": _ELO,
    "/elo/merge": _ELO,
    "/elo/sync/{action}": _ELO,
    "/work/peer_claim": "work is claimed from the one queue in the log; POST /work/claim",
    "/work/flush_stale": "stale items return to the queue by their leases; see POST /admin/jobs/reset-stale",
    "/work/add_batch": "POST /work/add takes one item, a list of them, or an object with `items`",
    "/work/claim_batch": "POST /work/claim takes `max_items`",
    "/gauntlet/claim": 'games of a gauntlet are ordinary items; POST /work/claim with work_types ["evaluation"]',
    "/gauntlet/execute": "games of a gauntlet are ordinary items; POST /gauntlet/run queues them",
    "/start_job": "nodes run the jobs that the log assigns them; queue an item with POST /work/add",
    "/stop_job": "ask for it in the log: POST /work/stop, or POST /work/cancel for the whole item",
    "/job/kill": "ask for it in the log: POST /work/stop, or POST /work/cancel for the whole item",
    "/register": "a node joins when it starts: ringrift-node serve --cluster A,B,C",
    "/git/update": "code is not deployed through the cluster; install a release and restart the service",
}


def problem(path: str) -> Problem:
    return Problem("gone", f"{path.split('{')[0]}: {GONE[path]}")
