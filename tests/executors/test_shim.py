from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from executors import host, processes, shim
from executors.processes import Exit, Identity, Order

BOOT = host.boot_id()


def until(what: Callable[[], object], timeout_s: float = 10.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not what():
        assert time.monotonic() < deadline, f"it did not come true within {timeout_s:g} s"
        time.sleep(0.005)


class Kept:
    """A keeper started by a test."""

    def __init__(self, folder: Path, code: str, lease_s: float, **terms: object) -> None:
        folder.mkdir()
        self.folder = folder
        environment = dict(os.environ) | {"RINGRIFT_JOB_DIR": str(folder)}
        order = Order((sys.executable, "-c", code), environment, str(folder), **terms)  # type: ignore[arg-type]
        self.identity = processes.start(folder, order, shim.boot_s() + lease_s, BOOT)

    @property
    def program(self) -> int:
        until(lambda: (self.folder / "pids.json").exists())
        return int(json.loads((self.folder / "pids.json").read_text())["pid"])

    def says(self, text: str) -> None:
        log = self.folder / "stdout.log"
        until(lambda: log.exists() and text in log.read_text())

    def ended(self) -> Exit:
        until(lambda: processes.exit_record(self.folder) is not None)
        record = processes.exit_record(self.folder)
        assert record is not None
        until(lambda: not processes.alive(self.identity, BOOT))
        return record


Keep = Callable[..., Kept]


@pytest.fixture
def keep(tmp_path: Path) -> Iterator[Keep]:
    kept: list[Kept] = []

    def start(code: str, lease_s: float = 600.0, **terms: object) -> Kept:
        kept.append(Kept(tmp_path / f"job-{len(kept)}", code, lease_s, **terms))
        return kept[-1]

    yield start
    for one in kept:
        processes.put_down(one.identity, one.folder, BOOT)
        processes.reap(one.identity.pid)


def there(pid: int) -> bool:
    return processes.start_ticks(pid) != 0


PARENT = """
import os, subprocess, sys, time, signal
code = {code!r}
child = subprocess.Popen([sys.executable, "-c", code], start_new_session={own})
print("child", child.pid, flush=True)
{then}
"""


def parent(then: str = "time.sleep(60)", own: bool = False) -> str:
    return PARENT.format(code="import time; time.sleep(60)", own=own, then=then)


def child_of(kept: Kept) -> int:
    kept.says("\n")
    return int((kept.folder / "stdout.log").read_text().split()[1])


def test_the_exit_code_is_kept_and_the_streams_are_files(keep: Keep) -> None:
    kept = keep("import sys; print('out'); print('err', file=sys.stderr); sys.exit(7)")
    record = kept.ended()
    assert (record.code, record.signal, record.cause) == (7, 0, "exited")
    assert (kept.folder / "stdout.log").read_text() == "out\n"
    assert (kept.folder / "stderr.log").read_text() == "err\n"


def test_a_program_that_cannot_be_started_is_named_in_the_exit_record(tmp_path: Path) -> None:
    order = Order(("/no/such/program",), {}, str(tmp_path))
    identity = processes.start(tmp_path, order, shim.boot_s() + 600, BOOT)
    until(lambda: processes.exit_record(tmp_path) is not None)
    record = processes.exit_record(tmp_path)
    assert record is not None
    assert record.cause == "spawn"
    assert "/no/such/program" in record.error
    until(lambda: not processes.alive(identity, BOOT))
    processes.reap(identity.pid)


def test_a_program_that_is_killed_by_somebody_else_is_recorded_with_the_signal(keep: Keep) -> None:
    kept = keep("import time; print('up', flush=True); time.sleep(60)")
    kept.says("up")
    os.kill(kept.program, signal.SIGKILL)
    record = kept.ended()
    assert (record.code, record.signal, record.cause) == (0, 9, "exited")


def test_a_stop_is_sigterm_first_and_the_program_may_end_well(keep: Keep) -> None:
    code = (
        "import signal, time, sys; signal.signal(15, lambda *_: sys.exit(0)); print('up', flush=True); time.sleep(60)"
    )
    kept = keep(code, grace_s=30.0)
    kept.says("up")
    assert processes.stop(kept.identity, BOOT)
    record = kept.ended()
    assert (record.code, record.signal, record.cause) == (0, 0, "stop")


def test_a_program_that_ignores_sigterm_is_killed_after_its_grace(keep: Keep) -> None:
    kept = keep(
        "import signal, time; signal.signal(15, signal.SIG_IGN); print('up', flush=True); time.sleep(60)", grace_s=0.3
    )
    kept.says("up")
    began = time.monotonic()
    processes.stop(kept.identity, BOOT)
    record = kept.ended()
    assert (record.signal, record.cause) == (9, "stop")
    assert time.monotonic() - began >= 0.3


def test_a_kill_does_not_wait_for_the_grace(keep: Keep) -> None:
    kept = keep(
        "import signal, time; signal.signal(15, signal.SIG_IGN); print('up', flush=True); time.sleep(60)", grace_s=60.0
    )
    kept.says("up")
    processes.kill(kept.identity, BOOT)
    record = kept.ended()
    assert (record.signal, record.cause) == (9, "kill")


def test_a_lapsed_lease_ends_the_group_with_nobody_asking(keep: Keep) -> None:
    code = """
import signal, time
signal.signal(15, lambda *_: print('term', flush=True))
print('up', flush=True)
while True: time.sleep(1)
"""
    kept = keep(code, lease_s=1.2, grace_s=0.4, margin_s=0.2)
    ends_at = shim.read_lease(str(kept.folder), 0.0)
    record = kept.ended()
    assert (record.signal, record.cause) == (9, "lease")
    assert "term" in (kept.folder / "stdout.log").read_text()
    assert record.ended_at_s < ends_at


def test_a_renewed_lease_lets_the_program_live_past_the_old_one(keep: Keep) -> None:
    kept = keep("import time; time.sleep(1.0)", lease_s=0.6, grace_s=0.1, margin_s=0.1)
    processes.renew(kept.folder, shim.boot_s() + 60)
    assert kept.ended().code == 0


def test_a_lease_that_lapses_during_a_stop_cuts_the_grace_short(keep: Keep) -> None:
    kept = keep(
        "import signal, time; signal.signal(15, signal.SIG_IGN); print('up', flush=True); time.sleep(60)",
        lease_s=600.0,
        grace_s=60.0,
        margin_s=0.1,
    )
    kept.says("up")
    processes.stop(kept.identity, BOOT)
    processes.renew(kept.folder, shim.boot_s() + 0.3)
    assert kept.ended().cause == "lease"


def test_grandchildren_die_with_the_program_that_is_stopped(keep: Keep) -> None:
    kept = keep(parent(), grace_s=0.2)
    child = child_of(kept)
    processes.stop(kept.identity, BOOT)
    kept.ended()
    assert not there(child)


def test_grandchildren_do_not_outlive_a_program_that_ends_by_itself(keep: Keep) -> None:
    kept = keep(parent(then=""))
    kept.ended()
    assert not there(child_of(kept))


def test_a_grandchild_that_left_the_group_is_found_by_its_mark(keep: Keep) -> None:
    kept = keep(parent(then="", own=True))
    record = kept.ended()
    assert record.error == ""
    assert not there(child_of(kept))


def guard_of(kept: Kept) -> int:
    (found,) = set(shim.strays(str(kept.folder), processes.KEEPER)) - {kept.identity.pid}
    return found


@pytest.mark.parametrize("own", [False, True])
def test_nothing_outlives_a_keeper_that_is_killed_though_nobody_looks(keep: Keep, own: bool) -> None:
    kept = keep(parent(own=own))
    child, program, guard = child_of(kept), kept.program, guard_of(kept)
    os.kill(kept.identity.pid, signal.SIGKILL)
    until(lambda: not there(program) and not there(child) and not there(guard))
    assert processes.exit_record(kept.folder) is None


def test_a_guard_that_is_killed_is_replaced_and_the_attempt_goes_on(keep: Keep) -> None:
    kept = keep(parent(then="signal.pause()"))
    child, first = child_of(kept), guard_of(kept)
    os.kill(first, signal.SIGKILL)
    until(lambda: not there(first) and len(shim.strays(str(kept.folder), processes.KEEPER)) == 2)
    second = guard_of(kept)
    os.kill(kept.identity.pid, signal.SIGKILL)
    until(lambda: not there(child) and not there(second))


def test_a_lease_ends_an_attempt_though_its_keeper_is_frozen(keep: Keep) -> None:
    kept = keep(parent(own=True), lease_s=1.0, margin_s=0.2, grace_s=0.0)
    child = child_of(kept)
    os.kill(kept.identity.pid, signal.SIGSTOP)
    until(lambda: not there(child) and not processes.alive(kept.identity, BOOT))


def test_a_guard_ends_with_its_keeper(keep: Keep) -> None:
    kept = keep("print('up', flush=True); import time; time.sleep(0.2)")
    kept.says("up")
    guard = guard_of(kept)
    assert kept.ended().code == 0
    until(lambda: not there(guard))


def test_what_is_left_of_an_attempt_is_ended_by_its_mark_and_record(keep: Keep) -> None:
    kept = keep(parent())
    child, program = child_of(kept), kept.program
    guard = guard_of(kept)
    os.kill(kept.identity.pid, signal.SIGSTOP)
    os.kill(guard, signal.SIGKILL)
    os.kill(kept.identity.pid, signal.SIGKILL)
    until(lambda: not processes.alive(kept.identity, BOOT))
    assert there(program)
    assert processes.end_leftovers(kept.folder, BOOT)
    until(lambda: not there(program) and not there(child))
    assert processes.exit_record(kept.folder) is None


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="no affinity on this system")
def test_a_program_runs_on_the_cores_that_jobs_may_use(keep: Keep) -> None:
    last = max(os.sched_getaffinity(0))
    kept = keep("import os; print(sorted(os.sched_getaffinity(0)), flush=True)", cpus=(last,))
    kept.ended()
    assert (kept.folder / "stdout.log").read_text() == f"[{last}]\n"


