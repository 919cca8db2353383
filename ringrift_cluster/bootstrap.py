"""The first settings of a cluster: how the built-in workloads are started, and profiles of the loop.

    fleet    all built-in game configs, sizes for GPU machines; a starting point to edit
    demo     three small configs that learn within minutes on two cores

A profile is proposed once; settings that exist already are left as they are, so an operator's changes survive a
second bootstrap.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from enum import StrEnum

from msgspec import Struct

from statemachine import settings as st
from statemachine.commands import ChangeSetting, encode_command
from statemachine.values import Needs

WORKLOADS = "executors.workloads"
BOARDS = ("square8", "square19", "hex8", "hexagonal")
PLAYERS = (2, 3, 4)


def _program(module: str, *arguments: str) -> tuple[str, ...]:
    return ("{python}", "-m", f"{WORKLOADS}.{module}", "--config", "{config}", "--seed", "{seed}", *arguments)


def templates(nice: int) -> dict[str, st.Template]:
    """The built-in workloads as any foreign program would be described."""
    return {
        "initial": st.Template(
            argv=_program("init", "--channels", "{channels}", "--blocks", "{blocks}"),
            require_outputs=("model",),
            nice=nice,
        ),
        "selfplay": st.Template(
            argv=_program(
                *("selfplay", "--games", "{games}", "--engine", "{engine}", "--model", "{model}"),
                *("--simulations", "{simulations}", "--batch", "{batch}", "--opening-plies", "{opening_plies}"),
                *("--foresight", "{foresight}", "--score-scale", "{score_scale}"),
            ),
            require_outputs=("games",),
            require_counts=("games",),
            nice=nice,
        ),
        "training": st.Template(
            argv=_program(
                *("training", "--data-list", "{inputs:games}", "--init", "{init}", "--steps", "{steps}"),
                *("--batch-size", "{batch_size}", "--learning-rate", "{learning_rate}"),
            ),
            require_outputs=("model",),
            require_counts=("steps",),
            nice=nice,
        ),
        "evaluation": st.Template(
            argv=_program(
                *("evaluation", "--a", "{a}", "--b", "{b}", "--groups", "{groups}", "--engine", "{engine}"),
                *("--simulations", "{simulations}", "--temperature", "{temperature}"),
                *("--opening-plies", "{opening_plies}"),
            ),
            require_counts=("games",),
            nice=nice,
        ),
    }


class Sizes(Struct, frozen=True):
    """The figures in which configs differ."""

    players: int
    weight: int
    channels: int
    blocks: int
    games_per_job: int
    simulations: int
    batch: int
    games_between: int
    window_games: int
    steps: int
    batch_size: int
    learning_rate: str
    groups_per_job: int
    floor_games: int
    cap_games: int
    baseline_games: int
    opening_plies: int
    harness: str = "policy-only"
    harness_simulations: int = 8
    #: of the bare policy
    temperature: str = "0.2"
    #: whether the search tries every leaf for a win at once
    foresight: str = "on"
    #: how far the search trusts its scores
    score_scale: str = "1.0"
    stock: int = 2
    elo1: int = 70


def game_config(sizes: Sizes, needs: Needs, training_needs: Needs) -> st.GameConfig:
    """A config's stages from its figures. Training goes first, then gauntlets, then selfplay."""
    return st.GameConfig(
        initial=st.Stage(
            template="initial",
            params={"channels": str(sizes.channels), "blocks": str(sizes.blocks)},
            needs=needs,
            priority=100,
        ),
        selfplay=st.Selfplay(
            stage=st.Stage(
                template="selfplay",
                params={
                    "engine": "gumbel-mcts",
                    "simulations": str(sizes.simulations),
                    "batch": str(sizes.batch),
                    "opening_plies": str(sizes.opening_plies),
                    "foresight": sizes.foresight,
                    "score_scale": sizes.score_scale,
                },
                needs=needs,
                priority=50,
            ),
            games_per_job=sizes.games_per_job,
            stock=sizes.stock,
            ahead_games=3 * sizes.games_between,
        ),
        training=st.Training(
            stage=st.Stage(
                template="training",
                params={
                    "steps": str(sizes.steps),
                    "batch_size": str(sizes.batch_size),
                    "learning_rate": sizes.learning_rate,
                },
                needs=training_needs,
                priority=100,
            ),
            games_between=sizes.games_between,
            window_games=sizes.window_games,
        ),
        gate=st.Gate(
            stage=st.Stage(
                template="evaluation",
                params={
                    "engine": sizes.harness,
                    "simulations": str(sizes.harness_simulations),
                    "temperature": sizes.temperature,
                    "opening_plies": str(sizes.opening_plies),
                },
                needs=needs,
                priority=85,
            ),
            elo0=0,
            elo1=sizes.elo1,
            floor_games=sizes.floor_games,
            cap_games=sizes.cap_games,
            groups_per_job=sizes.groups_per_job,
            baseline_games=sizes.baseline_games,
            harness=sizes.harness,
        ),
        players=sizes.players,
        weight=sizes.weight,
    )


