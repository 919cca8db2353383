"""The clock, the switches, the settings and the request ids."""

from __future__ import annotations

import pytest
from msgspec.structs import replace

from statemachine import settings as st
from statemachine.cluster import MAX_STEP_MS
from statemachine.commands import (
    CancelWork,
    ChangeSetting,
    ClaimWork,
    ConfigureVoters,
    Once,
    PauseCluster,
    RaiseFeatureLevel,
)
from statemachine.errors import Code, Done, Rejected
from statemachine.values import Voter
from tests.support.law import Cluster, claimable, claimed, completed, game_config, given, node, rows_digest, setting

# --- clock ------------------------------------------------------------------------------------------


def test_the_clock_moves_by_what_the_leaders_stamps_add():
    cluster = given()
    before = cluster.now_ms
    cluster.elapsed_ms += 700
    cluster.apply()
    assert cluster.now_ms == before + 700


def test_one_step_of_the_clock_is_bounded():
    cluster = given()
    before = cluster.now_ms
    cluster.elapsed_ms += 3_600_000
    cluster.apply()
    assert cluster.now_ms == before + MAX_STEP_MS
    cluster.elapsed_ms += 100
    cluster.apply()
    assert cluster.now_ms == before + MAX_STEP_MS + 100


def test_nothing_expires_because_a_leader_was_missing():
    cluster = given(node("a"), claimable("w1", ttl_ms=10_000)).after(9_000)
    before = cluster.now_ms
    cluster.term, cluster.elapsed_ms = cluster.term + 1, 86_400_000
    cluster.apply()
    assert cluster.now_ms == before
    assert cluster.status("w1") == "pending"
    cluster.after(1_000)
    assert cluster.now_ms == before + 1_000
    assert cluster.status("w1") == "expired"


def test_a_stamp_of_an_older_term_or_an_older_moment_moves_nothing():
    cluster = given().new_leader().after(500)
    row = cluster.state.cluster
    cluster.term, cluster.elapsed_ms = 1, 999_999
    cluster.apply()
    assert cluster.state.cluster == row
    cluster.term, cluster.elapsed_ms = 2, 400
    cluster.apply()
    assert cluster.state.cluster == row


# --- switches ---------------------------------------------------------------------------------------


def test_a_pause_is_told_once_and_keeps_its_reason_until_it_ends():
    cluster = given(PauseCluster(True, "moving racks"), PauseCluster(True, "again"))
    assert (cluster.state.cluster.paused, cluster.state.cluster.pause_reason) == (True, "moving racks")
    cluster.do(PauseCluster(False, "done"), PauseCluster(False))
    assert (cluster.state.cluster.paused, cluster.state.cluster.pause_reason) == (False, "")
    assert cluster.events() == ["ClusterPaused", "ClusterResumed"]


def test_reports_go_on_while_the_cluster_is_paused():
    cluster = given(claimable("w1"), claimed("c1"), PauseCluster(True), completed("w1"))
    assert cluster.status("w1") == "completed"


def test_the_feature_level_only_rises():
    cluster = given(RaiseFeatureLevel(3))
    assert cluster.do(RaiseFeatureLevel(3)) == 3
    cluster.refuses(RaiseFeatureLevel(2), Code.ILLEGAL_TRANSITION, "3", "2")
    assert cluster.events("FeatureLevelRaised") == ["cluster"]


def test_the_feature_level_waits_for_every_node_that_may_come_back():
    cluster = given(node("old", release="1.0"), node("new", feature_level=2))
    cluster.refuses(RaiseFeatureLevel(2), Code.CONFLICT, "'old'", "release 1.0", "level 1, not 2")
    cluster.do(node("old", incarnation=2, feature_level=2))
    assert cluster.do(RaiseFeatureLevel(2)) == 2


def test_a_dead_node_holds_the_feature_level_back_only_while_it_votes():
    cluster = given(ConfigureVoters((voter("old"),)), node("old"), node("new", feature_level=2)).after(200_000)
    assert cluster.state.peers["old"].status == "dead"
    cluster.do(node("new", feature_level=2))
    cluster.refuses(RaiseFeatureLevel(2), Code.CONFLICT, "'old'")
    cluster.do(ConfigureVoters((voter("new"),)))
    assert cluster.do(RaiseFeatureLevel(2)) == 2


# --- voters -----------------------------------------------------------------------------------------


def voter(name: str, log: str = "") -> Voter:
    return Voter(name, f"{name}:8771", f"http://{name}:8770", log)


