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
from statemachine.state import State, Txn

Handler = Callable[[Txn, Any], Any]

HANDLERS: dict[type[Struct], Handler] = {
    c.JoinPeer: peers.join,
    c.RecordHeartbeats: peers.heartbeats,
    c.VouchForPeer: peers.vouch,
    c.LeavePeer: peers.leave,
    c.DrainPeer: peers.drain,
    c.DrainGpu: peers.drain_gpu,
    c.RemovePeer: peers.remove,
    c.AddWork: work.add,
    c.ClaimWork: work.claim,
    c.PlaceWork: work.place,
    c.CancelWork: work.cancel,
    c.RetryWork: work.retry,
    c.ReportJob: jobs.report,
    c.SaveCheckpoint: jobs.save,
    c.RestartJob: jobs.restart,
    c.RenewJobs: jobs.renew,
    c.CompleteJob: jobs.complete,
    c.FailJob: jobs.fail,
    c.ReleaseJob: jobs.release,
    c.StopJob: jobs.stop,
    c.AddHolder: artifacts.hold,
    c.DropHolder: artifacts.drop,
    c.ReleaseHolder: artifacts.release,
    c.DoubtHolder: artifacts.doubt,
    c.RequestSync: artifacts.request_sync,
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
    c.ConfigureVoters: cluster.configure_voters,
    c.RaiseFeatureLevel: cluster.raise_feature_level,
    c.CreateToken: tokens.create,
    c.RevokeToken: tokens.revoke,
    c.RedeemToken: tokens.redeem,
    c.RecordAct: audit.record,
}


def once(txn: Txn, cmd: c.Once, by: str = "") -> Any:
    """Run a command under a request id: its writes and its remembered result are one step."""
    earlier = cluster.recall(txn, cmd)
    if earlier is not None:
        return earlier.value
    cluster.refuse_expired(txn, cmd)
    value = HANDLERS[type(cmd.command)](txn, cmd.command)
    if by:
        audit.acted(txn, by, cmd.command)
    cluster.remember(txn, cmd, Done(value))
    return value


def signed(txn: Txn, cmd: c.Signed) -> Any:
    """Run a command and leave an event that names its token; one that is refused or repeated leaves none."""
    if isinstance(cmd.command, c.Once):
        return once(txn, cmd.command, cmd.by)
    value = HANDLERS[type(cmd.command)](txn, cmd.command)
    if cmd.by:
        audit.acted(txn, cmd.by, cmd.command)
    return value


HANDLERS[c.Signed] = signed
HANDLERS[c.Once] = once

ON_DUE: dict[str, Handler] = {
    "peers": peers.on_due,
    "work": work.on_due,
    "jobs": jobs.on_due,
    "requests": cluster.forget_request,
    "tokens": tokens.on_due,
}

#: rows the clock moves in one entry; the rest waits for the next
MAX_DUE = 1_000

_encode = msgspec.msgpack.Encoder().encode


class Machine:
    """A state, the position in the log it stands at, and the running digest of how it got there.

    `chain` is sha256 over (the chain before, index, what was written in order, results); two replicas at one
    index with different chains have diverged. A row that was made is taken in whole, a row that was changed by
    the fields that changed: equal rows stay equal under equal changes. A refusal is taken in by its code: its
    sentence is for people, and two releases, or two of a decoder, may word it differently.
    """

    def __init__(self) -> None:
        self.state = State()
        self.index = 0
        self.term = 0
        self.chain = bytes(32)
        #: transitions that failed unforeseen, for an alarm
        self.internal_errors = 0
        #: commands of the present entry that were refused
        self._refusals = 0
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
        if self.state.cluster.feature_level > cluster.SUPPORTED_FEATURE_LEVEL:
            # A later release may have taken what is refused here, so this one cannot go on alike.
            unknown = cluster.unknown_setting(decoded.commands)
            if unknown:
                raise Halt(f"entry {index} of term {term} cannot be read by this release: {unknown}; upgrade it")
        self._advance(index, decoded.clock_term, decoded.elapsed_ms)
        run = self._run
        self._refusals = 0
        results = [run(HANDLERS[type(command)], command) for command in decoded.commands]
        shown = [r.code if type(r) is Rejected else r for r in results] if self._refusals else results
        self.chain = hashlib.sha256(self.chain + _encode((index, self._txn.finish(), shown))).digest()
        self.index = index
        self.term = term
        return results

    def _advance(self, index: int, term: int, elapsed_ms: int) -> None:
        """Move the clock, then every row whose time has come."""
        state = self.state
        before = state.cluster
        after = cluster.advance(before, term, elapsed_ms)
        self._txn.begin(index, after)
        if after.clock_ms == before.clock_ms:
            return
        queue = state.index
        moved = 0
        stuck: list[tuple[int, str, str]] = []
        while moved < MAX_DUE and (head := queue.take_due(after.clock_ms)) is not None:
            due, table, key = head
            if self._due(table, key) == due:
                moved += 1
                self._run(ON_DUE[table], state.tables[table][key])
            really = self._due(table, key)
            if really == due:
                # The rows behind it do not wait for it; its turn comes again with the next step.
                stuck.append(head)
            else:
                # Nothing was due yet, or its next time has come about.
                queue.schedule(table, key, really)
        for due, table, key in stuck:
            queue.schedule(table, key, due)

    def _due(self, table: str, key: str) -> int:
        """When a row's turn truly is; 0 is never, also for one that is gone."""
        state = self.state
        row = state.tables[table].get(key)
        if row is None:
            return 0
        return deadlines.effective_due(table, row, state.peers, state.timing, state.retention)

    def _run(self, handler: Handler, argument: object) -> Result:
        txn = self._txn
        try:
            value = handler(txn, argument)
        except Refused as refused:
            txn.rollback()
            self._refusals += 1
            return Rejected(refused.code, refused.detail)
        except (MemoryError, OSError):
            raise
        except Exception as error:  # noqa: BLE001 - the log must go on: dropped whole, counted, alarmed
            txn.rollback()
            self._refusals += 1
            self.internal_errors += 1
            kind = type(argument).__name__
            return Rejected(Code.INTERNAL, f"{kind} failed with {type(error).__name__}; nothing was changed")
        txn.commit()
        return Done(value)
