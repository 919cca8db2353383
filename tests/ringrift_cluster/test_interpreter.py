"""What a node process does before it has threads."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import msgspec

from executors.outcome import ResultFile
from ringrift_cluster import interpreter
from statemachine.commands import AddWork
from statemachine.settings import Template

#: types that nobody has used, decoded for the first time by four threads at once
RACE = """
import sys, threading
from typing import Annotated
import msgspec
from ringrift_cluster import interpreter
from statemachine.values import Count, Counts, Id, Short, Tally

SOURCE = '''
class Part(msgspec.Struct):
    path: Annotated[str, msgspec.Meta(min_length=1, max_length=256)]
    kind: Id
    counts: Counts = {}

class Whole(msgspec.Struct):
    counts: Counts = {}
    metrics: Annotated[dict[Short, str | int | float | bool | None], msgspec.Meta(max_length=128)] = {}
    parts: Annotated[tuple[Part, ...], msgspec.Meta(max_length=1024)] = ()
    tally: Annotated[tuple[Tally, ...], msgspec.Meta(max_length=16)] = ()
'''
DATA = b'{"counts": {"games": 1}, "parts": [{"path": "a", "kind": "b", "counts": {"games": 1}}]}'
sys.setswitchinterval(1e-6)
for number in range(200):
    names = {k: v for k, v in globals().items()}
    exec(SOURCE, names)
    KNOW
    barrier = threading.Barrier(4)

    def go():
        barrier.wait()
        msgspec.json.decode(DATA, type=names["Whole"])

    threads = [threading.Thread(target=go) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
"""


def test_types_that_threads_meet_for_the_first_time_take_no_process_down() -> None:
    code = RACE.replace("KNOW", "interpreter.know_types()")
    root = Path(__file__).parents[2]
    ended = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, timeout=120, check=False)
    assert (ended.returncode, ended.stderr) == (0, b"")


def test_all_types_of_commands_settings_and_results_are_known() -> None:
    class Local(msgspec.Struct):
        number: int

    assert {AddWork, Template, ResultFile, Local} <= set(interpreter.know_types())


def test_a_node_process_holds_no_library_of_the_workloads() -> None:
    code = "import sys, ringrift_cluster.process; print({'torch', 'numpy', 'scipy'} & set(sys.modules))"
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=True)
    assert said.stdout == "set()\n"