def test_who_votes_is_kept_with_the_entry_that_said_so():
    cluster = given()
    assert cluster.state.voters.voters == ()
    index = cluster.do(ConfigureVoters((voter("a", "l1"), voter("b")), "r1"))
    assert cluster.state.voters.index == index
    assert (cluster.state.voters.request, cluster.state.voters.voters) == ("r1", (voter("a", "l1"), voter("b")))


def test_voters_that_come_go_or_get_another_log_are_told():
    cluster = given(ConfigureVoters((voter("a", "l1"), voter("b"))))
    cluster.do(ConfigureVoters((voter("a", "l1"), voter("b", "l2"))))
    assert cluster.events() == ["VoterAdded", "VoterAdded"]
    cluster.do(ConfigureVoters((voter("a", "l9"), voter("c", "l3"))))
    assert cluster.events()[2:] == ["VoterAdded", "VoterRemoved", "VoterAdded"]


# --- settings ---------------------------------------------------------------------------------------


def test_a_setting_takes_effect_and_counts_its_versions():
    cluster = given()
    assert cluster.do(setting("timing", st.Timing(backoff_ms=77))) == {"version": 1}
    assert cluster.state.timing.backoff_ms == 77
    assert cluster.do(setting("timing", st.Timing(backoff_ms=77))) == {"version": 1}
    assert cluster.do(setting("timing", st.Timing(backoff_ms=78), version=1)) == {"version": 2}
    assert cluster.events("SettingChanged") == ["timing", "timing"]


def test_two_operators_do_not_overwrite_each_other_unseen():
    cluster = given(setting("limits", st.Limits(events=50)))
    cluster.refuses(setting("limits", st.Limits(events=60), version=0), Code.CONFLICT, "'limits'", "1", "0")
    cluster.do(setting("limits", st.Limits(events=60), version=1))


@pytest.mark.parametrize(
    ("name", "value", "word"),
    [
        ("timeout", "{}", "settings are timing"),
        ("config", "{}", "config/NAME"),
        ("timing/fast", "{}", "'timing/fast'"),
        ("template/", "{}", "'template/'"),
        ("timing", "{", "setting timing"),
        ("timing", '{"heartbeat_ms": 0}', "heartbeat_ms"),
        ("timing", '{"peer_timeout": 90}', "peer_timeout"),
        ("timing", '{"heartbeat_ms": 30000}', "at least two heartbeats"),
        ("timing", '{"dead_after_ms": 45000}', "longer than suspect_after_ms"),
        ("timing", '{"lease_ms": {"default": 44999}, "grace_ms": 1000}', "at least three heartbeats"),
        ("timing", '{"lease_ms": {"training": 900000}, "grace_ms": 295000}', "longer than grace_ms"),
        ("controller/placement", '{"enabled": 1}', "enabled"),
        ("template/run", '{"argv": []}', "argv"),
        ("host/x", '{"gateway": "a", "address": "h"}', "user"),
        (f"config/{'x' * 33}", "{}", "items are named after it"),
    ],
)
def test_a_bad_value_is_refused_at_the_door_with_the_settings_name(name, value, word):
    given().refuses(ChangeSetting(name, value), Code.INVALID, word)


def test_a_gate_whose_cap_is_below_its_floor_is_refused():
    cluster = given(game_config())
    config = cluster.state.config("square8_2p")
    assert config is not None
    bad = replace(config, gate=replace(config.gate, floor_games=10, cap_games=9))
    cluster.refuses(setting("config/square8_2p", bad), Code.INVALID, "config/square8_2p", "floor")


def test_a_lease_without_an_entry_of_its_own_is_the_default():
    timing = st.Timing(lease_ms={"training": 900_000}, timeout_ms={"default": 5, "export": 7})
    assert (timing.lease("training"), timing.lease("selfplay")) == (900_000, 300_000)
    assert (timing.timeout("export"), timing.timeout("selfplay")) == (7, 5)
    assert st.Timing(timeout_ms={}).timeout("selfplay") == 5_400_000


def test_a_config_whose_selfplay_would_stop_before_the_next_training_is_refused():
    stage = st.Stage(template="run")

    def bounded(ahead_games):
        selfplay, training = st.Selfplay(stage, ahead_games=ahead_games), st.Training(stage, games_between=1_000)
        return setting("config/hex8_2p", st.GameConfig(stage, selfplay, training, st.Gate(stage)))

    cluster = given(bounded(0), bounded(1_000))
    cluster.refuses(bounded(999), Code.INVALID, "hex8_2p", "no training would ever begin")


