"""What a node shows at the doors of other nodes: its own token, which is good for what its agent does and no more.

    the configured token      shown to voters only, until the node has a token of its own
    `node:ID` in the log      drawn anew at each start of a node that has the configured token
    <data-dir>/node-token     bought once with a join token by a node that has not

A token is shown to voters alone. Any other node, from which it fetches a file, gets a proof of it (see `locks`).
"""

from __future__ import annotations

import asyncio
import logging
import os
import random
from collections.abc import Callable, Generator, Iterable, Mapping
from pathlib import Path

import httpx
import msgspec

from ringrift_cluster.api.locks import proof
from ringrift_cluster.api.tokens import Joining, fresh_secret, hash_of
from ringrift_cluster.client.errors import problem_of
from ringrift_cluster.identity import OWN_TOKEN_FILE as FILE
from ringrift_cluster.members import urls_of
from ringrift_cluster.replica import Replica, ReplicaError
from statemachine.commands import CreateToken, RevokeToken, encode_command
from statemachine.errors import Rejected
from statemachine.tokens import name_of
from statemachine.values import Scope

log = logging.getLogger("ringrift.badge")

#: a node looks this often whether its token is still good
EVERY_S = 15.0
SOON_S = 0.5
JOIN_TIMEOUT_S = 5.0
JOIN_PAUSE_S = 2.0


class JoinRefused(Exception):  # noqa: N818 - an answer
    """The cluster does not let this node in; the text says why."""


class Badge(httpx.Auth):
    """The authorization of a node's own requests. `voters` are the base URLs that the configured token may go to.

    Where nodes speak TLS (`sealed`), no token leaves for an address without it, a caller's own included: addresses
    are what nodes say of themselves.
    """

    def __init__(
        self, node_id: str, root: str | None, own: str | None, voters: Iterable[str], *, sealed: bool = False
    ) -> None:
        self._sealed = sealed
        self._node_id = node_id
        self._root = root
        self._own = own
        self._drawn = fresh_secret()
        self._voters = self._origins(voters)

    @property
    def joined(self) -> bool:
        """Whether the node lives by a token of the log alone."""
        return self._root is None and self._own is not None

    def take(self, own: str) -> None:
        """Show this token from now on."""
        self._own = own

    def auth_flow(self, request: httpx.Request) -> Generator[httpx.Request, httpx.Response, None]:
        if self._sealed and (self._own or self._root):
            # Whoever has not said yet that it speaks TLS is asked under it: without a token it would refuse anyway, and
            # while a cluster moves to TLS it takes both.
            request.url = request.url.copy_with(scheme="https")
        if self._sealed and request.url.scheme != "https":
            request.headers.pop("authorization", None)
        elif "authorization" not in request.headers:
            trusted = _origin(request.url) in self._voters
            if trusted and (token := self._own or self._root):
                request.headers["authorization"] = f"Bearer {token}"
            elif self._own:
                request.headers["authorization"] = proof(self._node_id, hash_of(self._own), request.url.path)
        yield request

    def _origins(self, urls: Iterable[str]) -> frozenset[tuple[str, str, int]]:
        return frozenset(_origin(httpx.URL(url), sealed=self._sealed) for url in urls)

    async def keep(self, replica: Replica) -> None:
        """See that this node has a good token of its own, and knows the voters, for ever."""
        while True:
            good = await self._mint(replica)
            await asyncio.sleep(EVERY_S if good else SOON_S)

    async def _mint(self, replica: Replica) -> bool:
        """Make the drawn token known unless it is; whether it is. One that was bought needs no other."""
        state = replica.live_state()
        if state is None or not replica.status().ready:
            return False
        # Voters that were added later are voters too.
        self._voters |= self._origins(urls_of(state).values())
        if self._root is None:
            return True
        row = state.tokens.get(name_of(self._node_id))
        if row is not None and row.sha256 == hash_of(self._drawn):
            if not row.ended:
                self._own = self._drawn
                return True
            # Somebody revoked it. This node has the configured token, so it may have another.
            self._own, self._drawn = None, fresh_secret()
        commands: list[CreateToken | RevokeToken] = []
        if row is not None and not row.ended:
            commands.append(RevokeToken(row.name, "its node was started anew"))
        name = name_of(self._node_id)
        commands.append(CreateToken(name, Scope.NODE, hash_of(self._drawn), self._node_id))
        try:
            proposed = await replica.propose([encode_command(command) for command in commands])
        except ReplicaError as error:
            log.info("event=own_token_waits reason=%s", error)
            return False
        for result in proposed.results:
            if isinstance(result, Rejected):
                log.warning("event=own_token_refused reason=%s", result.detail)
        return False


