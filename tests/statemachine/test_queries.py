"""Questions to the state: what to run, why something waits, what to show."""

from __future__ import annotations

import json

import pytest

from statemachine import queries
from statemachine.commands import (
    AddHolder,
    CancelWork,
    ChangeSetting,
    DrainPeer,
    PauseCluster,
    RegisterArtifact,
    StopJob,
)
from statemachine.queries import assignments, dump, overview, pending, stalled, why, window
from statemachine.values import Input, Needs
from tests.support.law import (
    CONFIG,
    Cluster,
    bound,
    claimable,
    claimed,
    completed,
    digest_of,
    failed,
    games_file,
    given,
    item,
    node,
    started,
    template,
    trained,
)

X = digest_of("x")

# --- assignments ------------------------------------------------------------------------------------


def test_an_agent_is_told_all_it_needs_to_run_its_jobs():
    cluster = given(template(), node("a"), node("b"), RegisterArtifact(X, 500, "model", CONFIG, "b"))
    cluster.do(item("w1", template="run", inputs=(Input("model", X),)), bound("w1", "a"))
    (told,) = assignments(cluster.state, "a")
    assert (told.job.job, told.work.work, told.lease_end_ms) == ("w1.1", "w1", 301_000)
    assert told.template is not None
    assert told.template.argv == ("true",)
    (model,) = told.inputs
    assert (model.name, model.digest, model.size_bytes, model.holders) == ("model", X, 500, (("b", "http://b:8770"),))
    assert assignments(cluster.state, "b") == []


def test_jobs_that_should_stop_are_told_too_and_claimed_or_ended_ones_are_not():
    cluster = given(node("a"), *(item(f"w{n}") for n in range(4)))
    cluster.do(bound("w0", "a"), bound("w1", "a"), bound("w2", "a"), claimed("c1", "a"))
    cluster.do(CancelWork("w0"), completed("w2"))
    assert [(a.job.job, a.job.desired) for a in assignments(cluster.state, "a")] == [("w0.1", "stop"), ("w1.1", "run")]


def test_a_lease_ends_later_with_each_heartbeat():
    cluster = given(node("a"), item("w1"), bound("w1", "a")).after(10_000, beating=("a",))
    assert assignments(cluster.state, "a")[0].lease_end_ms == 311_000


def test_only_peers_that_may_answer_are_named_as_holders_the_living_first():
    cluster = given(node("d")).after(150_000).when(node("s")).after(50_000).when(node("b"), node("a"))
    cluster.do(RegisterArtifact(X, 1, "games", CONFIG, "nobody"))
    cluster.do(*(AddHolder(X, name) for name in "dsba"))
    holders = queries.holders_of(cluster.state, cluster.state.artifacts[X])
    assert [name for name, _ in holders] == ["a", "b", "s"]
    assert queries.holders_of(cluster.state, None) == ()
    assert queries.resolve(cluster.state, "x", digest_of("unknown")).size_bytes == 0


# --- why --------------------------------------------------------------------------------------------


def reason(cluster: Cluster, work: str = "w1") -> tuple[str, str]:
    """The sentence and the code of the first reason."""
    found = why(cluster.state, work)
    assert found is not None
    return found.sentence, found.reasons[0].code if found.reasons else ""


def placed(*steps, **more) -> Cluster:
    return given(template(), *steps, item("w1", template="run", **more))


def test_an_unknown_item_has_no_explanation():
    assert why(given().state, "w9") is None


def test_every_waiting_item_can_say_why():
    sentence, code = reason(placed())
    assert (sentence, code) == ("no peer has joined the cluster", "no_peers")
    sentence, code = reason(placed(node("a"), PauseCluster(True, "new racks")))
    assert (sentence, code) == ("the cluster is paused: new racks", "paused")
    assert reason(given(claimable("w1")))[1] == "unclaimed"
    assert reason(placed(depends_on=("w0",)))[1] == "dependency_missing"
    assert reason(placed(item("w0"), depends_on=("w0",)))[1] == "dependency"
    training = given(item("t1", "training"), item("w1", "training", ""), item("w0", "training", ""), claimed("c1"))
    training.do(claimed("c2"))
    assert reason(training, "w0")[1] == "exclusive"
    assert "no config" in reason(training, "w0")[0]
    assert reason(given(item("w1"), claimed("c1"), failed("w1")))[1] == "backoff"


@pytest.mark.parametrize(
    ("peer", "needs", "code"),
    [
        (node("a", slots=0), Needs(), "slots"),
        (node("a"), Needs(labels=("x",)), "label"),
        (node("a"), Needs(gpus=1), "gpu"),
        (node("a"), Needs(ram_bytes=2**50), "ram"),
        (node("a", disk_free_bytes=2**30), Needs(disk_bytes=2**31), "disk"),
        (node("a", not_ready="no shim"), Needs(), "not_ready"),
    ],
)
def test_what_no_peer_can_do_is_said_by_the_peers(peer, needs, code):
    sentence, first = reason(placed(peer, needs=needs))
    assert first == code
    assert sentence.startswith("no peer can take it now; most often (1): a ")


def test_the_reason_of_most_peers_comes_first_and_all_are_counted():
    cluster = placed(node("a", slots=0), node("b", slots=0), node("c"), DrainPeer("c", True))
    found = why(cluster.state, "w1")
    assert found is not None
    assert [(r.code, r.count) for r in found.reasons] == [("slots", 2), ("draining", 1)]
    assert "most often (2): a uses 0 of 0 CPU slots; (1): c is being drained" in found.sentence


