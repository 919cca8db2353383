"""Retention: which files are forgotten, and which never."""

from __future__ import annotations

from ringrift_cluster.controllers.retention import forget
from statemachine.commands import ConcludeGauntlet, ForgetArtifact, PauseCluster, PromoteModel, StartGauntlet
from statemachine.settings import Retention
from statemachine.values import Evidence, Input
from tests.support.law import CONFIG, Cluster, digest_of, game_config, given, item, setting, template, trained


def forgotten(cluster: Cluster) -> list[str]:
    commands = forget(cluster.state)
    assert all(isinstance(command, ForgetArtifact) for command in commands)
    return [command.digest for command in commands if isinstance(command, ForgetArtifact)]


def league(*names: str) -> Cluster:
    """Models that were champion one after the other; the last one is."""
    cluster = given(template(), game_config(), *(step for name in names for step in trained(name)))
    for number, name in enumerate(names):
        previous = digest_of(names[number - 1]) if number else ""
        cluster.do(PromoteModel(CONFIG, digest_of(name), previous, Evidence("operator", note="by hand")))
        cluster.after(1_000)
    return cluster


def test_old_champions_are_forgotten_but_the_latest_and_those_that_are_read() -> None:
    cluster = league("m1", "m2", "m3", "m4", "m5")
    cluster.do(*trained("candidate"))
    assert forgotten(cluster) == []
    cluster.do(setting("retention", Retention(former_models=1)))
    cluster.do(item("e1", "evaluation", inputs=(Input("opponent", digest_of("m2")),)))
    assert forgotten(cluster) == [digest_of("m1"), digest_of("m3")]
    cluster.do(*forget(cluster.state))
    assert forgotten(cluster) == []


def test_rejected_models_are_forgotten_but_the_latest() -> None:
    cluster = league("m1")
    for number in range(4):
        cluster.do(*trained(f"r{number}"))
        cluster.do(StartGauntlet(f"g{number}", CONFIG, digest_of(f"r{number}"), "random"))
        cluster.do(ConcludeGauntlet(f"g{number}", "abandoned", Evidence("gauntlet")))
    assert forgotten(cluster) == []
    cluster.do(setting("retention", Retention(rejected_models=3)))
    assert forgotten(cluster) == [digest_of("r0")]
    cluster.do(setting("retention", Retention(rejected_models=0)))
    assert forgotten(cluster) == [digest_of(f"r{n}") for n in range(4)]


def test_a_paused_cluster_forgets_nothing() -> None:
    cluster = league("m1", "m2", "m3")
    cluster.do(setting("retention", Retention(former_models=1)), PauseCluster(paused=True, reason="files vanish"))
    assert forgotten(cluster) == []
    cluster.do(PauseCluster(paused=False))
    assert forgotten(cluster) == [digest_of("m1")]
