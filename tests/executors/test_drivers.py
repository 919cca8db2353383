"""What a driver of hosts takes from them, and what it lets alone."""

from __future__ import annotations

import ast
import asyncio
import io
import os
import signal
import subprocess
import sys
import tarfile
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import msgspec
import pytest

from executors import keepers, shim
from executors.drivers.bringing import Carrier, checked, named_outputs, sizes, surely
from executors.drivers.link import programs
from executors.drivers.outpost.attempts import Attempts
from executors.drivers.outpost.frames import HELLO, frame, read_frame
from executors.drivers.outpost.inputs import WrongDigest
from executors.drivers.outpost.root import Superseded
from executors.drivers.outpost.serving import Outpost
from executors.drivers.remote_gpus import scan_of
from executors.pace import Pace

SMI = """\
GPU-aa, NVIDIA GeForce RTX 4090, 24564, 1024, 37, 61, 550.54.15
GPU-bb, NVIDIA GH200 480GB, 97871, 0, [N/A], 40, 550.54.15
No devices were found, or other words
"""


def test_what_nvidia_smi_prints_is_gpus_with_their_readings() -> None:
    scan = scan_of(SMI)
    assert [(gpu.uuid, gpu.name, gpu.memory_bytes >> 20) for gpu in scan.gpus] == [
        ("GPU-aa", "NVIDIA GeForce RTX 4090", 24564),
        ("GPU-bb", "NVIDIA GH200 480GB", 97871),
    ]
    assert scan.readings
    assert (scan.readings["GPU-aa"].used_bytes >> 20, scan.readings["GPU-aa"].utilization_percent) == (1024, 37)
    assert (scan.driver, scan.absent) == ("550.54.15", "")
    assert scan_of("").absent == "nvidia-smi shows no device"
    assert scan_of("GPU-1 is lost, x, 1, 1, 1, 1, 550\n").gpus == ()


@pytest.mark.parametrize("path", ["/etc/passwd", "../up", "out/../../x", "spec.json", "", "lib/x", "out/a\0b", "out"])
def test_a_file_that_a_host_wants_to_put_elsewhere_is_refused(path: str) -> None:
    with pytest.raises(OSError, match="not below out/"):
        checked(path)


@pytest.mark.parametrize("path", ["out/games.npz", "out/a/b", "tree/x", "home/.cache/y"])
def test_a_file_of_an_attempt_is_taken(path: str) -> None:
    assert checked(path) == path


def test_outputs_that_a_result_names_are_patterns_that_fit_them_alone() -> None:
    outputs = [{"path": path, "kind": "games"} for path in ("a[1].bin", "deep/b*", "../c")]
    result = msgspec.json.encode({"counts": {}, "outputs": outputs})
    assert named_outputs(result) == ["out/a[[]1].bin", "out/deep/b[*]"]
    assert named_outputs(b"no json") == []


def test_a_file_that_was_broken_off_is_resumed_before_the_pieces_that_were_under_way() -> None:
    piece = 256 * 1024
    assert [surely(size) for size in (0, piece, 8 * piece, 9 * piece + 5, 20 * piece)] == [0, 0, 0, piece, 12 * piece]


def test_what_is_sent_to_hosts_is_python_3_8_and_needs_the_standard_library_alone() -> None:
    for name, text in programs().items():
        tree = ast.parse(text, name, feature_version=(3, 8))
        for node in ast.walk(tree):
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            roots = {found.split(".")[0] for found in names}
            # psutil stands in for /proc on machines that are no Linux, which hosts without an agent are.
            assert roots <= sys.stdlib_module_names | {"executors", "psutil"}, name


@pytest.fixture
def post(tmp_path: Path) -> Outpost:
    return Outpost(str(tmp_path / "root"), io.BytesIO())


def test_frames_that_are_too_large_or_cut_off_end_the_conversation() -> None:
    assert read_frame(io.BytesIO(frame({"id": 1}, b"body"))) == ({"id": 1}, b"body")
    for bad in (b"", b"\0\0", b"\xff" * 8, frame({"id": 1}, b"body")[:-1], frame({"id": 1})[:-1]):
        assert read_frame(io.BytesIO(bad)) is None


def test_bytes_that_are_not_those_of_their_name_are_thrown_away(post: Outpost, tmp_path: Path) -> None:
    post.inputs.do_put(b"something else", "a" * 64, 0)
    with pytest.raises(WrongDigest):
        post.inputs.do_seal(b"", "a" * 64, 14)
    assert post.inputs.do_have(b"", "a" * 64) == {"whole": False, "partial": 0}
    for bad in ("../x", "A" * 64, ""):
        with pytest.raises(ValueError, match="no sha256"):
            post.inputs.do_have(b"", bad)