def test_a_host_that_its_gateway_never_reached_is_named():
    def host(name: str, **more: object) -> ChangeSetting:
        setting = {"gateway": "a", "address": "10.0.0.9", "user": "u", **more}
        return ChangeSetting(f"host/{name}", json.dumps(setting))

    hosts = (host("far"), host("off", enabled=False), host("labelled", labels=["x"]), host("there"))
    there = node("there", labels=("ssh",), slots=0)
    tournament = placed(node("a"), there, *hosts, needs=Needs(labels=("ssh",)))
    sentence, code = reason(tournament)
    assert code == "host_absent"
    assert sentence.startswith("no peer can take it now; host far has never been reached by its gateway a")
    found = why(tournament.state, "w1")
    assert found is not None
    assert found.reasons[0].count == 2
    assert reason(placed(node("a"), *hosts, needs=Needs(peers=("labelled",))))[1] == "host_absent"
    assert reason(placed(node("a"), *hosts, needs=Needs(peers=("b",))))[1] == "not_chosen"
    assert reason(placed(node("a", slots=0), *hosts))[1] == "slots"


def test_an_item_that_somebody_can_take_is_next():
    found = why(placed(node("a", slots=0), node("b")).state, "w1")
    assert found is not None
    assert found.sentence.startswith("1 peers can take it")


def test_a_suspect_says_that_it_is_one():
    assert reason(placed(node("a")).after(46_000))[1] == "peer_suspect"


def test_items_that_run_or_are_over_say_so_too():
    cluster = given(node("a"), item("w1"), bound("w1", "a"), started("w1"))
    assert reason(cluster)[0] == "running as job w1.1 on a, which is running"
    cluster.do(StopJob("w1.1", 1, "preempted"))
    assert reason(cluster)[0].endswith("told to stop: preempted")
    cluster.do(completed("w1"))
    assert reason(cluster)[0] == "completed at 1000 ms of the cluster clock"
    assert reason(given(item("w1"), CancelWork("w1", "typo")))[0] == "typo"


def test_many_waiting_and_none_running_is_an_alarm_with_its_reason():
    cluster = given()
    assert stalled(cluster.state) is None
    cluster.do(claimable("w1"))
    found = stalled(cluster.state)
    assert found is not None
    assert found.reasons[0].code == "unclaimed"
    cluster.do(item("w2"), claimed("c1"))
    assert stalled(cluster.state) is None


# --- pages ------------------------------------------------------------------------------------------


def test_the_status_page_reads_counters():
    cluster = given(node("a"), node("b"), *trained("m"), *(item(f"w{n}") for n in range(5)))
    cluster.do(bound("w0", "a"), started("w0"), claimed("c1"), claimed("c2"), completed("w1"), CancelWork("w3"))
    view = overview(cluster.state)
    assert (view.peers_total, view.peers_by_status) == (2, {"alive": 2, "suspect": 0, "dead": 0})
    assert view.work_by_status["completed"] == 2
    assert view.work_by_type == {"selfplay": {"pending": 1, "claimed": 1, "running": 1}}
    assert view.live_jobs_by_type == {"selfplay": 2}
    assert view.totals[CONFIG].games == 10
    assert (view.artifacts, view.models, view.matches, view.champions) == (1, 1, 0, {})


def test_pending_items_are_listed_best_first_over_types_and_configs():
    cluster = given(item("a"), item("b", "export", priority=60), item("c", config="hex8_3p", priority=70), item("d"))
    assert [w.work for w in pending(cluster.state)] == ["c", "b", "a", "d"]
    assert [w.work for w in pending(cluster.state, limit=2)] == ["c", "b"]
    assert [w.work for w in pending(cluster.state, "selfplay")] == ["c", "a", "d"]
    assert pending(cluster.state, "training") == []


def test_the_window_is_the_newest_files_with_enough_games_oldest_first():
    cluster = given()
    for n in range(5):
        cluster.do(item(f"w{n}"), claimed(f"c{n}"), completed(f"w{n}", outputs=(games_file(f"s{n}", 10),)))
    names = {digest_of(f"s{n}"): n for n in range(5)}
    assert [names[a.digest] for a in window(cluster.state, CONFIG, 25)] == [2, 3, 4]
    assert [names[a.digest] for a in window(cluster.state, CONFIG, 10_000)] == [0, 1, 2, 3, 4]
    assert window(cluster.state, "hex8_3p", 10) == []
    assert window(cluster.state, CONFIG, 25, there=True) == [], "their holder is no node that is there"
    cluster.do(node("a"), *(AddHolder(digest_of(f"s{n}"), "a") for n in (0, 2, 4)))
    assert [names[a.digest] for a in window(cluster.state, CONFIG, 15, there=True)] == [2, 4]


def test_models_are_found_by_their_config():
    cluster = given(*trained("m"), *trained("n"), *trained("h", "hex8_3p"))
    state = cluster.state
    assert queries.candidates(state, CONFIG) == [digest_of("m"), digest_of("n")]
    assert queries.newest_model(state, CONFIG) == "", "nobody who is there has one"
    cluster.do(node("a"), AddHolder(digest_of("m"), "a"))
    assert queries.newest_model(state, CONFIG) == digest_of("m")
    cluster.do(AddHolder(digest_of("n"), "a"))
    assert queries.newest_model(state, CONFIG) == digest_of("n")
    assert (queries.newest_model(state, "none"), queries.champion(state, CONFIG)) == ("", "")
    assert queries.candidates(state, "none") == []


def test_a_dump_is_plain_data_of_every_table_or_of_one():
    cluster = given(item("w1"))
    everything = dump(cluster.state)
    assert list(everything) == list(cluster.state.tables)
    assert everything["work"]["w1"]["spec"]["work_type"] == "selfplay"
    assert list(dump(cluster.state, "work")) == ["work"]
    with pytest.raises(KeyError):
        dump(cluster.state, "wrok")
