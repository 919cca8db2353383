"""The tables, the transaction that changes them, and what is derived from them.

    State      tables of frozen rows + Indexes (derived, never replicated) + decoded settings
    Txn        writes into a State; remembers what was there, so that a refused command is taken back whole
    Indexes    queues, counters and the deadline queue; in step at each commit, rebuilt after a snapshot

Only `Machine` holds a Txn. Everybody else reads.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, Generic, TypeVar, cast

from msgspec import Struct
from msgspec.structs import replace

from statemachine import deadlines
from statemachine import settings as st
from statemachine.commands import AddWork
from statemachine.errors import Code, Refused
from statemachine.image import Image
from statemachine.indexes import Indexes
from statemachine.rows import (
    CLUSTER_KEY,
    KEYS,
    TABLES,
    VOTERS_KEY,
    Artifact,
    Cluster,
    Event,
    Gauntlet,
    Job,
    Match,
    Model,
    Pace,
    Peer,
    Request,
    Row,
    Setting,
    Standing,
    Token,
    Totals,
    Voters,
    Work,
)
from statemachine.values import Needs

R = TypeVar("R", bound=Struct)

#: what an item takes of which nobody says it
ONE_SLOT = Needs()


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
        self.paces = cast(dict[str, Pace], self.tables["paces"])
        self._voters = cast(dict[str, Voters], self.tables["voters"])
        self.index = Indexes()
        self.image = Image()
        self.timing = st.Timing()
        self.limits = st.Limits()
        self.retention = st.Retention()
        self.spreading = st.Artifacts()
        self._keyed: dict[str, Struct] = {}

    @property
    def now_ms(self) -> int:
        """The cluster clock."""
        return self.cluster.clock_ms

    @property
    def voters(self) -> Voters:
        """Who votes; nobody before the first leader has written it down."""
        return self._voters.get(VOTERS_KEY) or Voters(0, "", ())

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

    def host(self, name: str) -> st.Host | None:
        return cast("st.Host | None", self._keyed.get(f"host/{name}"))

    def hosts(self) -> dict[str, st.Host]:
        """Machines without an agent, by name."""
        return {
            name.removeprefix("host/"): value
            for name, value in sorted(self._keyed.items())
            if isinstance(value, st.Host)
        }

    def hosts_of(self, gateway: str) -> dict[str, st.Host]:
        """Those that a node's agent speaks for."""
        return {name: host for name, host in self.hosts().items() if host.gateway == gateway}

    def needs_of(self, spec: AddWork) -> Needs:
        """What an attempt of an item takes: by its own word, else by its template's."""
        template = self.template(spec.template)
        return spec.needs or (template.needs if template else None) or ONE_SLOT

    def controller(self, name: str) -> st.Controller:
        return cast("st.Controller | None", self._keyed.get(f"controller/{name}")) or st.Controller()

    def load(self, tables: Mapping[str, Iterable[Row]]) -> None:
        """Fill an empty state with rows, settings first (deadlines depend on them)."""
        for name in sorted(tables, key=lambda name: name != "settings"):
            rows, key_of = self.tables[name], KEYS[name]
            rows.update((key_of(row), row) for row in tables[name])
            keep = self.index.keepers.get(name)
            if keep is not None:
                for key, row in rows.items():
                    keep(key, None, row)
            if name == "settings":
                for key, setting in self.settings.items():
                    self.take_setting(key, setting.value)
        self.cluster = cast(Cluster, self.tables["cluster"][CLUSTER_KEY])
        self.image.begin(self.tables)
        self._queue_all()

    def _queue_all(self) -> None:
        """Put every row at its place in the deadline queue."""
        for name, due in deadlines.TABLES.items():
            dues = ((key, due(row, self.timing, self.retention)) for key, row in self.tables[name].items())
            self.index.queued[name] = {key: at for key, at in dues if at}
        self.index.requeue()

    def _look_again(self, tables: Iterable[str]) -> None:
        """Some rows of these tables may be due earlier than they were."""
        for name in tables:
            due = deadlines.TABLES[name]
            for key, row in self.tables[name].items():
                self.index.schedule(name, key, due(row, self.timing, self.retention))

    def take_setting(self, name: str, text: str) -> None:
        """Take a setting's value into use; settings are never deleted."""
        value = st.decode(name, text)
        if isinstance(value, st.Timing):
            before, self.timing = self.timing, value
            self._look_again(deadlines.sooner(before, value))
        elif isinstance(value, st.Limits):
            self.limits = value
        elif isinstance(value, st.Retention):
            kept, self.retention = self.retention, value
            self._look_again(deadlines.sooner(kept, value))
        elif isinstance(value, st.Artifacts):
            self.spreading = value
        else:
            self._keyed[name] = value


class Table(Generic[R]):
    """One table as commands see it: they write into it, and the transaction remembers what was there."""

    __slots__ = ("_noun", "_undoes", "_writes", "due", "get", "keep", "name", "rows")

    def __init__(self, txn: Txn, name: str, noun: str) -> None:
        state = txn.state
        self.name = name
        self.rows = cast(dict[str, R], state.tables[name])
        #: the row, or None
        self.get: Callable[[str], R | None] = self.rows.get
        #: brings the indexes in step, where anything is derived from the table
        self.keep = state.index.keepers.get(name)
        self.due = deadlines.TABLES.get(name)
        self._undoes = txn.undo.append
        self._writes = txn.written.append
        self._noun = noun

    def require(self, key: str) -> R:
        """The row, or a refusal that names it."""
        row = self.rows.get(key)
        if row is None:
            raise Refused(Code.NOT_FOUND, f"no {self._noun} {key!r} is known")
        return row

    def put(self, key: str, row: R) -> R:
        """Write a whole row."""
        rows = self.rows
        self._undoes((self, key, rows.get(key), row))
        self._writes((self.name, key, row))
        rows[key] = row
        return row

    def change(self, key: str, **fields: Any) -> R:
        """Write some fields of a row that is there. The digest chain takes in these fields, not the whole row again."""
        rows = self.rows
        old = rows[key]
        row = rows[key] = replace(old, **fields)
        self._undoes((self, key, old, row))
        self._writes((self.name, key, fields))
        return row

    def delete(self, key: str) -> None:
        """Remove a row that is there."""
        old = self.rows.pop(key)
        self._undoes((self, key, old, None))
        self._writes((self.name, key, None))

    def __len__(self) -> int:
        return len(self.rows)


