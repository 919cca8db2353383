"""The cluster from Python: one address is enough, the rest is found.

    from ringrift_cluster.client import Client, NewWork

    with Client("10.0.0.1:8770") as cluster:
        added = cluster.work_add(NewWork(work_type="selfplay", config="hex8_2p", template="selfplay"))
        print(cluster.why(added.work_id).sentence)

flows    one generator a route: what is sent, under which ids      streams  the same of routes that answer in a stream
session  whom to ask, when to ask again                            steps    what flows ask of their driver
clients  the blocking and the awaiting driver
"""

from ringrift_cluster.api.gauntlets import GauntletRun
from ringrift_cluster.api.items import NewWork
from ringrift_cluster.client.clients import AsyncClient, Client
from ringrift_cluster.client.errors import (
    ClientError,
    Conflict,
    Invalid,
    NotFound,
    OutcomeUnknown,
    Refused,
    Unauthorized,
    Unavailable,
    Unreachable,
)
from ringrift_cluster.problem import Problem

__all__ = [
    "AsyncClient",
    "Client",
    "ClientError",
    "Conflict",
    "GauntletRun",
    "Invalid",
    "NewWork",
    "NotFound",
    "OutcomeUnknown",
    "Problem",
    "Refused",
    "Unauthorized",
    "Unavailable",
    "Unreachable",
]
