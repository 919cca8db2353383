"""Who sets the cluster up and gives it orders: settings, drains, pauses, cancelled items, bursts of work."""

from __future__ import annotations

from random import Random

from ringrift_cluster.raft.proposals import Outcome
from ringrift_cluster.replica import Proposed
from statemachine import settings as st
from statemachine.commands import (
    AddWork,
    CancelWork,
    ChangeSetting,
    Command,
    DrainPeer,
    Once,
    PauseCluster,
    StopJob,
    encode_command,
)
from statemachine.errors import Done
from statemachine.rows import OPEN_WORK
from statemachine.values import Needs
from tests.simulation.ledger import Ledger
from tests.simulation.voter import Voter
from tests.simulation.world import World

FAR_MS = 10**12
_TIMING = st.Timing(
    heartbeat_ms=400,
    suspect_after_ms=1_500,
    dead_after_ms=3_000,
    lease_ms={"default": 5_200},
    start_within_ms=4_000,
    timeout_ms={"default": 60_000},
    backoff_ms=200,
    backoff_cap_ms=1_000,
    grace_ms=100,
)
_STAGE = st.Stage("program", needs=Needs(cpu_slots=1))
_GAME = st.GameConfig(
    initial=_STAGE,
    selfplay=st.Selfplay(_STAGE, stock=3),
    training=st.Training(_STAGE, games_between=20, window_games=40),
    gate=st.Gate(_STAGE, floor_games=4, cap_games=8, groups_per_job=2, baseline_games=4),
)
SETTINGS = {
    "timing": _TIMING,
    "template/program": st.Template(("true",)),
    "config/game": _GAME,
}


class Operator:
    """Its orders go to any voter and are repeated until they are answered, or not."""

    def __init__(self, world: World, voters: list[Voter], ledger: Ledger) -> None:
        self._world = world
        self._voters = voters
        self._ledger = ledger
        self._orders = 0

    def start(self) -> None:
        for name, value in SETTINGS.items():
            self._order(ChangeSetting(name, st.encode(value)), rounds=1_000)

    def act(self, rng: Random) -> None:
        """One order of the kind people give while things go wrong."""
        state = self._ledger.machine.state
        peers = sorted(state.peers)
        live = sorted(name for peer in peers for name in state.index.live_jobs_of(peer))
        open_items = sorted(w.work for w in state.work.values() if w.status in OPEN_WORK and w.spec.template)
        match rng.choice(["drain", "pause", "cancel", "stop"]):
            case "drain" if peers:
                peer = rng.choice(peers)
                self._order(DrainPeer(peer, True, "a test", state.now_ms + 500))
                self._world.after(rng.uniform(0.5, 2.0), lambda: self._order(DrainPeer(peer, False)))
            case "pause":
                self._order(PauseCluster(True, "a test"), rounds=1)
                self._world.after(rng.uniform(0.3, 1.5), lambda: self._order(PauseCluster(False)))
            case "cancel" if open_items:
                self._order(CancelWork(rng.choice(open_items), "a test"))
            case "stop" if live:
                job = state.jobs[rng.choice(live)]
                self._order(StopJob(job.job, job.fence, "a test"))

    def calm(self) -> None:
        """Work goes on: an order to pause may have arrived after the one that ended it."""
        self._order(PauseCluster(False), rounds=1_000)

    def burst(self, voter: Voter) -> None:
        """One more item, proposed at this voter; nobody waits for the answer."""
        self._orders += 1
        item = AddWork(f"burst-{self._orders}", "burst", params={"n": "y" * 1_000}, ttl_ms=1)
        voter.call(lambda node: node.submit([encode_command(item)], 2.0, lambda outcome: None))

    def _order(self, command: Command, rounds: int = 10) -> None:
        self._orders += 1
        order = Once(f"order-{self._orders}", FAR_MS, command)  # type: ignore[arg-type]
        self._attempt(encode_command(order), rounds)

    def _attempt(self, order: bytes, rounds: int) -> None:
        """The same bytes again and again, wherever somebody listens, until one answer says that it took effect."""
        alive = [v for v in self._voters if v.alive]
        done = False

        def answer(outcome: Outcome) -> None:
            nonlocal done
            done = isinstance(outcome, Proposed) and isinstance(outcome.results[0], Done)

        def again() -> None:
            if not done and rounds > 1:
                self._attempt(order, rounds - 1)

        if alive:
            self._world.rng.choice(alive).call(lambda node: node.submit([order], 1.0, answer))
        self._world.after(self._world.between(0.4, 1.2), again)
