"""SSH servers."""

from __future__ import annotations

from typing import Any

import pytest

from tests.support.sshd import KINDS, Sshd, missing


@pytest.fixture(params=KINDS, scope="session")
def server(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    if why := missing(request.param):
        pytest.skip(why)
    made = Sshd(request.param, tmp_path_factory.mktemp("ssh") / "sshd")
    yield made
    made.kill()