def test_names_of_attempts_stay_below_the_root(post: Outpost) -> None:
    for bad in ("..", "a/b", ""):
        with pytest.raises(ValueError, match="no folder"):
            post.attempts.do_drop(b"", bad)


def test_an_older_agent_cannot_claim_the_host_back(post: Outpost) -> None:
    post.do_claim(b"", 5, [])
    post.do_claim(b"", 5, None)
    with pytest.raises(Superseded, match="incarnation 5"):
        post.do_claim(b"", 4, [])


def order(argv: list[str], folder: Path) -> dict[str, object]:
    env = {"RINGRIFT_JOB_DIR": str(folder), "PATH": os.environ["PATH"]}
    return {"argv": argv, "env": env, "cwd": "/", "nice": 0, "grace_s": 1, "margin_s": 1, "max_log_bytes": 999}


def test_a_start_that_is_asked_for_again_starts_nothing_more(post: Outpost, tmp_path: Path) -> None:
    post.do_claim(b"", 1, [])
    post.attempts.do_furnish(b"", "w-1", [], "", "w", "", {"spec.json": "{}"}, {})
    folder = tmp_path / "root/jobs/w-1"
    asked = order([sys.executable, "-c", "import time; time.sleep(60)"], folder)
    made = [post.attempts.do_start(b"", "w-1", asked, shim.boot_s() + 60) for _ in range(2)]
    assert made[0] == made[1]
    assert post.attempts.do_find(b"", "w-1", 0, 0) == {**made[0], "ended": False}
    post.attempts.do_drop(b"", "w-1")
    assert not folder.exists()
    assert post.attempts.do_find(b"", "w-1", **made[0]) == {"pid": 0, "ticks": 0, "ended": False}


def test_a_packed_checkpoint_that_leads_out_of_its_directory_is_refused(post: Outpost, tmp_path: Path) -> None:
    packed = tmp_path / "root/files" / ("a" * 64)
    for name, kind in (("../up", tarfile.REGTYPE), ("/abs", tarfile.REGTYPE), ("link", tarfile.SYMTYPE)):
        with tarfile.open(packed, "w") as tar:
            member = tarfile.TarInfo(name)
            member.type, member.linkname = kind, "/etc/passwd"
            tar.addfile(member)
        with pytest.raises(ValueError, match="no file below it"):
            post.attempts.do_furnish(b"", "w-1", [], "", "w", "a" * 64, {}, {})


def test_a_database_is_copied_for_an_attempt_and_another_file_is_linked(post: Outpost, tmp_path: Path) -> None:
    files, digests = tmp_path / "root/files", {"games": "a" * 64, "model": "b" * 64}
    (files / digests["games"]).write_bytes(b"SQLite format 3\0 and more")
    (files / digests["model"]).write_bytes(b"a net")
    post.attempts.do_furnish(b"", "w-1", [], "", "w", "", {}, digests)
    inputs = tmp_path / "root/jobs/w-1/inputs"
    assert (inputs / "games").read_bytes() == b"SQLite format 3\0 and more"
    linked = {name: (inputs / name).samefile(files / digest) for name, digest in digests.items()}
    assert linked == {"games": False, "model": True}


def test_inputs_that_no_attempt_uses_go_first_those_used_longest_ago(post: Outpost, tmp_path: Path) -> None:
    files = tmp_path / "root/files"
    digests = [letter * 64 for letter in "abc"]
    for number, digest in enumerate(digests):
        (files / digest).write_bytes(b"x" * 10)
        os.utime(files / digest, (number, number))
    post.attempts.do_furnish(b"", "w-1", [], "", "w", "", {}, {"model": digests[0]})
    assert post.do_tidy(b"", 20, 1e9) == {"files_bytes": 20}
    assert sorted(path.name[0] for path in files.iterdir()) == ["a", "c"]


