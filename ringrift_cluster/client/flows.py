"""One flow a route that answers at once. The clients offer each under the same name, blocking and awaiting."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec
from msgspec import Raw, Struct

from ringrift_cluster.api.admin import (
    Drain,
    Pause,
    Removal,
    Restart,
    Shutdown,
    ShuttingDown,
    Transfer,
    Transferred,
    Undrain,
)
from ringrift_cluster.api.artifacts import ArtifactFilter, ArtifactList
from ringrift_cluster.api.elo import RankingQuery, RankingTable, Voiding
from ringrift_cluster.api.gauntlets import GauntletFilter, GauntletList, GauntletRun
from ringrift_cluster.api.gpus import DrainedGpu, GpuList, OfNode, UndrainedGpu
from ringrift_cluster.api.items import NewItems, NewWork
from ringrift_cluster.api.jobs import JobFilter, JobList, JobView
from ringrift_cluster.api.models import ModelFilter, ModelList, ModelView, Promotion, Rollback
from ringrift_cluster.api.peers import PeerFilter, PeerList, PeerView
from ringrift_cluster.api.raft import Leader
from ringrift_cluster.api.relay import RelayStatus
from ringrift_cluster.api.reports import Start
from ringrift_cluster.api.settings import Change, SettingList, SettingView
from ringrift_cluster.api.ssh_results import SshTournament
from ringrift_cluster.api.ssh_tournaments import (
    SshTournamentCancel,
    SshTournamentCancelled,
    SshTournamentQuery,
    SshTournamentRun,
    SshTournamentStarted,
)
from ringrift_cluster.api.status import Status
from ringrift_cluster.api.sync import ManifestList, ManifestPage, NodeFiles, PlanPage, Sync, SyncStatus
from ringrift_cluster.api.tokens import Made, NewToken, Revocation, TokenList, fresh_secret, hash_of
from ringrift_cluster.api.views import Cursor, Page, View
from ringrift_cluster.api.voters import VoterChange, VoterList, VotersChanged
from ringrift_cluster.api.work import (
    Added,
    AddedItems,
    Cancel,
    Claim,
    Claimed,
    PendingItems,
    PendingPage,
    Retry,
    WorkFilter,
    WorkItems,
    WorkView,
)
from ringrift_cluster.api.writes import Outcome
from ringrift_cluster.client.session import Session
from ringrift_cluster.client.steps import Flow
from ringrift_cluster.replica import ReplicaStatus
from statemachine.commands import CompleteJob, FailJob, RenewJobs
from statemachine.queries import Why
from statemachine.values import Counts, JobProgress, MatchResult, Output, Params

#: an order that goes to a node through others is waited for so much longer
RELAYED_S = 20.0


class Dump(Struct, frozen=True):
    """The whole state, or one table of it, at one index. `digest` is the running chain there."""

    cluster_id: str
    node_id: str
    index: int
    term: int
    digest: str
    #: table to key to row, as plain data
    tables: dict[str, dict[str, dict[str, Any]]]
    #: what the node leaves open to the network because of --insecure
    exposure: str = ""


# --- looking --------------------------------------------------------------------------------------


def status(session: Session, view: View = View()) -> Flow[Status]:
    return session.get("/status", Status, view)


def raft_state(session: Session) -> Flow[ReplicaStatus]:
    return session.get("/raft/state", ReplicaStatus)


def leader(session: Session) -> Flow[Leader]:
    return session.get("/election/leader", Leader)


def peers(session: Session, query: PeerFilter = PeerFilter(limit=1000)) -> Flow[PeerList]:
    return session.get("/peers", PeerList, query)


def peer(session: Session, node_id: str, view: View = View()) -> Flow[PeerView]:
    return session.get(f"/peers/{node_id}", PeerView, view)


def work_list(session: Session, query: WorkFilter = WorkFilter()) -> Flow[WorkItems]:
    return session.get("/work", WorkItems, query)


def work(session: Session, work_id: str, view: View = View()) -> Flow[WorkView]:
    """One item, why it is where it is, and its present or last job."""
    return session.get(f"/work/{work_id}", WorkView, view)


def why(session: Session, work_id: str, view: View = View()) -> Flow[Why]:
    """Why an item is where it is."""
    found = yield from work(session, work_id, view)
    return found.why


def pending(session: Session, query: PendingPage = PendingPage()) -> Flow[PendingItems]:
    """What waits, best first."""
    return session.get("/work/pending", PendingItems, query)


def jobs(session: Session, query: JobFilter = JobFilter()) -> Flow[JobList]:
    return session.get("/jobs", JobList, query)


def job(session: Session, job_id: str, view: View = View()) -> Flow[JobView]:
    return session.get(f"/jobs/{job_id}", JobView, view)


def elo(session: Session, query: RankingQuery = RankingQuery()) -> Flow[RankingTable]:
    """Ratings by config, best first."""
    return session.get("/elo/rankings", RankingTable, query)


def models(session: Session, query: ModelFilter = ModelFilter()) -> Flow[ModelList]:
    return session.get("/models", ModelList, query)


def model(session: Session, digest: str, view: View = View()) -> Flow[ModelView]:
    return session.get(f"/models/{digest}", ModelView, view)


def gauntlet_results(session: Session, query: GauntletFilter = GauntletFilter()) -> Flow[GauntletList]:
    return session.get("/gauntlet/results", GauntletList, query)


def ssh_tournament_status(session: Session, run_id: str) -> Flow[SshTournament]:
    return session.get("/ssh_tournament/status", SshTournament, SshTournamentQuery(run_id=run_id))


def settings(session: Session) -> Flow[SettingList]:
    return session.get("/settings", SettingList)


def setting(session: Session, name: str, view: View = View()) -> Flow[SettingView]:
    return session.get(f"/settings/{name}", SettingView, view)


def dump(session: Session, table: str = "") -> Flow[Dump]:
    """The replicated rows of the node that answers, from one consistent view."""
    return session.get("/state/dump", Dump, table=table)


# --- changing -------------------------------------------------------------------------------------


def work_add(session: Session, item: NewWork) -> Flow[Added]:
    """Queue one item; without an id it gets one here, so that repeats add nothing."""
    return session.change("POST", "/work/add", Added, _named(session, item))


def work_add_many(session: Session, items: Sequence[NewWork]) -> Flow[AddedItems]:
    """Queue many items, up to 500 in one entry of the log; each is answered for itself.

    OutcomeUnknown may mean that the first ones are queued; a repeat under the same ids adds the rest.
    """
    return session.change("POST", "/work/add", AddedItems, NewItems([_named(session, item) for item in items]))


def _named(session: Session, item: NewWork) -> NewWork:
    if item.work_id:
        return item
    return msgspec.structs.replace(item, work_id=f"{item.work_type}-{session.new_id()}")


def work_claim(
    session: Session,
    node_id: str,
    *,
    work_types: Sequence[str] = (),
    configs: Sequence[str] = (),
    max_items: int = 1,
    claim_id: str = "",
) -> Flow[Claimed]:
    """Take the best pending items; a repeat under the same claim id gets the same ones."""
    claim = Claim(
        node_id=node_id,
        claim_id=claim_id or f"claim-{session.new_id()}",
        work_types=tuple(work_types),
        configs=tuple(configs),
        max_items=max_items,
    )
    return session.change("POST", "/work/claim", Claimed, claim)


def work_start(session: Session, job: str, fence: int) -> Flow[Outcome]:
    """The attempt's process runs."""
    return session.change("POST", "/work/start", Outcome, Start(job, fence))


