"""What every test of this tree lives with."""

from __future__ import annotations

import gc

import pytest


def pytest_collection_finish(session: pytest.Session) -> None:
    """Keep what was imported and collected out of the collector's way.

    Looking through it again and again holds every thread of a worker up for a third of a second at a time, which is
    as long as the election timeout of voters that run inside one.
    """
    gc.collect()
    gc.freeze()
