"""Numbers for Prometheus, gathered when they are asked for from counters that are kept anyway."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass

from prometheus_client import CollectorRegistry
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest
from prometheus_client.registry import Collector

from executors.gpus import Reading
from executors.telemetry import Telemetry
from ringrift_cluster.api.elo import rated
from ringrift_cluster.api.endpoint import Call, Reply, Routes
from ringrift_cluster.api.meter import BOUNDS
from ringrift_cluster.api.services import Services
from ringrift_cluster.api.views import View, look
from statemachine import queries
from statemachine.alarms import Alarm, alarms
from statemachine.elo import Ranking, Table, table_of
from statemachine.queries import Overview
from statemachine.rows import ModelStatus, PeerStatus, WorkStatus
from statemachine.state import State
from statemachine.values import Scope

route = Routes("metrics", "Numbers for Prometheus.")

#: beyond this many configs no rating is fitted for a scrape
RATED_CONFIGS = 64
_CONFIG = re.compile(r"^(?P<board>.+)_(?P<players>[0-9]+)p$")


@dataclass(frozen=True, slots=True, eq=False)
class Scrape(Collector):
    """One scrape's families, in the shape prometheus_client writes out."""

    families: tuple[Metric, ...]

    def collect(self) -> Iterable[Metric]:
        return self.families


def gauge(name: str, text: str, value: float) -> Metric:
    return GaugeMetricFamily(f"ringrift_{name}", text, value=value)


def counter(name: str, text: str, value: float) -> Metric:
    return CounterMetricFamily(f"ringrift_{name}", text, value=value)


def labelled(name: str, text: str, label: str, values: Mapping[str, float]) -> Metric:
    family = GaugeMetricFamily(f"ringrift_{name}", text, labels=[label])
    for key, value in values.items():
        family.add_metric([key], value)
    return family


def of_cluster(view: Overview, worries: Iterable[Alarm]) -> Iterator[Metric]:
    """What every replica at the same index would say."""
    work = view.work_by_status
    jobs = view.live_jobs_by_type
    yield gauge("cluster_peers_alive", "Peers heard within the suspect time", view.peers_by_status[PeerStatus.ALIVE])
    yield gauge("cluster_peers_total", "Peers known", view.peers_total)
    yield labelled("cluster_peers", "Peers by status", "status", view.peers_by_status)
    yield gauge("work_queue_pending", "Items that wait", work[WorkStatus.PENDING])
    yield gauge("work_queue_running", "Items whose job runs", work[WorkStatus.RUNNING])
    yield labelled("work_queue_items", "Items kept, by status", "status", work)
    by_type = GaugeMetricFamily("ringrift_work_queue_by_type", "Open items", labels=["work_type", "status"])
    for work_type, counts in view.work_by_type.items():
        for status, count in counts.items():
            by_type.add_metric([work_type, status], count)
    yield by_type
    waited = dict.fromkeys(view.work_by_type, 0.0)
    waited |= {alarm.work_type: alarm.waited_ms / 1000 for alarm in worries if alarm.kind == "stalled"}
    yield labelled("work_stalled_seconds", "How long work waits of which nothing runs", "work_type", waited)
    yield gauge("selfplay_jobs_running", "Live selfplay jobs", jobs.get("selfplay", 0))
    yield gauge("training_jobs_running", "Live training jobs", jobs.get("training", 0))
    yield gauge("cluster_selfplay_jobs_total", "Live selfplay jobs (old name)", jobs.get("selfplay", 0))
    yield labelled("live_jobs", "Live jobs", "work_type", jobs)
    for name, text in (
        ("games", "Selfplay games counted"),
        ("positions", "Positions counted"),
        ("evaluation_games", "Evaluation games counted"),
        ("training_jobs", "Trainings completed"),
        ("promotions", "Promotions of a candidate over a champion"),
    ):
        family = CounterMetricFamily(f"ringrift_{name}", text, labels=["config"])
        for config, totals in view.totals.items():
            family.add_metric([config], getattr(totals, name))
        yield family
    yield gauge("artifacts", "Files known", view.artifacts)
    yield gauge("models", "Models known", view.models)
    yield gauge("matches", "Matches kept", view.matches)
    yield gauge("cluster_clock_seconds", "The cluster clock", view.cluster.clock_ms / 1000)
    yield gauge("cluster_paused", "1 while placement is paused", float(view.cluster.paused))


def of_ratings(tables: Mapping[str, list[Ranking]]) -> Iterator[Metric]:
    """The champion's rating of each config."""
    labels = ["config", "board_type", "num_players"]
    best = GaugeMetricFamily("ringrift_best_elo", "The champion's rating", labels=labels)
    doubt = GaugeMetricFamily("ringrift_elo_uncertainty", "Standard error of the champion's rating", labels=labels)
    games = GaugeMetricFamily("ringrift_elo_games_played", "Games the champion's rating rests on", labels=labels)
    for config, ranks in tables.items():
        champion = next((r for r in ranks if r.status == ModelStatus.CHAMPION), None)
        if champion is None:
            continue
        match = _CONFIG.match(config)
        values = [config, match["board"] if match else config, match["players"] if match else ""]
        best.add_metric(values, champion.elo)
        doubt.add_metric(values, champion.stderr)
        games.add_metric(values, champion.games)
    return iter((best, doubt, games))