def work_renew(session: Session, held: Sequence[JobProgress]) -> Flow[Outcome]:
    """Extend the leases of claimed jobs."""
    return session.change("POST", "/work/renew", Outcome, RenewJobs(jobs=tuple(held)))


def work_complete(
    session: Session,
    job: str,
    fence: int,
    *,
    counts: Counts | None = None,
    metrics: Params | None = None,
    outputs: Sequence[Output] = (),
    match: MatchResult | None = None,
) -> Flow[Outcome]:
    """The attempt succeeded: totals, files and match results count together and once."""
    body = CompleteJob(
        job=job, fence=fence, counts=counts or {}, metrics=metrics or {}, outputs=tuple(outputs), match=match
    )
    return session.change("POST", "/work/complete", Outcome, body)


def work_fail(session: Session, job: str, fence: int, error: str, *, error_class: str = "user") -> Flow[Outcome]:
    body = FailJob(job=job, fence=fence, error_class=error_class, error=error)
    return session.change("POST", "/work/fail", Outcome, body)


def work_cancel(session: Session, work_id: str, reason: str = "") -> Flow[Outcome]:
    return session.change("POST", "/work/cancel", Outcome, Cancel(work_id, reason))


def work_retry(session: Session, work_id: str, reason: str = "") -> Flow[Outcome]:
    """Give an ended item its attempts back."""
    return session.change("POST", "/work/retry", Outcome, Retry(work_id=work_id, reason=reason))