def _origin(url: httpx.URL, *, sealed: bool = False) -> tuple[str, str, int]:
    """`sealed`: the same place under TLS."""
    return "https" if sealed else url.scheme, url.host, url.port or (443 if url.scheme == "https" else 80)


# --- joining ----------------------------------------------------------------------------------------


def stored(data_dir: Path) -> str | None:
    """The token this node bought earlier. Raises OSError."""
    try:
        return (data_dir / FILE).read_text(encoding="ascii").strip() or None
    except FileNotFoundError:
        return None


async def join(
    http: httpx.AsyncClient,
    voters: Mapping[str, str],
    node_id: str,
    token: str,
    data_dir: Path,
    leaving: Callable[[], bool],
) -> str | None:
    """Trade the join token for this node's own, which stays in the data directory; None when told to leave.

    Voters that cannot answer are asked again for ever. Raises JoinRefused, OSError.
    """
    draft = data_dir / f"{FILE}.draft"
    # The secret is on disk before it is good for anything: a repeat after a crash is the same request.
    secret = _read_or_draw(draft)
    body = msgspec.json.encode(Joining(node_id, hash_of(secret)))
    headers = {"authorization": f"Bearer {token}", "content-type": "application/json"}
    while not leaving():
        refusals: list[str] = []
        for voter, url in voters.items():
            try:
                answer = await http.post(f"{url}/tokens/join", content=body, headers=headers, timeout=JOIN_TIMEOUT_S)
            except httpx.HTTPError as error:
                log.info("event=join_waits voter=%s reason=%s", voter, error)
                continue
            if answer.status_code == 200:
                draft.rename(data_dir / FILE)
                log.info("event=joined_with_token voter=%s", voter)
                return secret
            problem = problem_of(answer.status_code, answer.content)
            log.info("event=join_waits voter=%s code=%s reason=%s", voter, problem.code, problem.detail)
            if answer.status_code in (400, 403, 409) or problem.code == "token_over":
                if await _is_good(http, url, secret):
                    # An earlier request came through and its answer was lost; the join token has ended since.
                    draft.rename(data_dir / FILE)
                    log.info("event=joined_with_token voter=%s", voter)
                    return secret
                draft.unlink()
                raise JoinRefused(f"voter {voter} does not let {node_id} in: {problem.detail}")
            if answer.status_code == 401:
                refusals.append(problem.detail)
        if len(refusals) == len(voters):
            # One voter may not have applied a young token yet; all of them have.
            raise JoinRefused(f"no voter lets {node_id} in: {refusals[0]}")
        await asyncio.sleep(JOIN_PAUSE_S * random.uniform(0.5, 1.0))
    return None


async def _is_good(http: httpx.AsyncClient, url: str, secret: str) -> bool:
    """Whether a voter knows the secret for a token that is good."""
    try:
        answer = await http.get(f"{url}/peers", headers={"authorization": f"Bearer {secret}"}, timeout=JOIN_TIMEOUT_S)
    except httpx.HTTPError:
        return False
    return answer.status_code == httpx.codes.OK


def _read_or_draw(path: Path) -> str:
    """The secret in the file, or a fresh one written to it for its owner alone. Raises OSError."""
    try:
        if found := path.read_text(encoding="ascii").strip():
            return found
    except FileNotFoundError:
        pass
    secret = fresh_secret()
    path.unlink(missing_ok=True)
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="ascii") as file:
        file.write(f"{secret}\n")
        file.flush()
        os.fsync(file.fileno())
    return secret