def test_a_keeper_lives_on_when_the_process_that_started_it_is_killed(tmp_path: Path) -> None:
    folder = tmp_path / "job"
    folder.mkdir()
    code = f"""
import os, signal, sys
from pathlib import Path
from executors import host, processes, shim
mark = {{"RINGRIFT_JOB_DIR": {str(folder)!r}}}
order = processes.Order((sys.executable, "-c", "import time; time.sleep(0.3)"), mark, "/")
process = processes.start(Path({str(folder)!r}), order, shim.boot_s() + 600, host.boot_id())
print(process.pid, process.ticks, flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""
    dead = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=30, check=False)
    assert dead.returncode == -signal.SIGKILL
    pid, ticks = map(int, dead.stdout.split())
    assert processes.alive(Identity(BOOT, pid, ticks), BOOT)
    until(lambda: processes.exit_record(folder) is not None)
    assert processes.exit_record(folder) == Exit(
        0,
        0,
        "exited",
        started_at_s=pytest.approx(shim.boot_s(), abs=10),
        ended_at_s=pytest.approx(shim.boot_s(), abs=10),
    )


def test_a_lease_lapses_without_the_process_that_started_the_keeper(tmp_path: Path) -> None:
    folder = tmp_path / "job"
    folder.mkdir()
    code = f"""