def promote(session: Session, config: str, model: str, reason: str) -> Flow[Outcome]:
    """Make a candidate the champion, whatever a gauntlet says."""
    return session.change("POST", "/models/promote", Outcome, Promotion(config=config, model=model, reason=reason))


def rollback(session: Session, config: str, model: str, reason: str) -> Flow[Outcome]:
    """Make a former champion the champion again."""
    return session.change("POST", "/models/rollback", Outcome, Rollback(config=config, model=model, reason=reason))


def void_match(session: Session, match_id: str, reason: str) -> Flow[Outcome]:
    """Take a match out of the ratings."""
    return session.change("POST", "/elo/void", Outcome, Voiding(match_id, reason))


def gauntlet_run(session: Session, run: GauntletRun) -> Flow[Outcome]:
    """Test a candidate; without an id the gauntlet gets one here."""
    named = run if run.gauntlet_id else msgspec.structs.replace(run, gauntlet_id=f"gauntlet-{session.new_id()}")
    return session.change("POST", "/gauntlet/run", Outcome, named)


def ssh_tournament_run(session: Session, run: SshTournamentRun) -> Flow[SshTournamentStarted]:
    """Play a tournament on hosts; the same run again adds nothing."""
    return session.change("POST", "/ssh_tournament/run", SshTournamentStarted, run)


def ssh_tournament_cancel(session: Session, run_id: str, reason: str = "") -> Flow[SshTournamentCancelled]:
    """End a tournament on hosts; what was counted stays."""
    body = SshTournamentCancel(run_id, reason)
    return session.change("POST", "/ssh_tournament/cancel", SshTournamentCancelled, body)


def change_setting(
    session: Session, name: str, value: object, *, expected_version: int = -1, by: str = ""
) -> Flow[Outcome]:
    """Set one cluster setting to plain data; with a version, only if nobody changed it meanwhile."""
    encoded = value if isinstance(value, Raw) else Raw(msgspec.json.encode(value))
    body = Change(value=encoded, expected_version=expected_version, by=by)
    return session.change("PUT", f"/settings/{name}", Outcome, body)


def drain(session: Session, node_id: str, *, reason: str = "", deadline_s: float = 0.0) -> Flow[Outcome]:
    """Take a node out of placement; with a deadline its jobs are stopped then."""
    body = Drain(node_id=node_id, reason=reason, deadline_seconds=deadline_s)
    return session.change("POST", "/admin/drain", Outcome, body)


def artifacts(
    session: Session, *, kind: str = "", config: str = "", node_id: str = "", limit: int = 100, after: str = ""
) -> Flow[ArtifactList]:
    """Known files, newest first."""
    query = ArtifactFilter(kind=kind, config=config, peer=node_id, limit=limit, after=after)
    return session.get("/artifacts", ArtifactList, query)


def manifest(session: Session, *, limit: int = 100, after: str = "") -> Flow[ManifestList]:
    """What each node holds."""
    return session.get("/manifest", ManifestList, ManifestPage(limit=limit, after=after))


def node_files(session: Session, node_id: str, *, limit: int = 100, after: str = "") -> Flow[NodeFiles]:
    """The files that one node holds."""
    return session.get(f"/manifest/{node_id}", NodeFiles, Cursor(limit=limit, after=after))


def sync_status(session: Session, *, after: int = 0) -> Flow[SyncStatus]:
    """Which copies are missing where."""
    return session.get("/sync/status", SyncStatus, PlanPage(after=after))


def sync(session: Session, *, reason: str = "") -> Flow[Outcome]:
    """Have every node look at its files now."""
    return session.change("POST", "/admin/sync/trigger", Outcome, Sync(reason))


def gpus(session: Session, node_id: str = "") -> Flow[GpuList]:
    """All GPUs, or one node's, as their nodes told them last."""
    return session.get("/gpus", GpuList, OfNode(node_id=node_id))


