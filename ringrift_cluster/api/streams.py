"""Streams that stay open: how many there may be, and when they end."""

from __future__ import annotations

from ringrift_cluster.api.problems import Problem
from ringrift_cluster.api.services import Services


def admit(services: Services) -> None:
    """Refuse a stream beyond the bound. The route's `stream=True` counts it while it is open."""
    bound = services.limits.streams
    if services.streams >= bound:
        raise Problem("too_many_streams", f"{bound} streams are open here; ask another node or come back")
