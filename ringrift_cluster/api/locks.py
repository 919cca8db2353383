"""Who asks, and whether they may: tokens checked against the state that this node has applied.

    bearer token -- sha256 --> row of the table `tokens` -- its scope --> what the route asks for

A look-up is one hash and one dictionary access. The table is keyed by the hash of the secret, so how long a
miss takes says nothing about any secret; the configured token is compared in constant time.

Nodes read files of each other with a proof in place of a token, since they have no reason to trust the node
they ask: an HMAC of the path under the hash of their secret, which is good for that path and for nothing else.
"""

from __future__ import annotations

import hashlib
import hmac
import logging
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from msgspec import Struct, structs

from ringrift_cluster.api.problems import Problem
from ringrift_cluster.relay.frames import Vouched
from ringrift_cluster.relay.inside import VOUCHED
from statemachine import commands as c
from statemachine.rows import STORE, Token
from statemachine.state import State
from statemachine.tokens import GRANTS, ROOT, name_of
from statemachine.values import Scope

log = logging.getLogger("ringrift.locks")

#: after this long without a leader a node that has no token of its operator's trusts those of its old state no more
CUT_OFF_MS = 3_600_000
#: refusals are counted each, and logged at most this often
LOG_EVERY_S = 1.0


@dataclass(frozen=True, slots=True)
class Caller:
    """Whose token a request carries. `peer` is the only node that it may speak for, when there is one."""

    name: str
    scope: Scope
    peer: str = ""


#: what one node may ask of another with a proof. Whoever was shown one has the file itself, or is the node that is
#: asked to begin a log, so nothing is gained by showing it again. A probe tells nobody more than a try would.
PROVABLE = frozenset({"GET /artifacts/{digest}", "GET /probes/{peer_id}", "POST /raft/learn"})
PROOF = "Proof"

#: the caller where no token is asked for
ANYBODY = Caller("", Scope.ADMIN)
_ROOT = Caller(ROOT, Scope.ADMIN)


class Asking(Protocol):
    """What is looked at of a request."""

    @property
    def headers(self) -> Mapping[bytes, bytes]: ...

    @property
    def scope(self) -> Mapping[str, Any]: ...


def proof(node_id: str, sha256: str, path: str) -> str:
    """The authorization with which a node reads `path` of another node; `sha256` is of its secret, in hex."""
    mac = hmac.digest(bytes.fromhex(sha256), f"ringrift read {node_id} {path}".encode(), hashlib.sha256)
    return f"{PROOF} {node_id} {mac.hex()}"


def _timely(row: Token, state: State, silence_ms: int) -> Token:
    """The row, over when its time has come: the clock moves a bounded number of rows at a time, and not at all on a
    node that hears of no leader."""
    if not row.ended and 0 < row.expires_at_ms <= state.now_ms + silence_ms:
        return structs.replace(row, ended="expired")
    return row


