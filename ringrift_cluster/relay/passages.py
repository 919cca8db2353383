"""What may pass through a channel. Nothing else does: a channel is no proxy."""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from statemachine.values import Scope


@dataclass(frozen=True, slots=True)
class Passage:
    """One endpoint of a follower that others may ask; `needs` is what a caller's token must be good for."""

    method: str
    #: as the endpoint's own
    template: str
    needs: Scope
    _pattern: re.Pattern[str] = field(init=False)

    def __post_init__(self) -> None:
        before, _, after = self.template.partition("{job_id}")
        name = r"[^\x00-\x1f\x7f]+" if "{job_id}" in self.template else ""
        object.__setattr__(self, "_pattern", re.compile(re.escape(before) + name + re.escape(after)))

    def fits(self, method: str, path: str) -> bool:
        return method == self.method and self._pattern.fullmatch(path) is not None


PASSAGES = (
    Passage("GET", "/jobs/{job_id}/log", Scope.READ),
    Passage("GET", "/health", Scope.READ),
    Passage("GET", "/ready", Scope.READ),
    Passage("GET", "/status", Scope.READ),
    Passage("GET", "/metrics", Scope.READ),
    Passage("GET", "/admin/health", Scope.READ),
    Passage("POST", "/admin/shutdown", Scope.ADMIN),
    Passage("POST", "/admin/restart", Scope.ADMIN),
    Passage("POST", "/workload/try", Scope.ADMIN),
)


def passage(method: str, path: str) -> Passage | None:
    """The passage that a request may take."""
    return next((one for one in PASSAGES if one.fits(method, path)), None)
