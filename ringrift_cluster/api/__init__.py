"""The HTTP face: thin routes over a replica, one file a noun. The only room that imports FastAPI."""

from ringrift_cluster.api.app import create_app
from ringrift_cluster.api.services import (
    AgentStatus,
    ApiLimits,
    Heartbeats,
    LoopStatus,
    Services,
    ShutdownOrder,
)

__all__ = [
    "AgentStatus",
    "ApiLimits",
    "Heartbeats",
    "LoopStatus",
    "Services",
    "ShutdownOrder",
    "create_app",
]