def drain_gpu(session: Session, node_id: str, gpu: str, *, reason: str = "", for_s: float = 0.0) -> Flow[Outcome]:
    """Take one GPU out of placement for a while; 0 is until it is put back."""
    body = DrainedGpu(node_id=node_id, gpu=gpu, reason=reason, for_seconds=for_s)
    return session.change("POST", "/admin/gpus/drain", Outcome, body)


def undrain_gpu(session: Session, node_id: str, gpu: str) -> Flow[Outcome]:
    return session.change("POST", "/admin/gpus/undrain", Outcome, UndrainedGpu(node_id=node_id, gpu=gpu))


def voters(session: Session) -> Flow[VoterList]:
    """Who votes, as the leader sees it."""
    return session.get("/raft/voters", VoterList)


def add_voter(session: Session, node_id: str, request_id: str = "") -> Flow[VotersChanged]:
    """Make a follower a voter; it is brought up to date first."""
    body = VoterChange(node_id=node_id)
    return session.change("POST", "/admin/voters/add", VotersChanged, body, request_id=request_id)


def remove_voter(session: Session, node_id: str, request_id: str = "") -> Flow[VotersChanged]:
    """Let a voter vote no longer; a leader hands over first."""
    body = VoterChange(node_id=node_id)
    return session.change("POST", "/admin/voters/remove", VotersChanged, body, request_id=request_id)


def undrain(session: Session, node_id: str) -> Flow[Outcome]:
    return session.change("POST", "/admin/undrain", Outcome, Undrain(node_id=node_id))


def remove_peer(session: Session, node_id: str, reason: str = "") -> Flow[Outcome]:
    """Forget a node that is dead, or drained and silent."""
    return session.change("POST", "/admin/peers/remove", Outcome, Removal(node_id=node_id, reason=reason))


def pause(session: Session, paused: bool, reason: str = "") -> Flow[Outcome]:
    """Stop or resume placement and claims in the whole cluster."""
    return session.change("POST", "/admin/pause", Outcome, Pause(paused, reason))


def tokens(session: Session) -> Flow[TokenList]:
    return session.get("/tokens", TokenList, Page(limit=1000))


def token_create(session: Session, token: NewToken) -> Flow[Made]:
    """Make a token. Its secret is drawn here, so that a lost answer loses nothing and no node ever sees it."""
    secret = fresh_secret()
    body = msgspec.structs.replace(token, sha256=hash_of(secret))
    made = yield from session.change("POST", "/tokens", Made, body)
    return msgspec.structs.replace(made, secret=secret)


def token_revoke(session: Session, name: str, reason: str = "") -> Flow[Outcome]:
    """End a token; False when it was over already."""
    return session.change("POST", "/tokens/revoke", Outcome, Revocation(name, reason))


def transfer_leadership(session: Session, target: str | None = None) -> Flow[Transferred]:
    """Hand leadership to a voter. Not repeated: a second hand-over would be another one."""
    answer = yield from session.change("POST", "/admin/election/start", Transferred, Transfer(target), retry=False)
    session.leader_url = None
    return answer


def shutdown(
    session: Session, *, reason: str = "", stop_jobs: bool = False, node_id: str | None = None
) -> Flow[ShuttingDown]:
    """Stop the node at the first address, or the one that is named: never another one, and never twice."""
    return _order(session, "/admin/shutdown", Shutdown(reason, node_id, stop_jobs))


def restart(session: Session, *, reason: str = "", node_id: str | None = None) -> Flow[ShuttingDown]:
    """Have the process of the node at the first address, or of the one that is named, begin anew. Never twice."""
    return _order(session, "/admin/restart", Restart(reason, node_id))


def _order(session: Session, path: str, body: Struct) -> Flow[ShuttingDown]:
    encoded, headers = msgspec.json.encode(body), {"content-type": "application/json"}
    answer = yield from session.ask("POST", path, body=encoded, headers=headers, retry=False, timeout_s=RELAYED_S)
    return msgspec.json.decode(answer.body, type=ShuttingDown)


def channels(session: Session) -> Flow[RelayStatus]:
    """The channels of nodes that nobody can dial, at all voters."""
    return session.get("/relay/status", RelayStatus)