def _demo_sizes(
    players: int,
    *,
    weight: int,
    games_per_job: int,
    batch: int,
    groups_per_job: int,
    learning_rate: str,
    temperature: str,
    foresight: str,
    score_scale: str,
) -> Sizes:
    """Figures for two ordinary cores: a generation takes about a minute, process starts included.

    A drop-k game has one action per column, so 16 simulations look at each of 7 to 9 columns at least once. The gate
    plays the bare policy: it measures what was learnt and not what the search adds, an untrained net is exactly as
    strong as random play, and 200 games cost less than starting the process.
    """
    group = 2 if players == 2 else 2 * players
    return Sizes(
        players=players,
        weight=weight,
        channels=32,
        blocks=1,
        games_per_job=games_per_job,
        simulations=16,
        batch=batch,
        games_between=games_per_job,
        window_games=4 * games_per_job,
        steps=400,
        batch_size=64,
        learning_rate=learning_rate,
        groups_per_job=groups_per_job,
        floor_games=100,
        cap_games=4 * groups_per_job * group,
        baseline_games=groups_per_job * group,
        opening_plies=4,
        temperature=temperature,
        foresight=foresight,
        score_scale=score_scale,
    )


DEMO_SIZES: Mapping[str, Sizes] = {
    "connect4_2p": _demo_sizes(
        players=2,
        weight=10,
        games_per_job=192,
        batch=96,
        groups_per_job=100,
        learning_rate="0.01",
        temperature="0.1",
        foresight="on",
        score_scale="1.0",
    ),
    "square8_2p": _demo_sizes(
        players=2,
        weight=3,
        games_per_job=128,
        batch=64,
        groups_per_job=100,
        learning_rate="0.01",
        temperature="0.1",
        foresight="on",
        score_scale="1.0",
    ),
    # Three untrained players who see every threat stop each other: two games in three are drawn and say nothing.
    # Without foresight three in a hundred are.
    "hex8_3p": _demo_sizes(
        players=3,
        weight=3,
        games_per_job=256,
        batch=128,
        groups_per_job=34,
        learning_rate="0.005",
        temperature="0.02",
        foresight="off",
        score_scale="0.2",
    ),
}


def fleet_sizes(board: str, players: int) -> Sizes:
    """Figures for a GPU fleet: larger boards get larger nets, fewer games a job and longer windows."""
    large = board in ("square19", "hexagonal")
    return Sizes(
        players=players,
        weight=5 if large else 10,
        channels=128 if large else 64,
        blocks=10 if large else 6,
        games_per_job=200 if large else 500,
        simulations=200,
        batch=128 if large else 256,
        games_between=2_000 if large else 5_000,
        window_games=40_000 if large else 50_000,
        steps=4_000,
        batch_size=512,
        learning_rate="0.001",
        groups_per_job=20,
        floor_games=200,
        cap_games=2_000,
        baseline_games=200,
        opening_plies=players,
        harness="gumbel-mcts",
        harness_simulations=64,
        stock=4,
        elo1=35,
    )


def demo() -> dict[str, Struct]:
    """Settings of the demo: short times, so that a kill is seen and healed while one watches."""
    slot = Needs(cpu_slots=1)
    return {
        "timing": st.Timing(
            heartbeat_ms=2_000,
            suspect_after_ms=6_000,
            dead_after_ms=20_000,
            lease_ms={"default": 30_000, "training": 45_000},
            start_within_ms=30_000,
            backoff_ms=1_000,
            backoff_cap_ms=10_000,
            backoff_jitter_percent=20,
            grace_ms=5_000,
        ),
        **{f"template/{name}": template for name, template in templates(nice=10).items()},
        **{f"config/{key}": game_config(sizes, slot, slot) for key, sizes in DEMO_SIZES.items()},
    }


def fleet() -> dict[str, Struct]:
    """Settings for GPU machines: selfplay shares a GPU by its reserved memory, training takes one whole."""
    gib = 1 << 30
    selfplay = Needs(gpus=1, vram_bytes=4 * gib, ram_bytes=4 * gib)
    training = Needs(gpus=1, ram_bytes=16 * gib)
    configs = {f"{board}_{n}p": fleet_sizes(board, n) for board in BOARDS for n in PLAYERS}
    return {
        "timing": st.Timing(backoff_jitter_percent=20),
        **{f"template/{name}": template for name, template in templates(nice=5).items()},
        **{f"config/{key}": game_config(sizes, selfplay, training) for key, sizes in configs.items()},
    }


class Profile(StrEnum):
    DEMO = "demo"
    FLEET = "fleet"


PROFILES: Mapping[Profile, Callable[[], dict[str, Struct]]] = {Profile.DEMO: demo, Profile.FLEET: fleet}


def commands(profile: Profile) -> list[bytes]:
    """Encoded commands that set what is not set yet."""
    return [
        encode_command(ChangeSetting(name=name, value=st.encode(value), expected_version=0, by="bootstrap"))
        for name, value in PROFILES[profile]().items()
    ]
