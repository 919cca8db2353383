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
_PAGE = "what a node knows is on one page; see GET /status, GET /peers and GET /admin/health"
_LOOPS = "what the leader does by itself is under `loops` in GET /status; what fails there is started again"
_COUNTS = "games are counted in the log, with the results that bring them; see GET /progress"
_QUEUE = "the queue is one table in the log; see GET /work/status, GET /work and GET /metrics"
_ADD = "work of every kind is an item of the queue; POST /work/add"
_CLAIM = "taking work changes the log, so it is no GET; POST /work/claim"
_JOBS = "see GET /jobs, and end one with POST /work/stop or POST /work/cancel"
_STUCK = "what is stuck returns to the queue by its lease; see POST /admin/jobs/reset-stale"
_SYNC = "nodes copy what is missing by themselves; see GET /sync/status, or hurry them with POST /admin/sync/trigger"
_FILES = "files are named by their sha256; see GET /artifacts and GET /manifest"
_BACK = "see GET /models, and go back to a former champion with POST /models/rollback"
_FORGET = "dead nodes are forgotten by themselves, others with POST /admin/peers/remove"

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
    "/elo/history": "see GET /elo/rankings",
    "/elo/progress/db": "see GET /elo/rankings",
    "/api/elo/leaderboard": "see GET /elo/rankings",
    "/health/gpu": "see GET /gpus",
    "/external_work": "memory that strangers hold on a GPU is in GET /gpus",
    "/metrics/prometheus": "see GET /metrics",
    "/dashboard": _PAGE,
    "/api/cluster/status": _PAGE,
    "/cluster/health": _PAGE,
    "/peer-health": _PAGE,
    "/stability": _PAGE,
    "/p2p/diagnostics": _PAGE,
    "/circuit-breakers/{action}": _PAGE,
    "/governor/status": _PAGE,
    "/subscriptions": _PAGE,
    "/connectivity/{name:any}": _RELAY,
    "/network/{action}": _RELAY,
    "/admin/clear_nat_blocked": _RELAY,
    "/loops/{name:any}": _LOOPS,
    "/status/parallelism": _LOOPS,
    "/game_counts": _COUNTS,
    "/refresh_game_counts": _COUNTS,
    "/data/summary": _COUNTS,
    "/cluster/data-summary": _COUNTS,
    "/training/status": _COUNTS,
    "/training/progress": _COUNTS,
    "/raft/work": _QUEUE,
    "/raft/jobs": _JOBS,
    "/work/metrics": _QUEUE,
    "/work/history": _QUEUE,
    "/work/populator": _QUEUE,
    "/work_queue": _QUEUE,
    "/dispatch/stats": _QUEUE,
    "/work/claim": _CLAIM,
    "/work/claim_training": _CLAIM,
    "/work/claim_evaluation": _CLAIM,
    "/work/peer_claim": "work is claimed from the one queue in the log; POST /work/claim",
    "/work/flush_stale": "stale items return to the queue by their leases; see POST /admin/jobs/reset-stale",
    "/work/add_batch": "POST /work/add takes one item, a list of them, or an object with `items`",
    "/work/claim_batch": "POST /work/claim takes `max_items`",
    "/gauntlet/claim": 'games of a gauntlet are ordinary items; POST /work/claim with work_types ["evaluation"]',
    "/gauntlet/execute": "games of a gauntlet are ordinary items; POST /gauntlet/run queues them",
    "/gauntlet/quick-eval": "POST /gauntlet/run takes the mode `quick`",
    "/gauntlet/status": "see GET /gauntlet/results",
    "/tournament/ssh_start": "POST /ssh_tournament/run",
    "/tournament/ssh_status": "GET /ssh_tournament/status",
    "/tournament/ssh_cancel": "POST /ssh_tournament/cancel",
    "/tournament/{action}": "a tournament is work like any other; POST /work/add, or on hosts POST /ssh_tournament/run",
    "/cmaes/{action}": "a search is work like any other; POST /work/add with a template such as gpu-cmaes",
    "/training/cmaes/start": "a search is work like any other; POST /work/add with a template such as gpu-cmaes",
    "/abtest/{action}": "POST /gauntlet/run tests a model against any `opponent`",
    "/improvement/{action}": "the loop runs by itself; see GET /progress",
    "/improvement_cycles/{action}": "the loop runs by itself; see GET /progress",
    "/autoscale/{action}": "the cluster neither rents machines nor gives them back",
    "/gpu/rankings": "see GET /gpus",
    "/nodes/table": "see GET /peers",
    "/trends/{action}": "figures over time are Prometheus's to keep; see GET /metrics",
    "/resource/{action}": "figures over time are Prometheus's to keep; see GET /metrics",
    "/api/selfplay/stats": _COUNTS,
    "/api/training/status": _COUNTS,
    "/api/canonical/{name:any}": _JOBS,
    "/rollback/{action}": _BACK,
    "/selfplay/start": _ADD,
    "/dispatch_selfplay": _ADD,
    "/training/start": _ADD,
    "/training/nnue/start": _ADD,
    "/pipeline/{action}": _ADD,
    "/training/update": "a job reports with POST /work/complete or POST /work/fail",
    "/api/jobs": _JOBS,
    "/api/jobs/submit": _ADD,
    "/api/jobs/{name:any}": _JOBS,
    "/restart_stuck_jobs": _STUCK,
    "/admin/reset_node_jobs": _STUCK,
    "/queue/clear-stale-targets": _STUCK,
    "/reduce_selfplay": "take a node out of placement with POST /admin/drain",
    "/cleanup": _FILES,
    "/cleanup/files": _FILES,
    "/data/inventory": _FILES,
    "/files/{name:any}": _FILES,
    "/delivery/{name:any}": _FILES,
    "/sync/file": _FILES,
    "/refresh_manifest": _SYNC,
    "/sync/start": _SYNC,
    "/sync/pull": _SYNC,
    "/sync/training": _SYNC,
    "/sync/job_update": _SYNC,
    "/backup/status": "a backup is written by ringrift-node backup FILE",
    "/start_job": "nodes run the jobs that the log assigns them; queue an item with POST /work/add",
    "/stop_job": "ask for it in the log: POST /work/stop, or POST /work/cancel for the whole item",
    "/job/kill": "ask for it in the log: POST /work/stop, or POST /work/cancel for the whole item",
    "/register": "a node joins when it starts: ringrift-node serve --cluster A,B,C",
    "/registry/{action}": "a node is known once it has joined; see GET /peers",
    "/admin/add_peer": "a node joins when it starts: ringrift-node serve --cluster A,B,C",
    "/admin/unretire": "a node that was forgotten joins again when it starts",
    "/admin/purge_retired": _FORGET,
    "/admin/purge_stale": _FORGET,
    "/git/status": "each node's release is in GET /peers",
    "/api/cluster/git/update": "code is not deployed through the cluster; install a release and restart the service",
    "/git/update": "code is not deployed through the cluster; install a release and restart the service",
}


def problem(path: str) -> Problem:
    return Problem("gone", f"{path.split('{')[0]}: {GONE[path]}")