import os, signal, sys
from pathlib import Path
from executors import host, processes, shim
mark = {{"RINGRIFT_JOB_DIR": {str(folder)!r}}}
program = (sys.executable, "-c", "import time; time.sleep(60)")
order = processes.Order(program, mark, "/", grace_s=0.2, margin_s=0.1)
processes.start(Path({str(folder)!r}), order, shim.boot_s() + 1.0, host.boot_id())
os.kill(os.getpid(), signal.SIGKILL)
"""
    subprocess.run([sys.executable, "-c", code], capture_output=True, timeout=30, check=False)
    until(lambda: processes.exit_record(folder) is not None)
    record = processes.exit_record(folder)
    assert record is not None
    assert record.cause == "lease"
    assert not shim.strays(str(folder))


def test_another_process_with_the_same_pid_is_never_taken_for_ours() -> None:
    own = processes.start_ticks(os.getpid())
    assert processes.alive(Identity(BOOT, os.getpid(), own), BOOT)
    assert not processes.alive(Identity(BOOT, os.getpid(), own + 1), BOOT)
    assert not processes.alive(Identity("another boot", os.getpid(), own), BOOT)
    assert not processes.kill(Identity(BOOT, os.getpid(), own + 1), BOOT)


def test_a_log_that_grows_too_long_is_halved_and_goes_on(keep: Keep) -> None:
    code = """
import sys, time
for i in range(2000): print('x' * 99)
sys.stdout.flush()
time.sleep(0.3)
print('last', flush=True)
time.sleep(60)
"""
    kept = keep(code, max_log_bytes=50_000)
    kept.says("last")
    until(lambda: (kept.folder / "stdout.log.1").exists())
    assert (kept.folder / "stdout.log").stat().st_size < 50_000
    assert (kept.folder / "stdout.log.1").stat().st_size <= 25_000


def test_the_lease_file_keeps_its_value_when_it_cannot_be_read(tmp_path: Path) -> None:
    assert shim.read_lease(str(tmp_path), 12.5) == 12.5
    (tmp_path / "lease").write_text("nonsense")
    assert shim.read_lease(str(tmp_path), 12.5) == 12.5
    shim.write_lease(str(tmp_path), 99.25)
    assert shim.read_lease(str(tmp_path), 12.5) == 99.25
