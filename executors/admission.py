"""Whether this machine may start another attempt just now: sight of the cluster, spawn rate, process cap."""

from __future__ import annotations

from executors.bench import Bench
from executors.options import Options
from executors.reconcile import Room
from executors.views import View
from statemachine.values import PeerFacts

#: after this time, and three heartbeats, without a good pass the node is given nothing new
BLIND_S = 10.0
BLIND = "its view of the cluster has not been current for a while"
#: the longest sentence that facts carry
MAX_SENTENCE = 256


class Admission:
    """One for an agent. Passes tell it when they saw what this node was given."""

    def __init__(self, bench: Bench, options: Options) -> None:
        self.leaving = False
        self._bench = bench
        self._options = options
        self._allowance = options.starts_per_s
        self._allowed_at_s = 0.0
        self._seen_s = 0.0

    def seen(self) -> None:
        """A pass has just seen what this node was given."""
        self._seen_s = self._bench.clock.boot_s()

    def started(self) -> None:
        self._allowance -= 1

    def blind(self) -> str:
        """Why this node should be given nothing new: it would not see it. Empty when it does."""
        bench = self._bench
        limit_s = max(BLIND_S, 3 * bench.timing.heartbeat_ms / 1000)
        if bench.clock.boot_s() - self._seen_s > limit_s:
            return BLIND
        return bench.cluster.unfit()[:MAX_SENTENCE]

    def room(self, facts: PeerFacts, unsettled: frozenset[str], view: View) -> Room:
        """What a pass may start now. `unsettled` are GPUs whose memory has not come back."""
        bench, options, now = self._bench, self._options, self._bench.clock.boot_s()
        rate = options.starts_per_s
        self._allowance = min(self._allowance + (now - self._allowed_at_s) * rate, max(rate, 1.0))
        self._allowed_at_s = now
        most = options.max_processes or max(32, 2 * (facts.cpu_slots + len(facts.gpus)))
        wait = ""
        if self.leaving:
            wait = "the node is stopping"
        elif now - bench.heard_s > 2 * bench.timing.heartbeat_ms / 1000:
            wait = "no heartbeat has been acknowledged lately"
        return Room(
            processes=most,
            starts=int(self._allowance),
            fresh=bench.driver.room(),
            wait=wait,
            refusal=facts.not_ready or self.blind(),
            unsettled_gpus=unsettled,
            elsewhere=view.closed,
            closed_gpus=view.drained_gpus | {gpu.uuid for gpu in facts.gpus if gpu.fault},
        )
