"""Alarms: what waits while nothing of its kind runs, and what failed for good."""

from __future__ import annotations

import msgspec

from statemachine import settings as st
from statemachine.alarms import LOOKED, STARVED, Alarm, alarms
from statemachine.commands import CancelWork, DrainPeer, PauseCluster, PromoteModel
from statemachine.queries import ASKED, explain
from statemachine.values import Evidence, Needs
from tests.support.law import (
    CONFIG,
    Cluster,
    bound,
    claimable,
    claimed,
    digest_of,
    failed,
    given,
    item,
    node,
    setting,
    started,
    template,
    trained,
)

LATE_MS = st.Timing().alarm_after_ms


def late(cluster: Cluster, more_ms: int = 0) -> tuple[Alarm, ...]:
    cluster.after(LATE_MS + more_ms, beating=("a",))
    return alarms(cluster.state)


def test_a_kind_that_waits_for_minutes_is_an_alarm_though_another_kind_runs() -> None:
    cluster = given(template(), node("a", slots=1), item("s"), bound("s", "a"), started("s"))
    cluster.do(item("t1", "training", template="run"), item("t2", "training", config="hex8_3p", template="run"))
    assert alarms(cluster.state) == ()
    (alarm,) = late(cluster)
    assert (alarm.kind, alarm.work_type, alarm.count, alarm.waited_ms) == ("stalled", "training", 2, LATE_MS)
    assert "2 training items wait and none runs, the first for 5 min" in alarm.sentence
    assert [(r.code, r.count) for r in alarm.reasons] == [("slots", 1)]


def test_a_kind_of_which_something_runs_is_none() -> None:
    cluster = given(template(), node("a", slots=1), item("w1"), item("w2"), bound("w1", "a"), started("w1"))
    assert late(cluster) == ()


def test_what_waits_for_something_else_or_for_an_operator_is_none() -> None:
    cluster = given(template(), node("a"), claimable("first", "export"), claimed("c1"))
    cluster.do(item("w", depends_on=("first",)))
    assert late(cluster) == ()
    cluster = given(template(), item("w"), PauseCluster(True, "a test"))
    assert late(cluster) == ()


def test_the_longest_wait_comes_first_and_only_some_are_explained() -> None:
    cluster = given(*(claimable(f"w{n}", f"type{n}") for n in range(5)))
    found = late(cluster)
    assert [alarm.work_type for alarm in found] == [f"type{n}" for n in range(5)]
    assert [bool(alarm.reasons) for alarm in found] == [True, True, True, False, False]


def test_the_first_of_each_config_is_looked_at() -> None:
    cluster = given(claimable("new", config="hex8_3p", priority=90)).after(LATE_MS // 2)
    cluster.do(claimable("late"))
    (alarm,) = alarms(cluster.after(LATE_MS // 2).state)
    assert (alarm.count, alarm.waited_ms) == (2, LATE_MS)
    cluster = given(claimable("again"), claimed("c1", "worker"), claimable("old", config="hex8_3p")).after(5_000)
    cluster.do(failed("again", "stopped"))
    assert late(cluster)[0].waited_ms == LATE_MS + 5_000


def test_an_item_that_waits_for_another_hides_none_that_stands_behind_it() -> None:
    cluster = given(template(), node("a", slots=0), item("first", depends_on=("nobody",), priority=90), item("behind"))
    (alarm,) = late(cluster)
    assert "; behind: no peer can take it now" in alarm.sentence
    waiting = [item(f"w{n}", depends_on=("nobody",), priority=90) for n in range(LOOKED)]
    assert late(given(template(), node("a", slots=0), *waiting, item("behind"))) == ()


def test_items_that_failed_for_good_are_an_alarm() -> None:
    cluster = given(template(), node("a"), item("w", max_attempts=1), bound("w", "a"), started("w"), failed("w"))
    (alarm,) = alarms(cluster.state)
    assert (alarm.kind, alarm.count) == ("dead_letters", 1)
    assert "1 items failed for good" in alarm.sentence


def test_a_page_asks_some_of_many_peers_and_says_so() -> None:
    cluster = given(template(), item("w"))
    row = node("p", slots=0)
    for number in range(1_000):
        cluster.do(msgspec.structs.replace(row, peer=f"p{number}"))
    said = explain(cluster.state, cluster.state.work["w"], ASKED)
    assert "of 250 that were asked" in said.sentence
    assert sum(reason.count for reason in said.reasons) == 250
    everybody = explain(cluster.state, cluster.state.work["w"])
    assert sum(reason.count for reason in everybody.reasons) == 1_000
    assert "asked" not in everybody.sentence


def test_placement_that_is_switched_off_is_a_reason() -> None:
    cluster = given(template(), node("a"), item("w"), setting("controller/placement", st.Controller(enabled=False)))
    assert [reason.code for reason in explain(cluster.state, cluster.state.work["w"]).reasons] == ["placement_off"]


def test_a_peer_that_is_drained_is_counted_under_its_reason() -> None:
    cluster = given(template(), node("a"), item("w"), DrainPeer("a", True, "new disk"))
    (alarm,) = late(cluster)
    assert [(r.code, r.count) for r in alarm.reasons] == [("draining", 1)]
    assert "new disk" in alarm.sentence


def test_a_config_whose_stages_name_a_template_that_nobody_set_is_an_alarm() -> None:
    stage = st.Stage(template="mine")
    config = st.GameConfig(stage, st.Selfplay(stage), st.Training(stage), st.Gate(stage))
    cluster = given(node("trainer"), setting(f"config/{CONFIG}", config))
    (alarm,) = alarms(cluster.state)
    assert (alarm.kind, alarm.count) == ("no_template", 4)
    assert f"first {CONFIG}: no setting template/mine exists" in alarm.sentence
    cluster.do(*trained("m", work_type="initial"), PromoteModel(CONFIG, digest_of("m"), "", Evidence("initial")))
    assert alarms(cluster.state)[0].count == 3, "it needs no first model any more"
    cluster.do(setting(f"config/{CONFIG}", msgspec.structs.replace(config, enabled=False)))
    assert alarms(cluster.state) == ()
    cluster.do(setting(f"config/{CONFIG}", config), template("mine"))
    assert alarms(cluster.state) == ()


def test_a_config_that_waits_for_long_while_others_have_their_turn_is_an_alarm() -> None:
    cluster = given(template(), node("a"), item("w1"), bound("w1", "a"), started("w1"))
    moon, young = Needs(labels=("moon",)), item("young", config="hex8_4p", needs=Needs(labels=("sun",)))
    cluster.do(item("w2", needs=moon), item("w3", config="hex8_3p", needs=moon), item("w4", config="", needs=moon))
    assert late(cluster, 8 * LATE_MS) == ()
    cluster.do(young)
    (alarm,) = late(cluster)
    assert (alarm.kind, alarm.work_type, alarm.count, alarm.waited_ms) == ("starved", "selfplay", 2, STARVED * LATE_MS)
    assert "2 configs wait" in alarm.sentence
    assert "first selfplay of hex8_3p for 50 min; w3: no peer can take it now" in alarm.sentence
    assert [(r.code, r.count) for r in alarm.reasons] == [("label", 1)]
    cluster.do(CancelWork("w3"))
    assert "first selfplay of no config" in alarms(cluster.state)[0].sentence
    cluster.do(PauseCluster(True, "a test"))
    assert alarms(cluster.state) == ()
