"""The keeper of one attempt: starts its program, watches its lease, keeps its exit code.

    python -I -S shim.py JOB_DIR

    order.json   read once       argv, env, cwd, nice, cpus, grace_s, margin_s, max_log_bytes
    lease        read every wake the boot-time second at which the lease is over
    pids.json    written         after the start: pid, pgid, start ticks of the program
    exit.json    written last    how it ended; by rename, so it is there whole or not at all
    stdout.log, stderr.log       what the program says; halved when they grow over max_log_bytes

    signal to the keeper         what it does
    SIGTERM                      SIGTERM to the program's group, SIGKILL after the grace
    SIGUSR1                      SIGKILL to the group at once
    lease - margin - grace       the same as SIGTERM, without anybody asking
    lease - margin               SIGKILL to the group

A child of it, the guard, sleeps until the keeper is gone without an exit.json, or lets a lease lapse because it is
frozen, and then ends everything of the attempt: the lease holds though keeper and node process are both killed. A guard
that is killed is replaced.

It outlives the node process, so it may depend on nothing that could change under it: one file, the
standard library, started without `site`. The node process imports the file formats from here. It is also sent to
hosts that have no agent, so it needs nothing newer than Python 3.8.
"""

# pathlib would double the start-up time.
# ruff: noqa: PTH105, PTH116, PTH123, PTH208

from __future__ import annotations

import json
import os
import select
import signal
import sys
import time

#: importing typing would take a fifth of the start-up time; annotations do not need it at run time
TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

#: The longest sleep. Timers stand still while a machine is suspended, the boot-time clock does not.
LONGEST_SLEEP_S = 1.0
#: how long a group may take to disappear after SIGKILL (a process in an uninterruptible read)
VANISH_S = 5.0
#: <linux/prctl.h>
PR_SET_CHILD_SUBREAPER = 36
#: after a keeper's death its program may still be between fork and exec, where nothing marks it
UNMARKED_S = 0.1


def boot_s() -> float:
    """Seconds since some fixed moment of this boot, counting suspended time."""
    # CLOCK_MONOTONIC stops during sleep on Linux and goes on during sleep on macOS.
    clock = getattr(time, "CLOCK_BOOTTIME", None)
    return time.clock_gettime(time.CLOCK_MONOTONIC if clock is None else clock)


def write_whole(path: str, text: str) -> None:
    """Replace a small file so that a reader sees the old text or the new one."""
    beside = f"{path}.{os.getpid()}.partial"
    with open(beside, "w", encoding="utf-8") as file:
        file.write(text)
    os.replace(beside, path)


def write_lease(job_dir: str, ends_at_s: float) -> None:
    """Let the attempt live until a boot-time second."""
    write_whole(f"{job_dir}/lease", f"{ends_at_s:.3f}\n")


def read_lease(job_dir: str, otherwise: float) -> float:
    """The boot-time second at which the lease is over; `otherwise` when the file cannot be read."""
    try:
        with open(f"{job_dir}/lease", encoding="utf-8") as file:
            return float(file.read(64))
    except (OSError, ValueError):
        return otherwise


def read_record(path: str) -> dict[str, Any] | None:
    """A JSON object written by `write_whole`, or None when it is not there."""
    try:
        with open(path, encoding="utf-8") as file:
            value = json.loads(file.read(1 << 20))
    except (OSError, ValueError):
        return None
    return value if isinstance(value, dict) else None


def proc_stat(pid: int) -> tuple[str, int] | None:
    """State letter and start ticks of a process from /proc; None when it is gone or there is no /proc."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            fields = file.read(4096).rpartition(b")")[2].split()
    except OSError:
        return None
    return (fields[0].decode(), int(fields[19])) if len(fields) > 19 else None


def strays(job_dir: str, name: str = "RINGRIFT_JOB_DIR") -> list[int]:
    """Processes that carry this attempt's directory in their environment, whatever group they moved to."""
    marker = f"{name}=".encode() + os.fsencode(job_dir)
    found = []
    try:
        entries = os.listdir("/proc")
    except OSError:
        return []
    for entry in entries:
        if not entry.isdigit():
            continue
        try:
            with open(f"/proc/{entry}/environ", "rb") as file:
                environment = file.read()
        except OSError:
            continue
        if marker in environment.split(b"\0"):
            found.append(int(entry))
    return found