class Locks:
    """The doors of one node. Without a root token of its own (a follower) only tokens of the log open them."""

    def __init__(
        self,
        root: str | None,
        state: Callable[[], State | None],
        monotonic_s: Callable[[], float],
        contact_age_ms: Callable[[], int] = int,
        ready: Callable[[], bool] = lambda: True,
    ) -> None:
        """`contact_age_ms` is since the leader was last heard of here, `ready` whether this node has caught up."""
        self._root = root.encode() if root else None
        self._state = state
        self._monotonic_s = monotonic_s
        self._began_s = monotonic_s()
        self._contact_age_ms = contact_age_ms
        self._caught_up = ready
        self._logged_s = -LOG_EVERY_S
        self._unlogged = 0
        #: refusals by their reason
        self.refused: Counter[str] = Counter()

    def admit(self, asking: Asking, needed: Scope, route: str) -> Caller:
        """The caller, when its token is good for `needed`. Raises Problem: unauthorized, token_over, forbidden."""
        scheme, _, given = asking.headers.get(b"authorization", b"").partition(b" ")
        given = given.strip()
        row: Token | None
        if (vouched := asking.scope.get(VOUCHED)) is not None:
            row = self._vouched(asking, vouched, route)
        elif scheme.lower() == b"proof" and route in PROVABLE:
            row = self._proven(asking, given, route)
        else:
            row = self._shown(asking, scheme, given, route)
        if row is None:
            return _ROOT
        if row.ended:
            raise self._refusal(asking, route, "over", "token_over", f"token {row.name!r} is over: {row.ended}")
        if needed not in GRANTS[row.scope]:
            sentence = f"token {row.name!r} has the scope {row.scope}, this needs {needed}"
            raise self._refusal(asking, route, "scope", "forbidden", sentence)
        return Caller(row.name, row.scope, row.peer)

    def _shown(self, asking: Asking, scheme: bytes, given: bytes, route: str) -> Token | None:
        """The row of the token that was sent, None for the configured one."""
        if scheme.lower() != b"bearer" or not given:
            raise self._refusal(
                asking, route, "missing", "unauthorized", "send a token as `Authorization: Bearer TOKEN`"
            )
        if self._root is not None and hmac.compare_digest(given, self._root):
            return None
        row = self._known(given)
        if row is None:
            raise self._unknown(asking, route, "no such token is known here")
        return row

    def _vouched(self, asking: Asking, caller: Vouched, route: str) -> Token | None:
        """The row of the caller that a voter names: as it is known here, else as the voter says."""
        if not caller.name:
            raise self._refusal(asking, route, "missing", "unauthorized", "the voter does not say whose request it is")
        if caller.name == ROOT:
            return None
        state = self._ready()
        row = state.tokens.get(caller.name)
        if row is None:
            return Token(caller.name, caller.scope, sha256="", created_at_ms=0, peer=caller.peer)
        return _timely(row, state, self._silence_ms())

    def _proven(self, asking: Asking, given: bytes, route: str) -> Token:
        """The row of the token that the sender has proven to have."""
        node = given.partition(b" ")[0].decode("ascii", "replace")
        state = self._ready()
        row = state.tokens.get(name_of(node))
        shown = f"{PROOF} ".encode() + given
        if row is None or not hmac.compare_digest(shown, proof(node, row.sha256, asking.scope["path"]).encode()):
            raise self._unknown(asking, route, "the proof is of no node's token known here")
        return _timely(row, state, self._silence_ms())

    def _known(self, given: bytes) -> Token | None:
        state = self._ready()
        row = state.index.tokens.get(hashlib.sha256(given).hexdigest())
        return _timely(row, state, self._silence_ms()) if row is not None else None

    def _unknown(self, asking: Asking, route: str, sentence: str) -> Problem:
        """A voter that starts has the state of its last snapshot: a token may be newer than that, and good."""
        if not self._caught_up():
            return Problem("not_ready", f"{sentence}, and this node has not caught up; ask again in a moment")
        return self._refusal(asking, route, "unknown", "unauthorized", sentence)

    def _ready(self) -> State:
        state = self._state()
        if state is None:
            raise Problem("not_ready", "this node has not got the cluster's state yet; ask again in a moment")
        if self._root is None and self._silence_ms() > CUT_OFF_MS:
            raise Problem(
                "not_ready",
                "this node has heard of no leader for over an hour, so it cannot know which tokens are still good; "
                "ask a voter, or look at this node's log on its machine",
            )
        return state

    def _silence_ms(self) -> int:
        """How long nothing was heard of a leader, while this node was there to hear it."""
        return min(self._contact_age_ms(), int((self._monotonic_s() - self._began_s) * 1000))

    def _refusal(self, asking: Asking, route: str, reason: str, code: str, sentence: str) -> Problem:
        self.refused[reason] += 1
        now = self._monotonic_s()
        if now - self._logged_s >= LOG_EVERY_S:
            client = asking.scope.get("client") or ("?",)
            log.warning(
                "event=request_refused reason=%s client=%s route=%s detail=%s unlogged=%d",
                reason,
                client[0],
                route,
                sentence,
                self._unlogged,
            )
            self._logged_s, self._unlogged = now, 0
        else:
            self._unlogged += 1
        return Problem(code, sentence)

    def cleared(self, caller: Caller, command: c.Command) -> c.Command:
        """The command as it may be proposed for its caller, an operator's with the name on it.

        Raises Problem `forbidden` when the caller's token is not good for it, or speaks for another node.
        """
        if not caller.name:
            return command
        inner = command.command if isinstance(command, c.Signed) else command
        effect = inner.command if isinstance(inner, c.Once) else inner
        kind = str(effect.__struct_config__.tag)
        needed = NEEDS[type(effect)]
        if needed not in GRANTS[caller.scope]:
            raise self._forbidden(f"token {caller.name!r} has the scope {caller.scope}, {kind} needs {needed}")
        if isinstance(command, c.Signed) and command.by != caller.name:
            raise self._forbidden(f"token {caller.name!r} cannot sign for {command.by!r}")
        if isinstance(effect, c.RecordAct) and effect.by != caller.name:
            raise self._forbidden(f"token {caller.name!r} cannot record an act of {effect.by!r}")
        if isinstance(effect, c.RedeemToken) and caller.scope is Scope.JOIN and effect.join != caller.name:
            raise self._forbidden(f"token {caller.name!r} cannot be spent as {effect.join!r}")
        if caller.peer:
            for peer in self._speaks_for(effect, caller.peer):
                if peer != caller.peer and not self._keeps(caller.peer, peer):
                    raise self._forbidden(f"token {caller.name!r} speaks for {caller.peer!r}, not for {peer!r}")
        # A node drains its own GPUs; whoever is none and drains them is an operator.
        operates = needed is Scope.ADMIN or (isinstance(effect, c.DrainGpu) and not caller.peer)
        if operates and not isinstance(command, c.Signed):
            return c.Signed(caller.name, command)
        return command

    def _forbidden(self, sentence: str) -> Problem:
        self.refused["forbidden"] += 1
        return Problem("forbidden", sentence)

    def _speaks_for(self, effect: Struct, speaker: str) -> Iterable[str]:
        """The nodes that a command speaks for: those it names, or those whose jobs it names. What an object store
        holds is said by the nodes that have access to it."""
        match effect:
            case c.RecordHeartbeats(beats=beats):
                return [beat.peer for beat in beats]
            case c.VouchForPeer(by=peer):
                return [peer]
            case c.AddHolder(peer=store) | c.DropHolder(peer=store) if store.startswith(STORE):
                return () if self._has_access(speaker, store) else (store,)
            case (
                c.JoinPeer(peer=peer)
                | c.LeavePeer(peer=peer)
                | c.ClaimWork(peer=peer)
                | c.AddHolder(peer=peer)
                | c.DropHolder(peer=peer)
                | c.ReleaseHolder(peer=peer)
                | c.DoubtHolder(by=peer)
                | c.RegisterArtifact(peer=peer)
                | c.DrainGpu(peer=peer)
            ):
                return [peer]
            case c.RenewJobs(jobs=held):
                return self._runners(one.job for one in held)
            case (
                c.ReportJob(job=job)
                | c.CompleteJob(job=job)
                | c.FailJob(job=job)
                | c.ReleaseJob(job=job)
                | c.SaveCheckpoint(job=job)
                | c.RestartJob(job=job)
            ):
                return self._runners((job,))
        return ()

    def _keeps(self, gateway: str, host: str) -> bool:
        """Whether a node speaks for a host that has no agent of its own."""
        state = self._state()
        setting = state.host(host) if state is not None else None
        return setting is not None and setting.gateway == gateway

    def _has_access(self, peer: str, store: str) -> bool:
        state = self._state()
        return state is not None and peer in state.index.gates.get(store, ())

    def _runners(self, jobs: Iterable[str]) -> list[str]:
        """Whose jobs these are. One that is not known here is left to the law, which asks for its fence."""
        state = self._state()
        rows = (state.jobs.get(job) for job in jobs) if state is not None else ()
        return [row.peer for row in rows if row is not None]


