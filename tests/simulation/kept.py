"""Seeds that once broke, with what it was. Each runs with every test run."""

from __future__ import annotations

from tests.simulation.run import Options

KEPT: dict[str, tuple[int, Options]] = {}