def test_an_outpost_that_nobody_asks_anything_ends_by_itself(tmp_path: Path) -> None:
    code = (
        "import sys; from executors.drivers.outpost import serving; serving.IDLE_S = 1; "
        f"serving.main({str(tmp_path)!r}, sys.stdin.buffer, sys.stdout.buffer)"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout
        assert process.stdout.readline() == HELLO
        assert process.wait(20) == -signal.SIGALRM


def test_a_file_that_was_begun_anew_is_brought_from_its_start(post: Outpost, tmp_path: Path) -> None:
    folder = tmp_path / "root/jobs/w-1"
    folder.mkdir()
    (folder / "stdout.log").write_text("short")
    asked = {"pid": 0, "ticks": 0, "lease": 0, "signal": "", "files": {"stdout.log": 100, "stderr.log": 0}}
    answer, body = post.attempts.do_look(b"", {"w-1": asked})
    assert (answer["jobs"]["w-1"]["files"]["stdout.log"], body) == ((0, 5, 5), b"short")


def test_what_goes_wrong_is_an_answer_and_no_end(tmp_path: Path) -> None:
    out = io.BytesIO()
    post = Outpost(str(tmp_path), out)
    for op in ("nonsense", "get", "hash"):
        post._answer({"id": 7, "op": op, "name": "w", "path": "no", "offset": 0, "most": 1}, b"")
    out.seek(0)
    for _ in range(3):
        answer = read_frame(out)
        assert answer
        assert (answer[0]["id"], answer[0]["error"]) == (7, "OSError")


def test_a_look_and_a_start_are_answered_while_every_slow_thread_is_busy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(signal, "alarm", lambda seconds: None)
    busy = threading.Event()
    monkeypatch.setattr(Attempts, "do_furnish", lambda self, body: {"free": busy.wait(30)})
    (requests, asking), (answers, answering) = os.pipe(), os.pipe()
    ask, hear = os.fdopen(asking, "wb"), os.fdopen(answers, "rb")
    with ask, hear, os.fdopen(requests, "rb") as come, os.fdopen(answering, "wb") as go:
        serving = threading.Thread(target=Outpost(str(tmp_path), go).serve, args=(come,))
        serving.start()
        for number in range(40):
            ask.write(frame({"id": number, "op": "furnish"}))
        ask.write(frame({"id": 41, "op": "look", "jobs": {}}))
        ask.write(frame({"id": 42, "op": "find", "name": "w-1", "pid": 0, "ticks": 0}))
        ask.flush()
        first = [read_frame(hear) for _ in range(2)]
        busy.set()
        ask.close()
        serving.join(30)
    assert sorted(answer[0]["id"] for answer in first if answer) == [41, 42]


def test_two_connections_do_not_make_one_folder_at_the_same_time(post: Outpost, tmp_path: Path) -> None:
    made = tmp_path / "root/jobs/w-1/spec.json"
    with ThreadPoolExecutor(1) as other:
        with post.root.alone("w-1"):
            furnished = other.submit(post.attempts.do_furnish, b"", "w-1", [], "", "w", "", {"spec.json": "{}"}, {})
            with pytest.raises(TimeoutError):
                furnished.result(0.1)
            assert not made.exists()
        furnished.result(30)
    assert made.exists()
    assert list((tmp_path / "root").glob("*.lock")) == []


def test_a_late_repeat_does_not_furnish_an_attempt_that_has_started(post: Outpost, tmp_path: Path) -> None:
    folder = tmp_path / "root/jobs/w-1"
    folder.mkdir()
    (folder / "order.json").write_text("{}")
    with pytest.raises(ValueError, match="w-1 has started already"):
        post.attempts.do_furnish(b"", "w-1", [], "", "w", "", {}, {})
    assert (folder / "order.json").exists()


def test_what_cannot_be_read_or_written_of_one_attempt_keeps_nothing_from_the_others(
    post: Outpost, tmp_path: Path
) -> None:
    me = {"pid": os.getpid(), "ticks": keepers.start_ticks(os.getpid()), "lease": 7.0, "signal": ""}
    jobs = tmp_path / "root/jobs"
    (jobs / "w-1/progress.jsonl").mkdir(parents=True)
    (jobs / "w-1/lease/full").mkdir(parents=True)
    (jobs / "w-2").mkdir()
    os.mkfifo(jobs / "w-2/progress.jsonl")
    (jobs / "w-3").mkdir()
    (jobs / "w-3/progress.jsonl").write_text("{}")
    asked = {name: {**me, "files": {"progress.jsonl": 0}} for name in ("w-1", "w-2", "w-3")}
    answer, body = post.attempts.do_look(b"", asked)
    files = [answer["jobs"][name]["files"]["progress.jsonl"] for name in asked]
    assert (files, body) == ([(0, 0, 0), (0, 0, 0), (0, 2, 2)], b"{}")
    assert (jobs / "w-3/lease").read_text() == "7.000\n"


def test_a_log_that_finds_no_room_here_is_not_brought_and_asked_for_again(tmp_path: Path) -> None:
    async def nobody(op: str, body: bytes = b"", **fields: Any) -> Any:
        raise AssertionError(op)

    async def go() -> None:
        with ThreadPoolExecutor(1) as disk:
            carrier = Carrier(nobody, disk, asyncio.Semaphore(1), Pace(0), "h1")
            seen = {"stdout.log": (0, 3, 9), "stderr.log": (0, 2, 2)}
            (tmp_path / "stdout.log").symlink_to(tmp_path / "nowhere/at/all")
            assert await carrier.mirror(tmp_path, b"abcde", seen) is False
            assert sizes(tmp_path)["stderr.log"] == 2
            (tmp_path / "stdout.log").unlink()
            assert await carrier.mirror(tmp_path, b"abc", {"stdout.log": (0, 3, 9)}) is True

    asyncio.run(go())
