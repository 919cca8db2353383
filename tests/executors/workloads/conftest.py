from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch


@pytest.fixture(autouse=True)
def subnormal_numbers_come_back() -> Iterator[None]:
    """The players flush subnormal numbers to zero for their whole thread, which other tests may need."""
    yield
    torch.set_flush_denormal(False)