#: what a token must be good for to bring a command, whichever way it takes
NEEDS: dict[type[Struct], Scope] = {
    **dict.fromkeys(
        (
            c.JoinPeer,
            c.LeavePeer,
            c.RecordHeartbeats,
            c.VouchForPeer,
            c.ClaimWork,
            c.ReportJob,
            c.RenewJobs,
            c.CompleteJob,
            c.FailJob,
            c.ReleaseJob,
            c.SaveCheckpoint,
            c.RestartJob,
            c.AddHolder,
            c.DropHolder,
            c.ReleaseHolder,
            c.DoubtHolder,
            c.RegisterArtifact,
            c.DrainGpu,
        ),
        Scope.NODE,
    ),
    **dict.fromkeys(
        (c.AddWork, c.CancelWork, c.RetryWork, c.StopJob, c.RecordMatch, c.StartGauntlet),
        Scope.SUBMIT,
    ),
    **dict.fromkeys(
        (
            c.DrainPeer,
            c.RemovePeer,
            c.PlaceWork,
            c.ForgetArtifact,
            c.RequestSync,
            c.VoidMatch,
            c.ConcludeGauntlet,
            c.PromoteModel,
            c.RollbackModel,
            c.ChangeSetting,
            c.PauseCluster,
            c.ConfigureVoters,
            c.RaiseFeatureLevel,
            c.CreateToken,
            c.RevokeToken,
            c.RecordAct,
        ),
        Scope.ADMIN,
    ),
    c.RedeemToken: Scope.JOIN,
}
