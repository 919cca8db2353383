"""SSH servers, nodes that hold a file, and a GPU driver."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.executors import nvml
from tests.executors.holders import Holder
from tests.executors.nvml import Driver
from tests.support.sshd import KINDS, Sshd, missing


@pytest.fixture(params=KINDS, scope="session")
def server(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    if why := missing(request.param):
        pytest.skip(why)
    made = Sshd(request.param, tmp_path_factory.mktemp("ssh") / "sshd")
    yield made
    made.kill()


@pytest.fixture
def holder() -> Iterator[Callable[..., Holder]]:
    made: list[Holder] = []

    def make(*args: bytes, **options: int) -> Holder:
        made.append(Holder(*args, **options))
        return made[-1]

    yield make
    for one in made:
        one.close()


@pytest.fixture(scope="session")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return nvml.compiled(tmp_path_factory.mktemp("nvml"))


@pytest.fixture
def driver(library: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Driver]:
    yield from nvml.driver(library, tmp_path, monkeypatch)
