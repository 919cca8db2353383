"""The tables, the transaction that changes them, and what is derived from them.

    State      tables of frozen rows + Indexes (derived, never replicated) + decoded settings
    Txn        overlay on a State: reads fall through, writes are kept apart until `commit`
    Indexes    queues, counters and the deadline queue; rebuilt from the rows after a snapshot

Only `Machine` holds a Txn. Everybody else reads.
"""

from __future__ import annotations

from typing import Any, Generic, TypeVar, cast

from msgspec import Struct

from statemachine import deadlines
from statemachine import settings as st
from statemachine.errors import Code, Refused
from statemachine.indexes import Indexes
from statemachine.rows import (
    TABLES,
    Artifact,
    Cluster,
    Event,
    Gauntlet,
    Job,
    Match,
    Model,
    Peer,
    Request,
    Row,
    Setting,
    Standing,
    Token,
    Totals,
    Work,
)

R = TypeVar("R", bound=Struct)

CLUSTER_KEY = "cluster"
#: tables from which nothing is derived
PLAIN = frozenset({"events", "matches", "standings", "gauntlets", "totals"})


class State:
    """All replicated rows of one replica, and what follows from them."""

    def __init__(self) -> None:
        self.tables: dict[str, dict[str, Row]] = {name: {} for name in TABLES}
        self.cluster = Cluster()
        self.tables["cluster"][CLUSTER_KEY] = self.cluster
        self.peers = cast(dict[str, Peer], self.tables["peers"])
        self.work = cast(dict[str, Work], self.tables["work"])
        self.jobs = cast(dict[str, Job], self.tables["jobs"])
        self.artifacts = cast(dict[str, Artifact], self.tables["artifacts"])
        self.models = cast(dict[str, Model], self.tables["models"])
        self.matches = cast(dict[str, Match], self.tables["matches"])
        self.standings = cast(dict[str, Standing], self.tables["standings"])
        self.gauntlets = cast(dict[str, Gauntlet], self.tables["gauntlets"])
        self.totals = cast(dict[str, Totals], self.tables["totals"])
        self.settings = cast(dict[str, Setting], self.tables["settings"])
        self.requests = cast(dict[str, Request], self.tables["requests"])
        self.events = cast(dict[str, Event], self.tables["events"])
        self.tokens = cast(dict[str, Token], self.tables["tokens"])
        self.index = Indexes()
        self.timing = st.Timing()
        self.limits = st.Limits()
        self.retention = st.Retention()
        self._keyed: dict[str, Struct] = {}

    @property
    def now_ms(self) -> int:
        """The cluster clock."""
        return self.cluster.clock_ms

    def config(self, key: str) -> st.GameConfig | None:
        return cast("st.GameConfig | None", self._keyed.get(f"config/{key}"))

    def configs(self) -> dict[str, st.GameConfig]:
        """Configured games by key, in the order of their names."""
        return {
            name.removeprefix("config/"): value
            for name, value in sorted(self._keyed.items())
            if isinstance(value, st.GameConfig)
        }

    def template(self, name: str) -> st.Template | None:
        return cast("st.Template | None", self._keyed.get(f"template/{name}"))

    def controller(self, name: str) -> st.Controller:
        return cast("st.Controller | None", self._keyed.get(f"controller/{name}")) or st.Controller()

    def write(self, table: str, key: str, row: Row | None) -> None:
        """Put or delete one row and keep what is derived from it in step. For Txn and the snapshot only."""
        rows = self.tables[table]
        old = rows.get(key)
        if row is None:
            del rows[key]
        else:
            rows[key] = row
        if table in PLAIN:
            return
        if table == "cluster":
            self.cluster = cast(Cluster, row)
        elif table == "settings":
            self._decode_setting(key, cast(Setting, row))
        else:
            self.index.changed(table, key, old, row)
            if table in deadlines.TABLES:
                due = deadlines.own_due(table, row, self.timing, self.retention) if row is not None else 0
                self.index.schedule(table, key, due)

    def reschedule(self) -> None:
        """Put every row at its place in the deadline queue again, since the spans have changed."""
        for table in deadlines.TABLES:
            for key, row in self.tables[table].items():
                self.index.schedule(table, key, deadlines.own_due(table, row, self.timing, self.retention))

    def _decode_setting(self, name: str, row: Setting) -> None:
        """Take a setting's value into use; settings are never deleted."""
        value = st.decode(name, row.value)
        if isinstance(value, st.Timing):
            self.timing = value
            self.reschedule()
        elif isinstance(value, st.Limits):
            self.limits = value
        elif isinstance(value, st.Retention):
            self.retention = value
            self.reschedule()
        else:
            self._keyed[name] = value


