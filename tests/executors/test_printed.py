from __future__ import annotations

from pathlib import Path

from executors.outcome import Progress
from executors.printed import WINDOW_BYTES, Printed
from statemachine.settings import OutputRule, Template

SAYS = Template(argv=("p",), progress=r"Epoch (?P<epochs>\d+)/(?P<epochs_total>\d+)(?: with (?P<games>[\d,]+) games)?")
MAKES = Template(argv=("p",), outputs=(OutputRule("*.jsonl", "games", "lines", "games"),))


def folder(where: Path) -> Path:
    (where / "out").mkdir()
    return where


def test_the_newest_line_that_fits_tells_the_totals(tmp_path: Path) -> None:
    printed, log = Printed(folder(tmp_path), SAYS), tmp_path / "stdout.log"
    assert printed.look() is None
    log.write_text("hello\nEpoch 1/20\nEpoch 2/20 with 1,200 games\nnoise\nEpoch 3/2")
    assert printed.look() == Progress({"epochs": 2, "games": 1200}, {"epochs": 20})
    assert printed.look() is None
    with log.open("a") as file:
        file.write("0\nchatter\n")
    assert printed.look() == Progress({"epochs": 3, "games": 1200}, {"epochs": 20})


def test_both_streams_are_read_and_a_flood_is_skipped(tmp_path: Path) -> None:
    printed = Printed(folder(tmp_path), SAYS)
    (tmp_path / "stderr.log").write_text("x" * 50 + "\n" + "y\n" * WINDOW_BYTES + "Epoch 4/9\n")
    assert printed.look() == Progress({"epochs": 4}, {"epochs": 9})


def test_a_log_that_was_halved_is_read_from_its_beginning(tmp_path: Path) -> None:
    printed, log = Printed(folder(tmp_path), SAYS), tmp_path / "stdout.log"
    log.write_text("Epoch 1/20\n" + "noise\n" * 100)
    assert printed.look() is not None
    log.write_text("Epoch 2/20\n")
    assert printed.look() == Progress({"epochs": 2}, {"epochs": 20})


def test_lines_of_the_files_it_makes_are_counted_as_they_come(tmp_path: Path) -> None:
    printed = Printed(folder(tmp_path), MAKES)
    assert printed.look() is None
    (tmp_path / "out/a.jsonl").write_text("1\n2\n3")
    (tmp_path / "out/b.jsonl").write_text("1\n")
    assert printed.look() == Progress({"games": 3}, {})
    with (tmp_path / "out/a.jsonl").open("a") as file:
        file.write("\n4\n")
    assert printed.look() == Progress({"games": 5}, {})
    (tmp_path / "out/a.jsonl").write_text("")
    assert printed.look() == Progress({"games": 1}, {})


def test_a_template_without_anything_to_read_is_left_alone() -> None:
    assert not Printed.reads(Template(argv=("p",)))
    assert Printed.reads(SAYS)
    assert Printed.reads(MAKES)


def test_a_number_that_no_count_can_be_is_passed_over(tmp_path: Path) -> None:
    says = Template(argv=("p",), progress=r"at (?P<at>\d+): (?P<games>\d+) games")
    printed = Printed(folder(tmp_path), says)
    (tmp_path / "stdout.log").write_text("at 1795735654254: 7 games\n")
    assert printed.look() == Progress({"games": 7})
    (tmp_path / "stderr.log").write_text("at 99999999999999999999999999: 8 games\n")
    assert printed.look() == Progress({"games": 8})


def test_a_line_in_a_file_that_two_rules_fit_is_counted_once(tmp_path: Path) -> None:
    both = (OutputRule("*.jsonl", "games", "lines", "games"), OutputRule("games_*.jsonl", "games", "lines", "games"))
    printed = Printed(folder(tmp_path), Template(argv=("p",), outputs=both))
    (tmp_path / "out/games_1.jsonl").write_text("1\n2\n")
    assert printed.look() == Progress({"games": 2})
    (tmp_path / "out/more.jsonl").write_text("1\n")
    assert printed.look() == Progress({"games": 3})


def test_a_bar_that_is_drawn_again_and_again_is_read_before_its_line_ends(tmp_path: Path) -> None:
    printed, log = Printed(folder(tmp_path), SAYS), tmp_path / "stderr.log"
    log.write_text("\rEpoch 1/20:  10%\rEpoch 2/20:  1")
    assert printed.look() == Progress({"epochs": 1}, {"epochs": 20})
    with log.open("a") as file:
        file.write("5%\r")
    assert printed.look() == Progress({"epochs": 2}, {"epochs": 20})
