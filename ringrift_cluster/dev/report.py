"""What is left when the demo ends: a summary in words and the Elo chart."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ringrift_cluster.dev.observer import Json, Picture

CHART = "elo.png"


def gains(picture: Picture) -> dict[str, tuple[float, float]]:
    """By config: rating of the untrained net and of the champion, where both are rated."""
    found = {}
    for config, rows in picture.rankings.items():
        first = next((r["elo"] for r in rows if r["generation"] == 0), None)
        best = next((r["elo"] for r in rows if r["status"] == "champion"), None)
        if first is not None and best is not None:
            found[config] = (float(first), float(best))
    return found


def summary(picture: Picture, elapsed_s: float, promotion_times_s: Sequence[float], story: Sequence[str]) -> str:
    """A few sentences for people and logs."""
    status = picture.status
    lines = [f"ran {elapsed_s:.0f} s, {picture.promotions} promotions in all, {picture.counted_games:,} games counted"]
    if promotion_times_s:
        lines.append("promotions of this run at " + ", ".join(f"{t:.0f} s" for t in promotion_times_s))
    for config, totals in sorted(status.get("totals", {}).items()):
        lines.append(
            f"  {config:<14} games {totals['games']:>7,}  trainings {totals['training_jobs']:>3}  "
            f"evaluation games {totals['evaluation_games']:>6,}  promotions {totals['promotions']}"
        )
    for config, (first, best) in sorted(gains(picture).items()):
        lines.append(f"  {config:<14} untrained {first:.0f} Elo, champion {best:.0f} Elo ({best - first:+.0f})")
    failed = status.get("work_queue", {}).get("by_status", {}).get("failed", 0)
    if failed:
        lines.append(f"{failed} work items are dead letters; see ringrift-node work list --status failed")
    if story:
        lines.append(f"{len(story)} node deaths were healed; the last: {story[-1]}")
    if status:
        lines.append(f"log index {status['applied']}, term {status['term']}, digest {status['digest'][:16]}")
    return "\n".join(lines)


def chart(picture: Picture, folder: Path) -> Path | None:
    """Draw ratings by generation with one standard error; None when there is nothing to draw or no matplotlib."""
    if not picture.rankings:
        return None
    try:
        import matplotlib
    except ImportError:
        return None
    matplotlib.use("Agg")
    from matplotlib import pyplot
    from matplotlib.ticker import MaxNLocator

    figure, axes = pyplot.subplots(figsize=(9, 5.5))
    for config, rows in sorted(picture.rankings.items()):
        played = sorted((r for r in rows if r["generation"] >= 0), key=lambda r: r["generation"])
        if played:
            _draw(axes, config, played)
    axes.axhline(400, color="grey", linewidth=1, linestyle="--")
    axes.text(0, 400, " random (pinned)", color="grey", va="bottom")
    axes.set_xlabel("generation")
    axes.set_ylabel("Elo")
    axes.set_title("Ratings by generation (bars: one standard error; filled: was or is champion)")
    if axes.get_legend_handles_labels()[0]:
        axes.legend(loc="best")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(alpha=0.25)
    path = folder / CHART
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    pyplot.close(figure)
    return path


def _draw(axes: object, config: str, played: list[Json]) -> None:
    crowned = [r for r in played if r["status"] in ("champion", "former")]
    others = [r for r in played if r not in crowned]
    line = axes.errorbar(  # type: ignore[attr-defined]
        [r["generation"] for r in crowned],
        [r["elo"] for r in crowned],
        yerr=[r["stderr"] for r in crowned],
        marker="o",
        capsize=3,
        label=config,
    )
    axes.plot(  # type: ignore[attr-defined]
        [r["generation"] for r in others],
        [r["elo"] for r in others],
        linestyle="",
        marker="o",
        markerfacecolor="none",
        color=line[0].get_color(),
    )