def test_keyed_settings_are_found_by_their_key():
    cluster = given(game_config("b"), game_config("a"), setting("controller/judge", st.Controller(enabled=False)))
    state = cluster.state
    assert list(state.configs()) == ["a", "b"]
    assert (state.config("a"), state.config("z")) == (state.configs()["a"], None)
    assert (state.controller("judge").enabled, state.controller("place").enabled) == (False, True)
    assert state.template("run") is None


def test_hosts_are_found_by_the_node_that_speaks_for_them():
    near, far = (st.Host(gateway=name, address="10.0.0.1", user="u") for name in ("a", "b"))
    state = given(setting("host/y", near), setting("host/x", near), setting("host/z", far), game_config("a")).state
    assert list(state.hosts_of("a")) == ["x", "y"]
    assert (state.host("z"), state.host("w")) == (far, None)


def test_a_changed_timeout_applies_to_peers_that_are_silent_already():
    cluster = given(node("a")).after(40_000)
    cluster.do(setting("timing", st.Timing(heartbeat_ms=1_000, suspect_after_ms=20_000, dead_after_ms=30_000)))
    cluster.after(1_000)
    assert cluster.state.peers["a"].status == "dead"


def test_a_changed_retention_applies_to_what_is_finished_already():
    cluster = given(claimable("w1"), CancelWork("w1"), setting("retention", st.Retention(work_ms=5_000))).after(5_000)
    assert cluster.state.work == {}


# --- request ids ------------------------------------------------------------------------------------


def once(command, request="r1", expires=60_000) -> Once:
    return Once(request=request, expires_at_ms=expires, command=command)


def test_a_retried_request_takes_effect_once_and_is_answered_alike():
    cluster = given(claimable("w1"), claimable("w2"))
    first = cluster.do(once(ClaimWork("c1", "worker")))
    assert cluster.state.requests["r1"].kind == "work.claim"
    assert cluster.do(once(ClaimWork("c2", "worker"))) == first
    assert cluster.status("w2") == "pending"


def test_a_request_id_is_not_used_for_another_kind_of_command():
    cluster = given(claimable("w1"), once(CancelWork("w1")))
    cluster.refuses(once(ClaimWork("c1", "worker")), Code.CONFLICT, "'r1'", "work.cancel")


def test_a_refused_request_is_not_remembered_so_it_may_be_tried_again():
    cluster = given()
    cluster.refuses(once(CancelWork("w1")), Code.NOT_FOUND)
    cluster.do(claimable("w1"))
    assert cluster.do(once(CancelWork("w1"))) == "cancelled"


def test_a_request_past_its_expiry_is_refused_and_not_run():
    cluster = given(claimable("w1")).after(59_000)
    cluster.refuses(once(CancelWork("w1"), expires=cluster.now_ms), Code.EXPIRED, "'r1'", str(cluster.now_ms))
    assert cluster.status("w1") == "pending"


def test_a_request_is_forgotten_at_its_expiry_and_refused_from_then_on():
    cluster = given(claimable("w1"), once(CancelWork("w1"))).after(60_000)
    assert cluster.state.requests == {}
    cluster.refuses(once(CancelWork("w1")), Code.EXPIRED)


def test_the_memory_for_requests_is_bounded():
    cluster = given(setting("limits", st.Limits(requests=1)), claimable("w1"), once(CancelWork("w1")))
    cluster.refuses(once(CancelWork("w1"), "r2"), Code.LIMIT, "1 request ids")
    assert cluster.do(once(CancelWork("w1"))) == "cancelled"


def test_a_result_and_its_memory_are_one_step_even_within_one_entry():
    cluster = Cluster()
    results = cluster.apply(once(claimable("w1")), once(claimable("w1")), once(claimable("w2")))
    assert isinstance(results[0], Done)
    assert results[0] == results[1] == results[2]
    assert list(cluster.state.work) == ["w1"]


def test_a_refusal_names_what_happened_to_whom_and_what_to_do():
    cluster = given()
    before = rows_digest(cluster.state)
    cluster.apply(CancelWork("w1"))
    assert cluster.last == Rejected("not_found", "no work item 'w1' is known")
    assert rows_digest(cluster.state) == before


def test_a_template_that_names_exit_codes_is_written_with_all_its_fields():
    text = '{"argv":["x"],"exit_codes":{"1":"verdict","3":"user"}}'
    decoded = st.decode("template/t", text)
    assert st.decode("template/t", st.encode(decoded)) == decoded
    assert '"exit_codes":{"1":"verdict","3":"user"}' in st.encode(decoded)