class TableTxn(Generic[R]):
    """One table as a transaction sees it."""

    __slots__ = ("_base", "_noun", "_order", "name", "overlay")

    def __init__(self, name: str, noun: str, base: dict[str, R], order: list[tuple[TableTxn[Any], str]]) -> None:
        self.name = name
        self._noun = noun
        self._base = base
        self._order = order
        self.overlay: dict[str, R | None] = {}

    def get(self, key: str) -> R | None:
        if key in self.overlay:
            return self.overlay[key]
        return self._base.get(key)

    def require(self, key: str) -> R:
        """The row, or a refusal that names it."""
        row = self.get(key)
        if row is None:
            raise Refused(Code.NOT_FOUND, f"no {self._noun} {key!r} is known")
        return row

    def put(self, key: str, row: R) -> R:
        if key not in self.overlay:
            self._order.append((self, key))
        self.overlay[key] = row
        return row

    def delete(self, key: str) -> None:
        if key not in self.overlay:
            self._order.append((self, key))
        self.overlay[key] = None

    def __len__(self) -> int:
        fresh = sum(1 for k, v in self.overlay.items() if v is not None and k not in self._base)
        gone = sum(1 for k, v in self.overlay.items() if v is None and k in self._base)
        return len(self._base) + fresh - gone


class Txn:
    """The writes of one command, dropped whole by `rollback`.

    One object serves a machine for its life: `commit` and `rollback` leave it empty. The cluster's row is an
    attribute: almost every command writes it, most of them several times.
    """

    def __init__(self, state: State) -> None:
        self.state = state
        self.index = 0
        self.cluster = state.cluster
        order: list[tuple[TableTxn[Any], str]] = []
        self._order = order
        self.peers: TableTxn[Peer] = TableTxn("peers", "peer", state.peers, order)
        self.work: TableTxn[Work] = TableTxn("work", "work item", state.work, order)
        self.jobs: TableTxn[Job] = TableTxn("jobs", "job", state.jobs, order)
        self.artifacts: TableTxn[Artifact] = TableTxn("artifacts", "artifact", state.artifacts, order)
        self.models: TableTxn[Model] = TableTxn("models", "model", state.models, order)
        self.matches: TableTxn[Match] = TableTxn("matches", "match", state.matches, order)
        self.standings: TableTxn[Standing] = TableTxn("standings", "standing", state.standings, order)
        self.gauntlets: TableTxn[Gauntlet] = TableTxn("gauntlets", "gauntlet", state.gauntlets, order)
        self.totals: TableTxn[Totals] = TableTxn("totals", "totals", state.totals, order)
        self.settings: TableTxn[Setting] = TableTxn("settings", "setting", state.settings, order)
        self.requests: TableTxn[Request] = TableTxn("requests", "request", state.requests, order)
        self.events: TableTxn[Event] = TableTxn("events", "event", state.events, order)
        self.tokens: TableTxn[Token] = TableTxn("tokens", "token", state.tokens, order)

    @property
    def now_ms(self) -> int:
        return self.cluster.clock_ms

    def begin(self, index: int) -> None:
        """The commands that follow are those of the entry at `index`."""
        self.index = index
        self.cluster = self.state.cluster

    def commit(self) -> list[tuple[str, str, Row | None]]:
        """Write everything to the state; returns the rows written, in order, the cluster's last."""
        state = self.state
        written: list[tuple[str, str, Row | None]] = []
        for table, key in self._order:
            row = table.overlay.pop(key)
            if row is not None or key in state.tables[table.name]:
                state.write(table.name, key, row)
                written.append((table.name, key, row))
        self._order.clear()
        if self.cluster is not state.cluster:
            state.write("cluster", CLUSTER_KEY, self.cluster)
            written.append(("cluster", CLUSTER_KEY, self.cluster))
        return written

    def rollback(self) -> None:
        for table, _ in self._order:
            table.overlay.clear()
        self._order.clear()
        self.cluster = self.state.cluster
