"""Models and their champions.

    candidate -> champion -> former -> champion (rollback)
    candidate -> rejected

Promotion is one command that names the champion it was tested against and the evidence; it is refused
when either is not what the tables say.
"""

from __future__ import annotations

from msgspec.structs import replace

from statemachine.commands import PromoteModel, RollbackModel
from statemachine.errors import Code, Refused
from statemachine.matches import model_of
from statemachine.rows import GauntletStatus, Model, ModelStatus, Totals
from statemachine.state import State, Txn

#: kinds of evidence a promotion may name
EVIDENCE_KINDS = ("gauntlet", "initial", "operator")


def totals_of(txn: Txn, config: str) -> Totals:
    return txn.totals.get(config) or Totals(config)


def register(txn: Txn, digest: str, config: str, *, work: str = "", initial: bool = False, parent: str = "") -> None:
    """Make a model known as a candidate of its config; the same weights again stay one model.

    `work` is the item that made it, empty for one that was brought from outside.
    """
    old = txn.models.get(digest)
    if old is not None:
        if old.config != config:
            made = f" by work {work!r}" if work else ""
            raise Refused(
                Code.CONFLICT,
                f"model {digest[:12]} for {config or 'no config'}{made} is a model of {old.config} already; "
                "give each config weights of its own",
            )
        return
    totals = totals_of(txn, config)
    generation = 0 if initial else totals.generations + 1
    txn.totals.put(config, replace(totals, generations=max(totals.generations, generation)))
    txn.models.put(
        digest,
        Model(
            digest=digest,
            config=config,
            generation=generation,
            status=ModelStatus.CANDIDATE,
            seq=txn.next_seq(),
            created_at_ms=txn.now_ms,
            parent=parent,
            work=work,
            games_seen=totals.games,
        ),
    )
    txn.emit("ModelTrained", digest, config=config, generation=str(generation))


def promote(txn: Txn, cmd: PromoteModel) -> dict[str, object]:
    row = _of_config(txn, cmd.model, cmd.config)
    champion = txn.state.index.champions.get(cmd.config, "")
    if row.status is ModelStatus.CHAMPION:
        return {"model": cmd.model, "repeat": True}
    if champion != cmd.previous:
        raise Refused(
            Code.CONFLICT,
            f"the champion of {cmd.config} is {champion[:12] or 'nobody'}, not "
            f"{cmd.previous[:12] or 'nobody'}; test again",
        )
    if row.status is not ModelStatus.CANDIDATE:
        raise Refused(Code.ILLEGAL_TRANSITION, f"model {cmd.model[:12]} is {row.status}; only a candidate is promoted")
    _check_evidence(txn, cmd, champion)
    _crown(txn, row, champion)
    txn.models.change(cmd.model, status=ModelStatus.CHAMPION, promoted_at_ms=txn.now_ms, evidence=cmd.evidence)
    totals = totals_of(txn, cmd.config)
    if champion:
        txn.totals.put(cmd.config, replace(totals, promotions=totals.promotions + 1))
    txn.emit(
        "ModelPromoted",
        cmd.model,
        config=cmd.config,
        previous=champion,
        evidence=cmd.evidence.kind,
        games=str(cmd.evidence.games),
        generation=str(row.generation),
    )
    return {"model": cmd.model, "previous": champion}


def _check_evidence(txn: Txn, cmd: PromoteModel, champion: str) -> None:
    evidence = cmd.evidence
    if evidence.kind not in EVIDENCE_KINDS:
        raise Refused(Code.INVALID, f"evidence is one of {', '.join(EVIDENCE_KINDS)}, not {evidence.kind!r}")
    if evidence.kind == "initial":
        if champion:
            raise Refused(Code.EVIDENCE, f"{cmd.config} has a champion; another needs a gauntlet")
        return
    if evidence.kind == "operator":
        if not evidence.note:
            raise Refused(Code.EVIDENCE, "an operator's promotion needs a note that says why")
        return
    gauntlet = txn.gauntlets.require(evidence.gauntlet)
    spec = gauntlet.spec
    if model_of(spec.opponent) != champion:
        raise Refused(
            Code.EVIDENCE,
            f"gauntlet {evidence.gauntlet!r} was played against {spec.opponent[:12]}, the champion is "
            f"{champion[:12] or 'nobody'}; test again",
        )
    if gauntlet.status is not GauntletStatus.ACCEPTED or spec.candidate != cmd.model or spec.config != cmd.config:
        raise Refused(
            Code.EVIDENCE,
            f"gauntlet {evidence.gauntlet!r} is {gauntlet.status} for {spec.candidate[:12]}; "
            f"it does not accept {cmd.model[:12]}",
        )
    games = sum(t.games for t in gauntlet.tally)
    if games < spec.floor_games or evidence.games != games:
        raise Refused(
            Code.EVIDENCE,
            f"the evidence names {evidence.games} games, gauntlet {evidence.gauntlet!r} counted {games} "
            f"with a floor of {spec.floor_games}",
        )


def rollback(txn: Txn, cmd: RollbackModel) -> dict[str, object]:
    row = _of_config(txn, cmd.model, cmd.config)
    champion = txn.state.index.champions.get(cmd.config, "")
    if champion == cmd.model:
        return {"model": cmd.model, "repeat": True}
    if champion != cmd.previous:
        raise Refused(Code.CONFLICT, f"the champion of {cmd.config} is {champion[:12]}, not {cmd.previous[:12]}")
    if row.status is not ModelStatus.FORMER:
        raise Refused(
            Code.ILLEGAL_TRANSITION, f"model {cmd.model[:12]} is {row.status}; only a former champion returns"
        )
    if cmd.model not in txn.artifacts.rows:
        raise Refused(Code.CONFLICT, f"the file of model {cmd.model[:12]} was forgotten; go back to a later champion")
    _crown(txn, row, champion)
    txn.models.change(cmd.model, status=ModelStatus.CHAMPION, promoted_at_ms=txn.now_ms)
    txn.emit("PromotionRolledBack", cmd.model, config=cmd.config, previous=champion, reason=cmd.reason)
    return {"model": cmd.model, "previous": champion}


def reject(txn: Txn, digest: str) -> None:
    row = txn.models.require(digest)
    if row.status is ModelStatus.CANDIDATE:
        txn.models.change(digest, status=ModelStatus.REJECTED)
        txn.emit("CandidateRejected", digest, config=row.config, generation=str(row.generation))


def spare(state: State, config: str) -> list[Model]:
    """Models of a config whose files may be forgotten, oldest first: those that were rejected, and former champions
    before the ones that a rollback may go back to."""
    shelf = state.index.models.get(config)
    rows = [state.models[digest] for _, digest in shelf or ()]
    former = sorted(
        (row for row in rows if row.status is ModelStatus.FORMER), key=lambda row: (row.promoted_at_ms, row.seq)
    )
    return [
        *(row for row in rows if row.status is ModelStatus.REJECTED),
        *former[: -state.retention.former_models],
    ]


def _crown(txn: Txn, row: Model, champion: str) -> None:
    if champion:
        txn.models.change(champion, status=ModelStatus.FORMER)


def _of_config(txn: Txn, digest: str, config: str) -> Model:
    row = txn.models.require(digest)
    if row.config != config:
        raise Refused(Code.INVALID, f"model {digest[:12]} plays {row.config}, not {config}")
    return row
