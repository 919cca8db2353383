"""The machine: applies committed entries, one after the other, on every replica alike.

`apply` is total. A refused command changes nothing and answers `Rejected`; a transition that fails in a way
nobody foresaw is dropped whole and answers `internal_error`, on every replica alike. Only `Halt` leaves it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import Any

import msgspec
from msgspec import Struct

from statemachine import (
    artifacts,
    audit,
    cluster,
    deadlines,
    gauntlets,
    jobs,
    matches,
    models,
    peers,
    results,
    tokens,
    work,
)
from statemachine import commands as c
from statemachine.cluster import SUPPORTED_FEATURE_LEVEL as SUPPORTED_FEATURE_LEVEL
from statemachine.entries import ENTRY_FORMAT, decode_entry
from statemachine.errors import Code, Done, Halt, Refused, Rejected, Result
from statemachine.rows import Row
from statemachine.state import State, Txn

Handler = Callable[[Txn, Any], Any]

HANDLERS: dict[type[Struct], Handler] = {
    c.JoinPeer: peers.join,
    c.RecordHeartbeats: peers.heartbeats,
    c.VouchForPeer: peers.vouch,
    c.DrainPeer: peers.drain,
    c.RemovePeer: peers.remove,
    c.AddWork: work.add,
    c.ClaimWork: work.claim,
    c.PlaceWork: work.place,
    c.CancelWork: work.cancel,
    c.RetryWork: work.retry,
    c.ReportJob: jobs.report,
    c.RenewJobs: jobs.renew,
    c.CompleteJob: jobs.complete,
    c.FailJob: jobs.fail,
    c.ReleaseJob: jobs.release,
    c.StopJob: jobs.stop,
    c.AddHolder: artifacts.hold,
    c.DropHolder: artifacts.drop,
    c.RegisterArtifact: artifacts.register,
    c.ForgetArtifact: artifacts.forget,
    c.RecordMatch: matches.record,
    c.VoidMatch: results.void,
    c.StartGauntlet: gauntlets.start,
    c.ConcludeGauntlet: gauntlets.conclude,
    c.PromoteModel: models.promote,
    c.RollbackModel: models.rollback,
    c.ChangeSetting: cluster.change_setting,
    c.PauseCluster: cluster.pause,
    c.RaiseFeatureLevel: cluster.raise_feature_level,
    c.CreateToken: tokens.create,
    c.RevokeToken: tokens.revoke,
    c.RedeemToken: tokens.redeem,
    c.RecordAct: audit.record,
}

ON_DUE: dict[str, Handler] = {
    "peers": peers.on_due,
    "work": work.on_due,
    "jobs": jobs.on_due,
    "requests": cluster.forget_request,
    "tokens": tokens.on_due,
}

#: rows the clock moves in one entry; the rest waits for the next
MAX_DUE = 1_000

_encode = msgspec.msgpack.Encoder(order="deterministic").encode
_Written = list[tuple[str, str, Row | None]]


class Machine:
    """A state, the position in the log it stands at, and the running digest of how it got there.

    `chain` is blake2b over (the chain before, index, rows written in order, results); two replicas at one
    index with different chains have diverged.
    """

    def __init__(self) -> None:
        self.state = State()
        self.index = 0
        self.term = 0
        self.chain = bytes(32)
        #: transitions that failed unforeseen, for an alarm
        self.internal_errors = 0
        self._txn = Txn(self.state)

    def apply(self, index: int, term: int, entry: bytes) -> list[Result]:
        """Apply one committed entry; one result a command.

        Raises Halt when the entry cannot be read (another release wrote it) or is not the next one.
        """
        if index <= self.index:
            raise Halt(f"entry {index} was asked to be applied after {self.index}; the log went backwards")
        try:
            decoded = decode_entry(entry)
        except msgspec.MsgspecError as error:
            raise Halt(f"entry {index} of term {term} cannot be read by this release: {error}; upgrade it") from error
        if decoded.format != ENTRY_FORMAT:
            raise Halt(f"entry {index} has format {decoded.format}, this release reads {ENTRY_FORMAT}; upgrade it")
        self._txn.begin(index)
        written: _Written = []
        self._advance(decoded.clock_term, decoded.elapsed_ms, written)
        results = [self._command(command, written) for command in decoded.commands]
        digest = hashlib.blake2b(self.chain, digest_size=32)
        digest.update(_encode((index, written, results)))
        self.chain = digest.digest()
        self.index = index
        self.term = term
        return results

    def _advance(self, term: int, elapsed_ms: int, written: _Written) -> None:
        """Move the clock, then every row whose time has come."""
        txn = self._txn
        before = self.state.cluster
        after = cluster.advance(before, term, elapsed_ms)
        if after is before:
            return
        txn.cluster = after
        written += txn.commit()
        if after.clock_ms == before.clock_ms:
            return
        state = self.state
        queue = state.index.deadlines
        moved = 0
        stuck: list[tuple[int, str, str]] = []
        while moved < MAX_DUE and (head := queue.first()) is not None and head[0] <= after.clock_ms:
            due, table, key = head
            row = state.tables[table][key]
            really = deadlines.effective_due(table, row, state.peers, state.timing, state.retention)
            if really != due:
                # Heartbeats carried a lease on: it has its turn at its true time, in its true order.
                state.index.schedule(table, key, really)
                continue
            moved += 1
            if isinstance(self._run(ON_DUE[table], row, written), Rejected):
                # The rows behind it do not wait for it; its turn comes again with the next step.
                stuck.append(head)
                state.index.schedule(table, key, 0)
        for due, table, key in stuck:
            state.index.schedule(table, key, due)

    def _command(self, command: c.Command, written: _Written) -> Result:
        by = ""
        if isinstance(command, c.Signed):
            by, command = command.by, command.command
        if isinstance(command, c.Once):
            return self._once(command, by, written)
        if not by:
            return self._run(HANDLERS[type(command)], command, written)
        return self._run(audit.signed(HANDLERS[type(command)], by), command, written)

    def _once(self, command: c.Once, by: str, written: _Written) -> Result:
        """Run a command under a request id: its writes and its remembered result are one step."""
        earlier = cluster.recall(self._txn, command)
        if earlier is not None:
            return earlier
        inner = HANDLERS[type(command.command)]
        if by:
            inner = audit.signed(inner, by)

        def once(txn: Txn, cmd: c.Once) -> Any:
            cluster.refuse_expired(txn, cmd)
            value = inner(txn, cmd.command)
            cluster.remember(txn, cmd, Done(value))
            return value

        return self._run(once, command, written)

    def _run(self, handler: Handler, argument: object, written: _Written) -> Result:
        txn = self._txn
        try:
            value = handler(txn, argument)
        except Refused as refused:
            txn.rollback()
            return Rejected(refused.code, refused.detail)
        except (MemoryError, OSError):
            raise
        except Exception as error:  # noqa: BLE001 - the log must go on: dropped whole, counted, alarmed
            txn.rollback()
            self.internal_errors += 1
            kind = type(argument).__name__
            return Rejected(Code.INTERNAL, f"{kind} failed with {type(error).__name__}; nothing was changed")
        written += txn.commit()
        return Done(value)

    def restore(self, tables: dict[str, list[tuple[str, Row]]]) -> None:
        """Fill an empty machine with a snapshot's rows, settings first (deadlines depend on them)."""
        order = sorted(tables, key=lambda name: name != "settings")
        for name in order:
            for key, row in tables[name]:
                self.state.write(name, key, row)