class Txn:
    """The writes of one command: made in place, taken back whole by `rollback`.

    One object serves a machine for its life. The counters of the cluster's row are plain numbers here, since almost
    every command counts one of them on; the row itself is written once an entry, by `finish`.
    """

    def __init__(self, state: State) -> None:
        self.state = state
        self.index = 0
        self.now_ms = 0
        self.cluster = state.cluster
        self.fence = 0
        self.seq = 0
        self.event_seq = 0
        #: what the entry wrote so far, in order: (table, key, row | changed fields | None) and events
        self.written: list[tuple[str, str, Any]] = []
        #: what the command wrote, in order: (table, key, row before, row)
        self.undo: list[tuple[Table[Any], str, Any, Any]] = []
        self._mark = (self.cluster, 0, 0, 0, 0)
        self._events = state.events
        self.peers: Table[Peer] = Table(self, "peers", "peer")
        self.work: Table[Work] = Table(self, "work", "work item")
        self.jobs: Table[Job] = Table(self, "jobs", "job")
        self.artifacts: Table[Artifact] = Table(self, "artifacts", "artifact")
        self.models: Table[Model] = Table(self, "models", "model")
        self.matches: Table[Match] = Table(self, "matches", "match")
        self.standings: Table[Standing] = Table(self, "standings", "standing")
        self.gauntlets: Table[Gauntlet] = Table(self, "gauntlets", "gauntlet")
        self.totals: Table[Totals] = Table(self, "totals", "totals")
        self.paces: Table[Pace] = Table(self, "paces", "pace")
        self.settings: Table[Setting] = Table(self, "settings", "setting")
        self.settings.keep = self._take_setting
        self.requests: Table[Request] = Table(self, "requests", "request")
        self.tokens: Table[Token] = Table(self, "tokens", "token")
        self.voters: Table[Voters] = Table(self, "voters", "list of voters")

    def begin(self, index: int, cluster: Cluster) -> None:
        """The commands that follow are those of the entry at `index`; its stamp made `cluster` of the cluster's row."""
        self.index = index
        self.now_ms = cluster.clock_ms
        self.cluster = cluster
        self.fence = cluster.fence
        self.seq = cluster.seq
        self.event_seq = cluster.event_seq
        self.written.clear()
        self._mark = (cluster, self.fence, self.seq, self.event_seq, 0)

    def next_seq(self) -> int:
        """The next sequence number: the order in which rows came to be."""
        self.seq += 1
        return self.seq

    def next_fence(self) -> int:
        """A fence that nobody held before."""
        self.fence += 1
        return self.fence

    def emit(self, kind: str, key: str, **detail: str) -> None:
        """Append an event to the ring: what happened, in the past tense. Empty details are left out."""
        if "" in detail.values():
            detail = {k: v for k, v in detail.items() if v}
        self.event_seq = seq = self.event_seq + 1
        self._events[str(seq)] = Event(seq, self.index, self.now_ms, kind, key, detail)
        self.written.append((kind, key, detail))

    def commit(self) -> None:
        """Let the command's writes stand, and bring in step what is derived from them."""
        state = self.state
        for table, key, old, row in self.undo:
            keep, due = table.keep, table.due
            moved = keep(key, old, row) if keep is not None else old is None
            if moved and due is not None and row is not None:
                at = due(row, state.timing, state.retention)
                if at:
                    state.index.schedule(table.name, key, at)
        followed = state.image.tables
        if followed:
            for table, key, _, row in self.undo:
                if table.name in followed:
                    state.image.note(table.name, key, row)
        self.undo.clear()
        self._mark = (self.cluster, self.fence, self.seq, self.event_seq, len(self.written))

    def _take_setting(self, key: str, old: Setting | None, row: Setting) -> bool:
        self.state.take_setting(key, row.value)
        return False

    def rollback(self) -> None:
        """Put back everything that was there before the command."""
        while self.undo:
            table, key, old, _ = self.undo.pop()
            if old is None:
                del table.rows[key]
            else:
                table.rows[key] = old
        last = self.event_seq
        self.cluster, self.fence, self.seq, self.event_seq, written = self._mark
        for seq in range(self.event_seq + 1, last + 1):
            del self.state.events[str(seq)]
        del self.written[written:]

    def finish(self) -> list[tuple[str, str, Any]]:
        """Write the cluster's row and let old events go; returns what the entry wrote, in order, until the next one."""
        state = self.state
        cluster = replace(self.cluster, fence=self.fence, seq=self.seq, event_seq=self.event_seq)
        if cluster != state.cluster:
            state.cluster = state.tables["cluster"][CLUSTER_KEY] = cluster
            self.written.append(("cluster", CLUSTER_KEY, cluster))
        # Numbers are consecutive, so the ones that fall out are known.
        for seq in range(self.event_seq - len(state.events) + 1, self.event_seq - state.limits.events + 1):
            del state.events[str(seq)]
        state.image.follow()
        return self.written
