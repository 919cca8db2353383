"""Where connections wait until they have proven that they come from a voter. It is small, and never full.

Whoever would make it overflow takes the place of the least promising one, so nobody can hold the voters out by
holding every place. Least promising is, in this order: who has not yet named a voter, who comes from an address
that no voter has come from, who shares an address with the most others, who came first.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from ipaddress import IPv6Address, ip_address

#: connections that may wait to prove themselves
MAX_STRANGERS = 64


@dataclass(eq=False, slots=True)
class Stranger:
    """One unproven connection; `leave` ends it at once."""

    origin: str
    leave: Callable[[], object]
    #: it has said that it is one of the voters, which proves nothing yet
    greeted: bool = False


class Lobby:
    """The unproven connections of one voter."""

    def __init__(self, places: int = MAX_STRANGERS) -> None:
        self._places = places
        self._strangers: list[Stranger] = []
        #: where each voter last proved itself from
        self._origins: dict[str, str] = {}

    def __len__(self) -> int:
        return len(self._strangers)

    def enter(self, stranger: Stranger) -> Stranger | None:
        """Take one in; returns who has to leave for it, if anyone."""
        self._strangers.append(stranger)
        if len(self._strangers) <= self._places:
            return None
        crowd = Counter(s.origin for s in self._strangers)
        known = set(self._origins.values())
        older = self._strangers[:-1]
        # Of equals, max returns the one that came first.
        least = max(older, key=lambda s: (not s.greeted, s.origin not in known, crowd[s.origin]))
        self._strangers.remove(least)
        return least

    def leave(self, stranger: Stranger) -> None:
        """It is gone, or no stranger any more."""
        if stranger in self._strangers:
            self._strangers.remove(stranger)

    def proven(self, stranger: Stranger, voter: str) -> None:
        """It is `voter`, so its address is one that voters come from."""
        self._origins[voter] = stranger.origin
        self.leave(stranger)


def origin_of(address: str) -> str:
    """Whom an address counts for: an IPv6 host owns its whole /64."""
    try:
        ip = ip_address(address.partition("%")[0])
    except ValueError:
        return address
    if isinstance(ip, IPv6Address):
        return str(ip.ipv4_mapped) if ip.ipv4_mapped else ip.packed[:8].hex()
    return str(ip)
