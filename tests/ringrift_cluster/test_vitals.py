"""What a node says of itself in numbers."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

from executors.agent import AgentStatus
from ringrift_cluster.vitals import Executor, counters

STATUS = AgentStatus(
    peer="n1", incarnation=1, joined=True, index=7, preparing=0, running=2, stopping=0, waiting=3, reporting=0,
    started=9, restarted=4, completed=5, failed=1, last_pass_at_ms=1_700_000_000_000, not_ready="",
)  # fmt: skip


def test_programs_that_were_started_again_and_those_that_wait_for_it_are_counted() -> None:
    executor = SimpleNamespace(agent=SimpleNamespace(status=lambda: STATUS), storage=lambda: None)
    numbers = counters(cast(Any, SimpleNamespace(snapshots_taken=0)), cast(Any, executor), None, 0.0)
    assert numbers["agent_restarted_total"] == 4
    assert numbers["agent_waiting_for_restart"] == 3


def test_a_node_says_when_its_executor_last_looked_at_its_jobs() -> None:
    executor = Executor(cast(Any, None), cast(Any, None))
    executor.agent = cast(Any, SimpleNamespace(status=lambda: STATUS))
    said = executor.status()
    assert (said.last_pass_at_ms, said.acted_index, said.jobs_active) == (1_700_000_000_000, 7, 5)
