from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from ringrift_cluster.cli.app import app

runner = CliRunner()
PLAYS = "import sys; open('out/a.jsonl', 'w').write('game\\n' * int(sys.argv[1])); print('ready', flush=True)"


def template(where: Path, code: str = PLAYS, **more: object) -> str:
    rule = {"glob": "*.jsonl", "kind": "games", "count": "lines", "unit": "games", "partial": True}
    value = {"argv": ["{python}", "-c", code, "{games}"], "outputs": [rule]} | more
    path = where / "template.json"
    path.write_text(json.dumps(value))
    return f"@{path}"


def tried(*words: str, code: int = 0) -> str:
    result = runner.invoke(app, ["workload", "try", *words])
    assert result.exit_code == code, f"{words}: {result.output} {result.exception}"
    return result.output


def test_a_trial_says_what_would_count_and_be_published(tmp_path: Path) -> None:
    said = tried(template(tmp_path), "-p", "games=3", "--folder", str(tmp_path / "work"))
    assert "verdict      completed" in said
    assert "counts       games=3" in said
    assert "a.jsonl" in said


def test_a_trial_that_would_fail_exits_with_1_and_says_why(tmp_path: Path) -> None:
    said = tried(template(tmp_path), "-p", "games=0", "--folder", str(tmp_path / "work"), code=1)
    assert "verdict      failed (no_output): it left 1 files '*.jsonl' with no games in them" in said


def test_a_trial_can_be_stopped_as_the_cluster_would(tmp_path: Path) -> None:
    where = template(tmp_path, PLAYS + "; import time; time.sleep(600)")
    said = tried(where, "-p", "games=2", "--stop-after", "3", "--folder", str(tmp_path / "work"), "--json")
    report = json.loads(next(line for line in said.splitlines() if line.startswith("{")))
    assert (report["verdict"], report["counts"]) == ("stopped", {"games": 2})


def test_a_dry_run_starts_nothing(tmp_path: Path) -> None:
    said = tried(
        template(tmp_path, env={"MODE": "fast"}), "-p", "games=3", "--dry-run", "--folder", str(tmp_path / "w")
    )
    assert '"3"]' in said
    assert "MODE" in said
    assert not list(tmp_path.glob("w/jobs/*/out/*"))


@pytest.mark.parametrize(
    ("change", "words", "sentence"),
    [
        ({}, (), "asks for {games}, which nothing provides"),
        ({"summary": "games"}, ("-p", "games=1"), "has no named group"),
        ({"arg": 1}, ("-p", "games=1"), "unknown field"),
        ({}, ("-p", "games"), "is not name=value"),
        ({}, ("-i", "data=/nowhere/at/all"), "is no file"),
    ],
)
def test_what_cannot_be_tried_is_refused_in_a_sentence(
    tmp_path: Path, change: dict[str, Any], words: tuple[str, ...], sentence: str
) -> None:
    assert sentence in tried(template(tmp_path, **change), *words, "--folder", str(tmp_path / "work"), code=2)
