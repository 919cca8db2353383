"""One cluster for the tests of a module: 3 voters and 1 follower with two slots."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.support.cluster import TestCluster


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TestCluster]:
    made = TestCluster(tmp_path_factory.mktemp("cluster"))
    try:
        made.start()
        made.seed()
        yield made
    finally:
        made.stop()
