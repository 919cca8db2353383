"""The one secret of a cluster, compared without telling how much of it was right."""

from __future__ import annotations

import hmac
from collections.abc import Mapping
from typing import Protocol


class HasHeaders(Protocol):
    @property
    def headers(self) -> Mapping[bytes, bytes]: ...


def carries_token(request: HasHeaders, token: str) -> bool:
    """Whether the request's bearer token is the cluster's."""
    scheme, _, given = request.headers.get(b"authorization", b"").partition(b" ")
    return scheme.lower() == b"bearer" and hmac.compare_digest(given.strip(), token.encode())