def adopt_orphans() -> None:
    """Become the parent of what the program's children leave behind, so that nothing can leave our sight.

    A grandchild with a session of its own and a clean environment is found by nothing else. To be called before the
    program starts: one whose parent ends in the first moment is adopted then or never. Linux only.
    """
    if sys.platform != "linux":
        return
    import ctypes  # not needed elsewhere, and it takes a millisecond or two

    try:
        ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    except (OSError, AttributeError):
        pass  # a C library without prctl; the mark in the environment remains


def children() -> list[int]:
    """Our children, adopted ones included; none where the kernel does not list them."""
    try:
        with open(f"/proc/{os.getpid()}/task/{os.getpid()}/children", encoding="utf-8") as file:
            return [int(pid) for pid in file.read().split()]
    except (OSError, ValueError):
        return []


def end_orphans(deadline: float, guard: int) -> None:
    """SIGKILL what we adopted, and what that leaves, until a boot-time second."""
    while (orphans := [pid for pid in children() if pid != guard]) and boot_s() < deadline:
        for pid in orphans:
            try:
                os.kill(pid, signal.SIGKILL)
                os.waitpid(pid, os.WNOHANG)
            except (ProcessLookupError, ChildProcessError):
                pass
        time.sleep(0.002)  # a killed one becomes a zombie, and its children ours, a moment later


def signal_group(pgid: int, number: int) -> bool:
    """Signal a process group; False when it has no member any more."""
    try:
        os.killpg(pgid, number)
    except ProcessLookupError:
        return False
    except PermissionError:  # macOS answers so for a group of zombies
        return number != 0
    return True


def end_group(pgid: int, job_dir: str) -> bool:
    """SIGKILL the group and everything that left it; False when something is still there after VANISH_S."""
    deadline = boot_s() + VANISH_S
    while True:
        there = signal_group(pgid, signal.SIGKILL) if pgid else False
        for pid in strays(job_dir):
            there = True
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                pass
        if not there:
            return True
        if boot_s() > deadline:
            return False
        time.sleep(0.005)  # strays are grandchildren: only looking again tells that they are gone


class Guard:
    """A child of the keeper that acts for it when it is killed or frozen. It knows by a pipe that only we hold."""

    def __init__(self, job_dir: str, margin_s: float) -> None:
        self._job_dir = job_dir
        self._margin_s = margin_s
        self._keeper = os.getpid()
        self._lifeline, self._held = os.pipe()
        self.pid = 0
        self.post()

    def post(self) -> None:
        """Have a guard; the one before is gone."""
        self.pid = os.fork()
        if self.pid:
            return
        try:
            os.setpgid(0, 0)  # whoever kills the keeper's group does not kill this
            signal.set_wakeup_fd(-1)
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            os.close(self._held)
            self._watch()
        finally:
            os._exit(0)

    def reap(self) -> None:
        """Replace a guard that was killed."""
        if os.waitpid(self.pid, os.WNOHANG)[0]:
            self.post()

    def dismiss(self) -> None:
        """Let it go: the attempt is over and its record is written."""
        os.kill(self.pid, signal.SIGKILL)
        os.waitpid(self.pid, 0)

    def _watch(self) -> None:
        while True:
            # Half of the margin is the keeper's, which kills at its beginning.
            left_s = read_lease(self._job_dir, 0.0) - self._margin_s / 2 - boot_s()
            if left_s <= 0 and os.getppid() == self._keeper:
                os.kill(self._keeper, signal.SIGKILL)
            elif not select.select([self._lifeline], [], [], max(left_s, 0.0))[0]:
                continue
            break
        if read_record(f"{self._job_dir}/exit.json") is None:
            for _ in range(2):
                end_group(recorded_group(self._job_dir), self._job_dir)
                time.sleep(UNMARKED_S)  # nothing tells when a fork becomes a program that can be found


