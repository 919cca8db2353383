"""Claims: workers that run items themselves take the best ones, and only once."""

from __future__ import annotations

from statemachine.commands import DrainPeer, PauseCluster, RenewJobs
from statemachine.errors import Code
from statemachine.rows import Actual
from statemachine.values import Input, JobProgress, Needs
from tests.support.law import claimed, completed, digest_of, failed, given, item, node, template


def claims(cluster, *names, **more):
    """Work ids that one claim of up to ten items gets."""
    return [job["work"] for job in cluster.do(claimed(*names, limit=10, **more))]


def test_a_claim_answers_with_all_that_a_worker_needs():
    model = Input("model", digest_of("m"))
    cluster = given(item("w1", params={"seed": "7"}, inputs=(model,), timeout_ms=9_000), claimed("c1"))
    assert cluster.then_done() == [
        {
            "job": "w1.1",
            "fence": 1,
            "work": "w1",
            "work_type": "selfplay",
            "config": "square8_2p",
            "params": {"seed": "7"},
            "inputs": {"model": digest_of("m")},
            "attempt": 1,
            "lease_ms": 300_000,
            "timeout_ms": 9_000,
        }
    ]
    assert cluster.status("w1") == "claimed"


def test_the_best_priority_goes_first_and_among_equals_the_oldest():
    cluster = given(item("old"), item("new"), item("urgent", priority=90), item("late", priority=10))
    assert claims(cluster, "c1") == ["urgent", "old", "new", "late"]


def test_a_claim_takes_up_to_its_limit_over_all_types_and_configs():
    cluster = given(item("a"), item("b", "evaluation", priority=60), item("c", config="hex8_3p", priority=70))
    assert len(cluster.do(claimed("c1", limit=2))) == 2
    assert (cluster.status("c"), cluster.status("b"), cluster.status("a")) == ("claimed", "claimed", "pending")


def test_a_claim_may_ask_for_types_and_configs():
    cluster = given(item("a"), item("b", "evaluation"), item("c", config="hex8_3p"))
    assert claims(cluster, "c1", work_types=("evaluation", "export")) == ["b"]
    assert claims(cluster, "c2", configs=("hex8_3p",)) == ["c"]
    assert claims(cluster, "c3", work_types=("selfplay",), configs=("square8_2p",)) == ["a"]


def test_a_worker_takes_no_item_that_is_for_other_nodes_or_for_labels_it_has_not():
    items = (
        item("for-b", needs=Needs(peers=("b",))),
        item("for-hosts", needs=Needs(labels=("ssh",))),
        item("by-template", template="run"),
        item("for-all", needs=Needs(cpu_slots=64)),
    )
    labelled = template(needs=Needs(labels=("ssh",)))
    assert claims(given(labelled, *items), "c1", peer="worker") == ["for-all"]
    assert claims(given(labelled, node("n"), *items), "c1", peer="n") == ["for-all"]
    cluster = given(labelled, node("b"), node("h", labels=("ssh", "fast")), *items)
    assert claims(cluster, "c1", peer="h") == ["for-hosts", "by-template", "for-all"]
    assert claims(cluster, "c2", peer="b") == ["for-b"]


def test_a_claim_with_nothing_to_give_is_empty_and_may_succeed_later():
    cluster = given()
    assert claims(cluster, "c1") == []
    cluster.do(item("w1"))
    assert claims(cluster, "c1") == ["w1"]


def test_a_repeated_claim_answers_with_the_same_jobs_and_takes_no_more():
    cluster = given(item("w1"), item("w2"), item("w3"))
    first = cluster.do(claimed("c1", limit=2))
    assert cluster.do(claimed("c1", limit=2)) == first
    assert cluster.status("w3") == "pending"


def test_two_workers_that_chose_one_claim_id_never_share_a_job():
    cluster = given(item("w1"), item("w2"), claimed("c1", "left"))
    cluster.refuses(claimed("c1", "right"), Code.CONFLICT, "'c1'", "'left'")


def test_items_that_wait_for_their_backoff_do_not_hide_the_ready_ones_behind_them():
    cluster = given(*(item(f"w{n}", priority=90) for n in range(5)), item("ready", priority=10))
    for n in range(5):
        cluster.do(claimed(f"c{n}"), failed(f"w{n}"))
    assert claims(cluster, "c9") == ["ready"]


def test_a_long_queue_of_one_config_does_not_starve_the_workers_of_another():
    cluster = given(*(item(f"a{n}", priority=90) for n in range(600)), item("b", config="hex8_3p", priority=1))
    assert claims(cluster, "c1", configs=("hex8_3p",)) == ["b"]


def test_items_with_open_dependencies_are_passed_over():
    cluster = given(item("second", depends_on=("first",), priority=90), item("first"))
    assert claims(cluster, "c1") == ["first"]
    cluster.do(completed("first"))
    assert claims(cluster, "c2") == ["second"]


def test_one_claim_does_not_take_two_trainings_of_a_config():
    cluster = given(item("t1", "training"), item("t2", "training"), item("t3", "training", "hex8_3p"))
    assert claims(cluster, "c1") == ["t1", "t3"]
    assert claims(cluster, "c2") == []


def test_nothing_is_claimed_while_the_cluster_is_paused_but_repeats_are_answered():
    cluster = given(item("w1"), item("w2"), claimed("c1"), PauseCluster(True))
    cluster.refuses(claimed("c2"), Code.PAUSED, "by an operator")
    assert claims(cluster, "c1") == ["w1"]


def test_a_draining_node_claims_nothing():
    cluster = given(node("a"), item("w1"), DrainPeer("a", True))
    cluster.refuses(claimed("c1", "a"), Code.INELIGIBLE, "'a'")


def test_a_claimed_job_lives_by_its_own_renewals_and_not_by_heartbeats():
    cluster = given(node("a"), item("w1"), claimed("c1", "a"))
    cluster.after(302_000, beating=("a",))
    assert cluster.status("w1") == "pending"
    assert cluster.state.jobs["w1.1"].actual is Actual.LOST


def test_a_worker_that_only_renews_keeps_its_job_and_has_started_it():
    cluster = given(item("w1"), claimed("c1"))
    renewal = RenewJobs((JobProgress("w1.1", 1, {"games": 3}, {"games": 50}),))
    for _ in range(10):
        assert cluster.do(renewal) == {"over": [], "stop": []}
        cluster.after(100_000)
    assert cluster.status("w1") == "running"
    assert cluster.state.work["w1"].attempts == 1
    assert cluster.job("w1").counts == {"games": 3}
