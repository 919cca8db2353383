"""Training: on what, from what, and that none waits for ever."""

from __future__ import annotations

from ringrift_cluster.controllers.items import GIVE_UP_AFTER_MS, RETRY_AFTER_MS
from ringrift_cluster.controllers.training import train
from statemachine.commands import (
    AddHolder,
    AddWork,
    CancelWork,
    Command,
    DropHolder,
    PromoteModel,
    RegisterArtifact,
)
from statemachine.rows import STORE
from statemachine.values import Evidence
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
    template,
    trained,
)

GAMES = 600


def moved(name: str, to: str) -> list[Command]:
    """A file that somebody else has made is on this holder alone."""
    return [DropHolder(digest_of(name), "trainer"), AddHolder(digest_of(name), to)]


def played(*shards: tuple[str, str]) -> Cluster:
    """A champion `m` on node a, and files of 600 games each with the node that made and holds them."""
    cluster = given(template(), game_config(), node("a"), node("b"), *trained("m"), *moved("m", "a"))
    cluster.do(PromoteModel(CONFIG, digest_of("m"), "", Evidence("initial")))
    for name, holder in shards:
        games = completed(name, GAMES, outputs=(games_file(name, GAMES),))
        cluster.do(item(name), claimed(f"claim-{name}", holder, work_types=("selfplay",)), games)
    return cluster


def wanted(cluster: Cluster) -> AddWork:
    (command,) = train(cluster.state)
    assert isinstance(command, AddWork)
    return command


def inputs(command: AddWork) -> tuple[list[str], str]:
    """The files it reads, and the model it goes on from."""
    files = [i.digest for i in command.inputs if i.name != "init"]
    return files, next((i.digest for i in command.inputs if i.name == "init"), "")


def test_older_games_take_the_place_of_those_that_are_lost() -> None:
    cluster = played(*((f"g{n}", "a") for n in range(9)), *((f"lost{n}", "b") for n in range(4)))
    cluster.after(200_000, beating=("a",))
    files, _ = inputs(wanted(cluster))
    assert files == [digest_of(f"g{n}") for n in range(9)], "the window is as full as it can be"


def test_a_training_goes_on_from_the_newest_model_that_can_be_had_and_never_from_nought() -> None:
    cluster = played(("g0", "a"), ("g1", "a"))
    cluster.do(RegisterArtifact(digest_of("later"), 1_000, "model", CONFIG, "b"))
    cluster.do(PromoteModel(CONFIG, digest_of("later"), digest_of("m"), Evidence("operator", note="by hand")))
    assert inputs(wanted(cluster))[1] == digest_of("later")
    cluster.after(200_000, beating=("a",))
    assert inputs(wanted(cluster))[1] == digest_of("m")
    cluster.do(DropHolder(digest_of("m"), "a"))
    assert train(cluster.state) == []


def test_files_that_only_an_object_store_has_are_trained_on() -> None:
    store = f"{STORE}s3"
    cluster = played(("g0", "b"), ("g1", "b"))
    cluster.do(*(AddHolder(digest_of(name), store) for name in ("g0", "g1", "m")), DropHolder(digest_of("m"), "a"))
    cluster.do(node("gate", labels=(store,)))
    cluster.after(200_000, beating=("gate",))
    assert inputs(wanted(cluster)) == ([digest_of("g0"), digest_of("g1")], digest_of("m"))


def test_a_training_whose_files_are_gone_makes_room_for_one_with_others() -> None:
    cluster = played(("g0", "a"), ("g1", "a"), ("lost", "b"))
    cluster.do(waiting := wanted(cluster))
    cluster.after(GIVE_UP_AFTER_MS - 2_000, beating=("a",))
    assert train(cluster.state) == [], "the node may come back"
    cluster.after(2_000, beating=("a",))
    (command,) = train(cluster.state)
    assert isinstance(command, CancelWork)
    assert command.work == waiting.work
    cluster.do(command)
    assert train(cluster.state) == []
    cluster.after(RETRY_AFTER_MS, beating=("a",))
    assert inputs(wanted(cluster))[0] == [digest_of("g0"), digest_of("g1")]


def test_what_an_object_store_has_and_what_others_added_is_not_given_up() -> None:
    store = f"{STORE}s3"
    cluster = played(("g0", "a"), ("g1", "b"))
    cluster.do(AddHolder(digest_of("g1"), store), node("gate", labels=(store,)))
    cluster.do(wanted(cluster))
    cluster.after(GIVE_UP_AFTER_MS, beating=("a",))
    assert train(cluster.state) == []
    mine = played(("g0", "a"), ("g1", "b"))
    theirs = wanted(mine)
    mine.do(item("mine", "training", inputs=theirs.inputs, unique=theirs.unique))
    mine.after(GIVE_UP_AFTER_MS, beating=("a",))
    assert train(mine.state) == []


def test_a_file_whose_holder_was_forgotten_is_given_up_at_once() -> None:
    cluster = played(("g0", "a"), ("g1", "a"))
    cluster.do(wanted(cluster), DropHolder(digest_of("g1"), "a"))
    (command,) = train(cluster.state)
    assert isinstance(command, CancelWork)