def recorded_group(job_dir: str) -> int:
    """The group of the attempt's program, as long as its leader is the recorded process; else 0."""
    record = read_record(f"{job_dir}/pids.json") or {}
    pid, ticks = record.get("pid"), record.get("ticks")
    if not isinstance(pid, int) or not isinstance(ticks, int):
        return 0
    return pid if (proc_stat(pid) or ("", 0))[1] == ticks else 0


def oom_kills() -> int:
    """How often the kernel killed for memory: in our control group if it says so, else on the machine."""
    paths = ["/proc/vmstat"]
    try:
        with open("/proc/self/cgroup", encoding="utf-8") as file:
            group = file.readline(4096).strip().partition("::")[2]
        if group:
            paths.insert(0, f"/sys/fs/cgroup{group}/memory.events")
    except OSError:
        pass
    for path in paths:
        try:
            with open(path, encoding="utf-8") as file:
                for line in file:
                    name, _, value = line.partition(" ")
                    if name == "oom_kill":
                        return int(value)
        except (OSError, ValueError):
            continue
    return 0


def bound_log(path: str, most: int) -> None:
    """Move the newer half of a log that is too long to `path.1` and go on with an empty one.

    The program holds the file open for appending, so it cannot be renamed away from it; what it
    writes between the copy and the cut is lost.
    """
    try:
        size = os.stat(path).st_size
        if size <= most:
            return
        with open(path, "rb") as file:
            file.seek(size - most // 2)
            newer = file.read(most // 2)
        with open(path + ".1.partial", "wb") as file:
            file.write(newer)
        os.replace(path + ".1.partial", path + ".1")
        os.truncate(path, 0)
    except OSError:
        return  # the disk is full or the folder is gone: the attempt matters more than its log


def start(order: dict[str, Any], job_dir: str) -> int:
    """Start the program as the leader of its own group; returns its pid.

    Raises OSError with the program's name when it could not be started.
    """
    append = os.O_WRONLY | os.O_CREAT | os.O_APPEND
    streams = [
        os.open(os.devnull, os.O_RDONLY),
        os.open(f"{job_dir}/stdout.log", append, 0o640),
        os.open(f"{job_dir}/stderr.log", append, 0o640),
    ]
    reader, writer = os.pipe()  # closed by a successful exec, written to by a failed one
    pid = os.fork()
    if pid == 0:
        try:
            os.setpgid(0, 0)
            for target, stream in enumerate(streams):
                os.dup2(stream, target)
            for number in (signal.SIGPIPE, signal.SIGHUP, signal.SIGINT):
                signal.signal(number, signal.SIG_DFL)
            if order["nice"]:
                os.nice(order["nice"])
            # A node process that is being upgraded may be older than this file.
            if order.get("cpus") and hasattr(os, "sched_setaffinity"):
                os.sched_setaffinity(0, order["cpus"])
            os.chdir(order["cwd"])
            os.execvpe(order["argv"][0], order["argv"], order["env"])  # noqa: S606
        except (OSError, ValueError, TypeError) as error:
            os.write(writer, str(error).encode()[:2048])
        finally:
            os._exit(127)
    os.close(writer)
    try:
        os.setpgid(pid, pid)  # whoever is first, the group exists before anybody signals it
    except OSError:
        pass
    for stream in streams:
        os.close(stream)
    said = os.read(reader, 4096)
    os.close(reader)
    if said:
        os.waitpid(pid, 0)
        raise OSError(f"{order['argv'][0]} could not be started in {order['cwd']}: {said.decode()}")
    return pid


def keep(order: dict[str, Any], job_dir: str, pid: int, wake: int, guard: Guard) -> tuple[int, str]:
    """Wait for the program's end, ending it when it must; returns its wait status and who ended it.

    The second value is `exited`, `stop` (asked, with grace), `kill` (asked, at once) or `lease`.
    """
    grace_s, margin_s, most = order["grace_s"], order["margin_s"], order["max_log_bytes"]
    ends_at = read_lease(job_dir, boot_s())
    cause, kill_at = "exited", float("inf")
    while True:
        ends_at = read_lease(job_dir, ends_at)
        now = boot_s()
        if now >= ends_at - margin_s and cause in ("exited", "stop"):
            cause, kill_at = "lease", now
        elif now >= ends_at - margin_s - grace_s and cause == "exited":
            cause, kill_at = "lease", ends_at - margin_s
            signal_group(pid, signal.SIGTERM)
        if now >= kill_at:
            signal_group(pid, signal.SIGKILL)
            kill_at = now + 0.05
        next_s = min(kill_at, ends_at - margin_s - (grace_s if cause == "exited" else 0.0))
        ready, _, _ = select.select([wake], [], [], min(max(next_s - now, 0.01), LONGEST_SLEEP_S))
        came = os.read(wake, 512) if ready else b""
        status = ended(pid)
        if status is not None:
            return status, cause
        if signal.SIGCHLD in came:
            guard.reap()
            for orphan in children():
                if orphan not in (pid, guard.pid):
                    os.waitpid(orphan, os.WNOHANG)
        if signal.SIGUSR1 in came:
            cause, kill_at = "kill", boot_s()
        elif signal.SIGTERM in came and cause == "exited":
            cause, kill_at = "stop", boot_s() + grace_s
            signal_group(pid, signal.SIGTERM)
        for name in ("stdout.log", "stderr.log"):
            bound_log(f"{job_dir}/{name}", most)


def ended(pid: int) -> int | None:
    """The wait status of the program once it has ended; the rest of its group is killed then."""
    if hasattr(os, "waitid"):
        if os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
            return None
        # Still a zombie: the group's number cannot belong to anybody else yet.
        signal_group(pid, signal.SIGKILL)
    reaped, status = os.waitpid(pid, os.WNOHANG)
    return status if reaped else None


def main(job_dir: str) -> int:
    """Keep the attempt whose folder this is; returns the keeper's own exit code."""
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    for number in (signal.SIGCHLD, signal.SIGTERM, signal.SIGUSR1):
        signal.signal(number, lambda *_: None)
    for number in (signal.SIGHUP, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)
    order = read_record(f"{job_dir}/order.json")
    if order is None:
        print(f"shim: {job_dir}/order.json cannot be read", file=sys.stderr)  # noqa: T201
        return 2
    started_at, kills = boot_s(), oom_kills()
    record: dict[str, Any] = {"code": 127, "signal": 0, "cause": "spawn", "error": "", "oom": False}
    guard = Guard(job_dir, order["margin_s"])
    adopt_orphans()
    try:
        pid = start(order, job_dir)
    except OSError as error:
        record["error"] = str(error)
    else:
        ticks = (proc_stat(pid) or ("", 0))[1]
        write_whole(f"{job_dir}/pids.json", json.dumps({"pid": pid, "pgid": pid, "ticks": ticks}))
        status, cause = keep(order, job_dir, pid, reader, guard)
        code = -os.WTERMSIG(status) if os.WIFSIGNALED(status) else os.WEXITSTATUS(status)
        record.update(code=max(code, 0), signal=max(-code, 0), cause=cause)
        record["oom"] = code == -signal.SIGKILL and cause == "exited" and oom_kills() > kills
        end_orphans(boot_s() + VANISH_S, guard.pid)
        if not end_group(pid, job_dir):
            record["error"] = "some of its processes did not disappear after SIGKILL"
    record.update(started_at_s=round(started_at, 3), ended_at_s=round(boot_s(), 3))
    write_whole(f"{job_dir}/exit.json", json.dumps(record))
    guard.dismiss()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
