"""Population: which selfplay is made, with which model, and that no config is left without."""

from __future__ import annotations

from ringrift_cluster.controllers.placement import place
from ringrift_cluster.controllers.population import populate
from statemachine import settings as st
from statemachine.commands import (
    AddHolder,
    AddWork,
    CancelWork,
    ConcludeGauntlet,
    DropHolder,
    PlaceWork,
    PromoteModel,
    RollbackModel,
    StartGauntlet,
)
from statemachine.rows import ModelStatus
from statemachine.values import Evidence, Input
from tests.support.law import (
    CONFIG,
    Cluster,
    claimed,
    completed,
    digest_of,
    game_config,
    games_file,
    given,
    item,
    node,
    setting,
    template,
    trained,
)

OLD, NEW = digest_of("old"), digest_of("new")
BY_HAND = Evidence("operator", note="by hand")


def promoted() -> Cluster:
    """Its champion is `new`, its former one `old`; node a holds the one, node b the other."""
    cluster = given(template(), game_config(), node("a"), node("b"), *trained("old"), *trained("new"))
    for digest, holder in ((OLD, "a"), (NEW, "b")):
        cluster.do(DropHolder(digest, "trainer"), AddHolder(digest, holder))
    cluster.do(PromoteModel(CONFIG, OLD, "", Evidence("initial")), PromoteModel(CONFIG, NEW, OLD, BY_HAND))
    return cluster


def models_of_the_stock(cluster: Cluster) -> list[str]:
    """After a look of the policy: the models that its items wait with."""
    for command in populate(cluster.state):
        cluster.do(command)
    group = cluster.state.index.group("selfplay", CONFIG)
    assert group is not None
    return [cluster.state.work[name].spec.inputs[0].digest for _, _, name in group.queue]


def test_after_a_rollback_from_a_champion_that_is_lost_selfplay_goes_on() -> None:
    cluster = promoted()
    assert models_of_the_stock(cluster) == [NEW, NEW]
    cluster.after(200_000, beating=("a",))
    assert place(cluster.state) == [], "nobody can deliver the champion"
    cluster.do(RollbackModel(CONFIG, OLD, NEW, "it is lost"))
    assert models_of_the_stock(cluster) == [OLD, OLD]
    assert all(isinstance(command, PlaceWork) for command in place(cluster.state))
    assert len(place(cluster.state)) == 2


def test_items_of_a_former_champion_that_can_be_had_and_those_of_others_stay() -> None:
    cluster = promoted()
    assert models_of_the_stock(cluster) == [NEW, NEW]
    cluster.do(item("mine", inputs=(Input("model", NEW),)), RollbackModel(CONFIG, OLD, NEW, "it loses to random"))
    assert populate(cluster.state) == []
    cluster.after(200_000, beating=("a",))
    assert [command.work for command in populate(cluster.state) if isinstance(command, CancelWork)] == [
        work for work in cluster.state.work if work.startswith(f"selfplay-{CONFIG}-")
    ]


def test_items_of_others_that_wait_for_ever_are_no_stock() -> None:
    cluster = promoted()
    cluster.do(*(item(f"theirs{n}", depends_on=("never",)) for n in range(5)))
    assert len(populate(cluster.state)) == 2
    cluster.do(item("runs"), claimed("c", "a"))
    assert len(populate(cluster.state)) == 1


def test_a_config_whose_first_model_was_rejected_gets_another_one() -> None:
    cluster = given(template(), game_config())
    (first,) = populate(cluster.state)
    cluster.do(*trained("m", work_type="initial"))
    assert populate(cluster.state) == [], "its first model waits for promotion"
    cluster.do(StartGauntlet("g", CONFIG, digest_of("m"), "random"))
    cluster.do(ConcludeGauntlet("g", "abandoned", Evidence("gauntlet")))
    assert cluster.state.models[digest_of("m")].status is ModelStatus.REJECTED
    (command,) = populate(cluster.state)
    assert isinstance(first, AddWork)
    assert isinstance(command, AddWork)
    assert (command.work_type, command.config) == ("initial", CONFIG)
    assert command.params["seed"] != first.params["seed"], "the same weights would stay rejected"


def test_selfplay_goes_on_when_all_games_that_waited_for_a_training_are_lost() -> None:
    cluster = promoted()
    stage = st.Stage(template="run")
    selfplay, training = st.Selfplay(stage, ahead_games=1_000), st.Training(stage, games_between=1_000)
    bounded = st.GameConfig(initial=stage, selfplay=selfplay, training=training, gate=st.Gate(stage))
    cluster.do(setting(f"config/{CONFIG}", bounded), item("w"), claimed("c", "a"))
    cluster.do(completed("w", 1_000, outputs=(games_file("g", 1_000),)))
    assert populate(cluster.state) == [], "a training is to use them first"
    cluster.after(200_000, beating=("b",))
    assert len(populate(cluster.state)) == 2
