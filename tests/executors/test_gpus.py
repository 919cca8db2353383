from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from queue import Queue

import pynvml
import pytest

from executors.gpus import HUNG, Gpus, Patient, Reading, Scan
from statemachine.commands import JoinPeer, decode_command, encode_command
from statemachine.values import Gpu, PeerFacts
from tests.executors.nvml import Driver
from tests.support.cluster import eventually

GIB = 1 << 30


@pytest.fixture
def gpus() -> Iterator[Gpus]:
    one = Gpus()
    yield one
    one.close()


def faults(scan: Scan) -> dict[str, str]:
    return {gpu.uuid: gpu.fault for gpu in scan.gpus}


def test_the_binding_finds_the_library_by_its_own_name(library: Path, tmp_path: Path) -> None:
    (tmp_path / "script").write_text("device uuid=GPU-0\n")
    environment = dict(os.environ) | {"LD_LIBRARY_PATH": str(library.parent), "FAKE_NVML": str(tmp_path / "script")}
    code = "import json\nfrom executors.gpus import Gpus\nprint(json.dumps([g.uuid for g in Gpus().scan().gpus]))"
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=60, check=True
    )
    assert json.loads(done.stdout) == ["GPU-0"]


def test_the_inventory_names_each_device_with_memory_driver_bus_and_power_limit(driver: Driver, gpus: Gpus) -> None:
    driver.plays(
        "driver version=550.54 cuda=12040", "device uuid=GPU-a name=H100 total=80 most=700", "device uuid=GPU-b"
    )
    scan = gpus.scan()
    assert (scan.driver, scan.cuda, scan.absent) == ("550.54", "12.4", "")
    assert scan.gpus[0] == Gpu("GPU-a", "H100", 80 * GIB, pci="00000000:01:00.0", power_limit_w=700)
    assert [gpu.uuid for gpu in scan.gpus] == ["GPU-a", "GPU-b"]


def test_a_reading_has_load_heat_power_errors_slow_clocks_and_programs(driver: Driver, gpus: Gpus) -> None:
    driver.plays(
        "device uuid=GPU-0 used=9 busy=93 heat=71 watts=640 throttle=73",
        "process gpu=GPU-0 pid=11 used=5",
        "process gpu=GPU-0 pid=12 used=-1",
        "process gpu=GPU-0 pid=13 used=2 graphics=1",
        "device uuid=GPU-1 plain=1",
    )
    readings = gpus.scan().readings or {}
    programs = ((11, 5 * GIB), (12, None), (13, 2 * GIB))
    slow = "hardware slowdown, thermal slowdown"
    assert readings["GPU-0"] == Reading(9 * GIB, 80 * GIB, 93, 71, 640.0, 0, slow, programs)
    assert readings["GPU-1"] == Reading(1 * GIB, 80 * GIB, None, 55, None, None, "", ())


FAULTS = [
    ("ecc=3", "3 uncorrected"),
    ("heat=101", "shutdown limit of 100 C"),
    ("remap=1", "needs service"),
    ("pending=1", "waits for a reset"),
    ("pages=1", "retired pages"),
    ("lost=1", "lost"),
    ("heat=99 throttle=4", ""),
    ("plain=1", ""),
]


@pytest.mark.parametrize(("state", "word"), FAULTS)
def test_a_bad_device_is_reported_with_its_reason_and_its_neighbours_are_offered(
    driver: Driver, gpus: Gpus, state: str, word: str
) -> None:
    driver.plays("device uuid=GPU-0", f"device uuid=GPU-1 {state}", "device uuid=GPU-2")
    first, bad, last = (gpu.fault for gpu in gpus.scan().gpus)
    assert (first, last) == ("", "")
    assert (word in bad) if word else bad == ""


def test_a_device_that_falls_off_the_bus_is_still_named_and_comes_back_after_its_reset(
    driver: Driver, gpus: Gpus
) -> None:
    driver.plays("device uuid=GPU-0", "device uuid=GPU-1")
    gpus.scan()
    driver.plays("device uuid=GPU-0", "device uuid=GPU-1 lost=1")
    scan = gpus.scan()
    assert faults(scan) == {"GPU-0": "", "GPU-1": "lost: GPU is lost"}
    assert "GPU-1" not in (scan.readings or {})
    driver.plays("device uuid=GPU-0")
    assert "not list it" in faults(gpus.scan())["GPU-1"]
    driver.plays("device uuid=GPU-0", "device uuid=GPU-1")
    assert faults(gpus.scan()) == {"GPU-0": "", "GPU-1": ""}


def test_a_device_that_was_never_seen_whole_is_named_by_its_place(driver: Driver, gpus: Gpus) -> None:
    driver.plays("device uuid=GPU-0 lost=1")
    assert faults(gpus.scan()) == {"index-0": "lost: GPU is lost"}


def test_a_driver_that_goes_away_makes_all_devices_lost_until_it_is_back(driver: Driver, gpus: Gpus) -> None:
    driver.plays("device uuid=GPU-0")
    gpus.scan()
    driver.plays("driver gone")
    assert faults(gpus.scan()) == {"GPU-0": "lost: NVML offers no device: Driver Not Loaded"}
    driver.plays("device uuid=GPU-0")
    assert faults(gpus.scan()) == {"GPU-0": ""}


