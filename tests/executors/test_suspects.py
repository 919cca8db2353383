from __future__ import annotations

from executors.suspects import FAILED_ITEMS, SLOW_LOOKS, Suspects


def test_an_xid_is_a_doubt_at_once_until_the_cluster_knows() -> None:
    suspects = Suspects()
    suspects.event("GPU-0", 79)
    assert "xid 79" in suspects.doubts["GPU-0"]
    suspects.told("GPU-0")
    suspects.told("GPU-0")
    assert suspects.doubts == {}


def test_slow_clocks_are_a_doubt_when_they_last() -> None:
    suspects = Suspects()
    for _ in range(SLOW_LOOKS - 1):
        suspects.clocks("GPU-0", "power brake")
    suspects.clocks("GPU-0", "")
    for _ in range(SLOW_LOOKS - 1):
        suspects.clocks("GPU-0", "power brake")
    assert not suspects.doubts
    suspects.clocks("GPU-0", "power brake")
    assert "power brake" in suspects.doubts["GPU-0"]


def test_jobs_of_several_items_that_fail_for_cuda_in_a_row_are_a_doubt() -> None:
    suspects = Suspects()
    for n in range(FAILED_ITEMS):
        suspects.ended(f"w{n}", ("GPU-0", "GPU-1"), "cuda")
        suspects.ended("by", ("GPU-1",), "")
        suspects.ended("stopped", ("GPU-0",), "stopped")
    assert list(suspects.doubts) == ["GPU-0"]
    assert "w0, w1, w2" in suspects.doubts["GPU-0"]


def test_one_item_that_fails_again_and_again_says_nothing_about_the_device() -> None:
    suspects = Suspects()
    for _ in range(10):
        suspects.ended("w", ("GPU-0",), "cuda")
    assert not suspects.doubts
