"""When rows are due, and what other spans do to that."""

from __future__ import annotations

import pytest
from hypothesis import given as everything
from hypothesis import strategies as some
from msgspec.structs import replace

from statemachine import deadlines
from statemachine import settings as st
from statemachine.commands import CancelWork, ChangeSetting
from tests.statemachine.test_snapshot import busy
from tests.support.law import bound, given, item, node, template

SPANS = some.fixed_dictionaries({span: some.integers(1, 10**9) for span in deadlines.SPANS})
ROWS = busy().state


def of(spans: dict[str, int]) -> tuple[st.Timing, st.Retention]:
    def chosen(kind: type) -> dict[str, int]:
        return {span: ms for span, ms in spans.items() if span in kind.__struct_fields__}

    return st.Timing(**chosen(st.Timing)), st.Retention(**chosen(st.Retention))


@everything(SPANS, SPANS)
def test_a_row_of_another_table_is_due_no_earlier_under_other_spans(before: dict[str, int], after: dict[str, int]):
    old, new = of(before), of(after)
    affected = {*deadlines.sooner(old[0], new[0]), *deadlines.sooner(old[1], new[1])}
    for table in deadlines.TABLES:
        for row in ROWS.tables[table].values():
            if table not in affected:
                assert deadlines.own_due(table, row, *new) >= deadlines.own_due(table, row, *old)


@pytest.mark.parametrize("span", deadlines.SPANS)
def test_a_shorter_span_concerns_its_table(span: str):
    for kind in (st.Timing, st.Retention):
        if span in kind.__struct_fields__:
            usual = kind()
            shorter = replace(usual, **{span: getattr(usual, span) - 1})
            assert deadlines.sooner(usual, shorter) == [deadlines.SPANS[span]]
            assert deadlines.sooner(shorter, usual) == []


def test_a_shorter_retention_lets_go_of_what_ended_before_it():
    cluster = given(item("w1"), item("w2"), CancelWork("w1"))
    cluster.after(60_000)
    cluster.do(ChangeSetting("retention", st.encode(st.Retention(work_ms=30_000))))
    cluster.after(1)
    assert list(cluster.state.work) == ["w2"]


def test_a_longer_retention_keeps_what_would_have_gone():
    def retention(ms: int) -> ChangeSetting:
        return ChangeSetting("retention", st.encode(st.Retention(work_ms=ms)))

    cluster = given(retention(30_000), item("w1"), CancelWork("w1"), retention(90_000))
    cluster.after(60_000)
    assert list(cluster.state.work) == ["w1"]
    cluster.after(31_000)
    assert list(cluster.state.work) == []


def test_a_job_that_does_not_start_is_lost_after_the_present_span():
    timing = st.Timing(lease_ms={"default": 200_000})
    cluster = given(ChangeSetting("timing", st.encode(timing)), template(), node("a"), item("w1", template="run"))
    cluster.do(bound("w1", "a"))
    cluster.do(ChangeSetting("timing", st.encode(replace(timing, start_within_ms=210_000))))
    cluster.after(190_000, beating=("a",))
    cluster.after(19_000, beating=("a",))
    assert cluster.status("w1") == "claimed"
    cluster.after(2_000, beating=("a",))
    assert cluster.status("w1") == "pending"