def test_a_driver_that_is_installed_and_shows_no_device_is_a_fault_until_it_does(driver: Driver, gpus: Gpus) -> None:
    driver.plays("driver gone")
    assert faults(gpus.scan()) == {"unseen": "driver: Driver Not Loaded"}
    driver.plays("device uuid=GPU-0")
    assert faults(gpus.scan()) == {"GPU-0": ""}


def test_a_machine_without_a_driver_has_no_gpus_and_says_why(monkeypatch: pytest.MonkeyPatch, gpus: Gpus) -> None:
    def absent() -> None:
        raise pynvml.NVMLError(pynvml.NVML_ERROR_LIBRARY_NOT_FOUND)

    monkeypatch.setattr(pynvml, "nvmlInit", absent)
    scan = gpus.scan()
    assert (scan.gpus, scan.absent) == ((), "NVML offers no device: NVML Shared Library Not Found")


def test_a_critical_event_is_told_once_and_one_of_a_program_never(driver: Driver, gpus: Gpus) -> None:
    driver.plays("device uuid=GPU-0", "event gpu=GPU-0 xid=79 number=1", "event gpu=GPU-0 xid=31 number=2")
    gpus.scan()  # the first look only asks for events
    assert gpus.scan().xids == (("GPU-0", 79),)
    assert gpus.scan().xids == ()


def test_a_divided_device_is_offered_by_its_parts_and_lost_with_them(driver: Driver, gpus: Gpus) -> None:
    parts = ("part uuid=MIG-a of=GPU-0 total=10 used=2", "part uuid=MIG-b of=GPU-0 total=10")
    driver.plays("device uuid=GPU-0 mig=1", *parts, "device uuid=GPU-1", "process gpu=MIG-a pid=7 used=1")
    scan = gpus.scan()
    assert [(g.uuid, g.memory_bytes // GIB, g.part_of) for g in scan.gpus] == [
        ("MIG-a", 10, "GPU-0"),
        ("MIG-b", 10, "GPU-0"),
        ("GPU-1", 80, ""),
    ]
    assert (scan.readings or {})["MIG-a"].processes == ((7, GIB),)
    driver.plays("device uuid=GPU-0 mig=1 lost=1", *parts, "device uuid=GPU-1")
    assert faults(gpus.scan()) == {"MIG-a": "lost: GPU is lost", "MIG-b": "lost: GPU is lost", "GPU-1": ""}
    driver.plays("device uuid=GPU-0", "device uuid=GPU-1")  # somebody made it whole again
    assert faults(gpus.scan()) == {"GPU-0": "", "GPU-1": ""}


def test_every_scanned_device_fits_the_join_command() -> None:
    command = JoinPeer("n", 1, "b", "worker", "", PeerFacts(gpus=(Gpu("MIG-1a-2b", "x", 1, "lost: y"),)))
    assert decode_command(encode_command(command)) == command


class ScriptedGpus(Gpus):
    """One device whose memory in use is set by the test."""

    def __init__(self) -> None:
        super().__init__(None)
        self.used = 0

    def scan(self) -> Scan:
        return Scan((Gpu("GPU-0", "x", 80 << 30),), {"GPU-0": Reading(self.used, 80 << 30, None, None)})

    def close(self) -> None:
        return


class Hanging(ScriptedGpus):
    """A driver that answers when the test lets it."""

    def __init__(self) -> None:
        super().__init__()
        self.may_answer = threading.Event()
        self.may_answer.set()
        self.closed = False

    def scan(self) -> Scan:
        assert self.may_answer.wait(60)
        return super().scan()

    def close(self) -> None:
        self.closed = True


def test_a_driver_that_hangs_is_a_fault_of_its_devices_until_it_answers() -> None:
    hanging = Hanging()
    patient = Patient(hanging, 0.2)
    assert faults(patient.scan()) == {"GPU-0": ""}
    hanging.may_answer.clear()
    for _ in range(2):
        scan = patient.scan()
        assert (faults(scan), scan.readings) == ({"GPU-0": HUNG}, {})
    patient.close()
    assert not hanging.closed
    hanging.may_answer.set()
    eventually(lambda: faults(patient.scan()) == {"GPU-0": ""}, "its answer", 10)
    patient.close()
    assert hanging.closed


def test_a_driver_that_hangs_from_the_first_moment_keeps_no_node_from_starting() -> None:
    hanging = Hanging()
    hanging.may_answer.clear()
    scan = Patient(hanging, 0.0).scan()
    assert (faults(scan), scan.absent) == ({"unseen": HUNG}, HUNG)
    hanging.may_answer.set()


def test_a_look_that_fails_is_no_driver_that_hangs(monkeypatch: pytest.MonkeyPatch) -> None:
    said: Queue[threading.ExceptHookArgs] = Queue()
    monkeypatch.setattr(threading, "excepthook", said.put)
    with pytest.raises(RuntimeError, match="the log has the reason"):
        Patient(Gpus(None)).scan()
    assert said.get(timeout=10).exc_type is AttributeError