def of_node(services: Services) -> Iterator[Metric]:
    """What this replica and its process say of themselves."""
    now = services.replica.status()
    agent = services.agent()
    yield gauge("is_leader", "1 on the node that leads", float(now.role == "leader"))
    yield gauge("node_alive", "1 while this node's replica works", float(now.halted is None))
    yield gauge("orchestrator_uptime_seconds", "Since the process began", services.monotonic_s() - services.started_s)
    yield gauge("raft_term", "Term", now.term)
    yield gauge("raft_commit_index", "Committed index known here", now.commit)
    yield gauge("raft_applied_index", "Applied index", now.applied)
    yield gauge("raft_voters", "Voters", len(now.voters))
    yield gauge("raft_voters_heard", "Voters heard lately", len(now.voters_heard))
    yield gauge("raft_leader_contact_age_seconds", "Since the last word of the leader", now.contact_age_ms / 1000)
    yield gauge("replica_ready", "1 when this replica has caught up", float(now.ready))
    yield gauge("agent_healthy", "1 while this node's executor works", float(agent.healthy))
    yield gauge("agent_jobs_active", "Jobs this node's executor holds", agent.jobs_active)
    yield labelled("loop_age_seconds", "Since a loop last turned", "loop", services.pulse())
    loops = services.loops()
    yield labelled(
        "loop_success_ratio", "Share of good runs", "loop", {k: v.success_rate / 100 for k, v in loops.items()}
    )
    for name, value in services.counters().items():
        if name.endswith("_total"):
            yield counter(name.removesuffix("_total"), "Counted by this node", value)
        else:
            yield gauge(name, "Measured by this node", value)


def of_gpus(gpus: Iterable[Telemetry]) -> Iterator[Metric]:
    """This node's GPUs, each under its UUID. What a device does not say is left out."""
    devices = list(gpus)

    def each(name: str, text: str, value: Callable[[Telemetry], float | None]) -> Metric:
        family = GaugeMetricFamily(f"ringrift_gpu_{name}", text, labels=["gpu"])
        for device in devices:
            found = value(device)
            if found is not None:
                family.add_metric([device.gpu.uuid], found)
        return family

    def read(name: str, text: str, value: Callable[[Reading], float | None]) -> Metric:
        return each(name, text, lambda device: value(device.reading) if device.reading else None)

    yield each("healthy", "1 while the device has no fault", lambda device: float(not device.gpu.fault))
    yield each("memory_bytes", "Memory", lambda device: device.gpu.memory_bytes)
    yield read("memory_used_bytes", "Memory in use", lambda reading: reading.used_bytes)
    yield each("memory_foreign_bytes", "Memory of programs of nobody here", lambda device: device.foreign_bytes)
    yield each("memory_settling", "1 while an ended job's memory is awaited", lambda device: float(device.settling))
    yield read("busy_ratio", "Share of time with work", lambda reading: _ratio(reading.utilization_percent))
    yield read("temperature_celsius", "Temperature", lambda reading: reading.temperature_c)
    yield read("power_watts", "Power drawn", lambda reading: reading.power_w)
    yield each("power_limit_watts", "Power limit", lambda device: device.gpu.power_limit_w or None)
    yield read("ecc_errors", "Uncorrected memory errors since the last reset", lambda reading: reading.ecc_errors)
    yield read("slowed", "1 while the hardware slows its clocks down", lambda reading: float(bool(reading.slowdown)))
    yield read("processes", "Programs that use it", lambda reading: len(reading.processes))


def _ratio(percent: int | None) -> float | None:
    return None if percent is None else percent / 100


def of_routes(services: Services) -> Iterator[Metric]:
    """Requests, by route and status, and how long they took."""
    requests = CounterMetricFamily("ringrift_api_requests", "Requests answered", labels=["method", "path", "status"])
    times = HistogramMetricFamily("ringrift_api_seconds", "Time to the answer", labels=["method", "path"])
    for meter in services.meters:
        if not meter.by_status:
            continue
        labels = [meter.method, meter.path]
        for status, count in meter.by_status.items():
            requests.add_metric([*labels, str(status)], count)
        buckets: list[tuple[str, float]] = []
        running = 0
        for bound_s, count in zip((*map(str, BOUNDS), "+Inf"), meter.buckets, strict=True):
            running += count
            buckets.append((bound_s, running))
        times.add_metric(labels, buckets, meter.seconds)
    yield requests
    yield times
    refusals = CounterMetricFamily("ringrift_auth_refused", "Requests refused for their token", labels=["reason"])
    for reason in ("missing", "unknown", "over", "scope", "forbidden"):
        refusals.add_metric([reason], services.locks.refused[reason] if services.locks else 0)
    yield refusals
    yield gauge("api_streams_open", "Streams open now", services.streams)


@route(
    "GET",
    "/metrics",
    "Numbers for Prometheus",
    scope=Scope.READ,
    produces={"text/plain": "The Prometheus text format."},
)
async def metrics(call: Call) -> Reply:
    """Counters of the cluster, of this replica, and of this face."""
    services = call.services

    def ask(state: State) -> tuple[Overview, tuple[Alarm, ...], list[Table]]:
        view = queries.overview(state)
        return view, alarms(state), [table_of(state, name) for name in list(view.champions)[:RATED_CONFIGS]]

    view, worries, tables = await look(call, ask, View())
    ratings = {table.config: await rated(services, table) for table in tables}
    registry = CollectorRegistry(auto_describe=False)
    families = (
        *of_cluster(view, worries),
        *of_ratings(ratings),
        *of_node(services),
        *of_gpus(services.gpus()),
        *of_routes(services),
    )
    registry.register(Scrape(families))
    return Reply(generate_latest(registry), media_type=CONTENT_TYPE_LATEST)
