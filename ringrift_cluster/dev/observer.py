"""What there is to show, read over HTTP from whichever node answers."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import httpx

Json = dict[str, Any]


@dataclass(frozen=True)
class Picture:
    """One look at the cluster; empty where nobody answered."""

    status: Json = field(default_factory=dict)
    peers: list[Json] = field(default_factory=list)
    jobs: list[Json] = field(default_factory=list)
    models: list[Json] = field(default_factory=list)
    rankings: dict[str, list[Json]] = field(default_factory=dict)
    #: when it was taken, on the monotonic clock
    at_s: float = 0.0
    #: the node that answered
    source: str = ""

    @property
    def promotions(self) -> int:
        return sum(t["promotions"] for t in self.status.get("totals", {}).values())

    @property
    def counted_games(self) -> int:
        """Selfplay games in the totals: completed attempts, each once."""
        return sum(t["games"] for t in self.status.get("totals", {}).values())

    @property
    def games_in_play(self) -> int:
        """Games finished by attempts that still run."""
        return sum(j["counts"].get("games", 0) for j in self.jobs if j["work_type"] == "selfplay")


class Observer:
    """Asks the nodes in turn, and stays with the one that answers."""

    def __init__(self, urls: Sequence[str], http: httpx.AsyncClient) -> None:
        self._urls = list(urls)
        self._http = http

    async def look(self, previous: Picture, *, everything: bool) -> Picture | None:
        """A new picture; ratings and models only when `everything` (they change slowly)."""
        for _ in range(len(self._urls)):
            url = self._urls[0]
            try:
                return await self._look(url, previous, everything)
            except (httpx.HTTPError, KeyError, ValueError):
                # A node that is down or still catching up: the next one may know more.
                self._urls.append(self._urls.pop(0))
        return None

    async def _look(self, url: str, previous: Picture, everything: bool) -> Picture:
        status, jobs = await asyncio.gather(self._get(f"{url}/status"), self._get(f"{url}/jobs?limit=100"))
        peers, models, rankings = previous.peers, previous.models, previous.rankings
        if everything or not peers:
            answers = await asyncio.gather(
                self._get(f"{url}/peers?limit=200"),
                self._get(f"{url}/models?limit=500"),
                self._get(f"{url}/elo/rankings"),
            )
            peers, models, rankings = answers[0]["peers"], answers[1]["models"], answers[2]["configs"]
        return Picture(status, peers, jobs["active_jobs"], models, rankings, asyncio.get_running_loop().time(), url)

    async def _get(self, url: str) -> Json:
        answer = await self._http.get(url)
        answer.raise_for_status()
        body: Json = answer.json()
        return body
