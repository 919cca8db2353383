from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from executors.gpus import Gpus, Reading, Scan
from statemachine.commands import JoinPeer, decode_command, encode_command
from statemachine.values import Gpu, PeerFacts

COMPILER = shutil.which("cc")
LOOK = """
import json, msgspec
from executors.gpus import Gpus
gpus = Gpus()
gpus.scan()
scan = gpus.scan()
look = lambda r: [r.used_bytes, r.total_bytes, r.utilization_percent, r.temperature_c]
readings = {k: look(r) for k, r in (scan.readings or {}).items()}
print(json.dumps({"gpus": msgspec.to_builtins(scan.gpus), "readings": readings, "absent": scan.absent}))
gpus.close()
"""


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if COMPILER is None:
        pytest.skip("the stand-in for the driver needs a C compiler")
    folder = tmp_path_factory.mktemp("nvml")
    source = Path(__file__).with_name("fake_nvml.c")
    target = folder / "libnvidia-ml.so.1"
    subprocess.run([COMPILER, "-shared", "-fPIC", "-O0", "-o", str(target), str(source)], check=True, timeout=60)
    return folder


def look(library: Path, devices: str) -> dict[str, Any]:
    environment = dict(os.environ) | {"LD_LIBRARY_PATH": str(library), "FAKE_NVML": devices}
    done = subprocess.run(
        [sys.executable, "-c", LOOK], env=environment, capture_output=True, text=True, timeout=60, check=True
    )
    return dict(json.loads(done.stdout))


def test_healthy_devices_are_named_with_their_memory(library: Path) -> None:
    seen = look(library, "ok,plain")
    assert [g["uuid"] for g in seen["gpus"]] == ["GPU-0", "GPU-1"]
    assert all(g["name"] == "Fake 9000" and g["memory_bytes"] == 80 * 1024**3 for g in seen["gpus"])
    assert not any(g.get("fault") for g in seen["gpus"])
    assert seen["readings"]["GPU-0"] == [1024**3, 80 * 1024**3, 37, 55]


def test_a_bad_device_is_reported_with_its_reason_and_its_neighbours_are_offered(library: Path) -> None:
    kinds = ["ok", "ecc", "hot", "lost", "xid", "remap", "pending", "pages", "fault31", "ok"]
    faults = [g.get("fault", "") for g in look(library, ",".join(kinds))["gpus"]]
    words = [
        "",
        "3 uncorrected",
        "101 C",
        "lost",
        "xid 79",
        "needs service",
        "waits for a reset",
        "retired pages",
        "",
        "",
    ]
    assert len(faults) == len(words)
    for kind, fault, word in zip(kinds, faults, words, strict=True):
        assert (word in fault) if word else fault == "", (kind, fault)


def test_a_divided_device_is_offered_by_its_parts(library: Path) -> None:
    seen = look(library, "mig,ok")
    assert [g["uuid"] for g in seen["gpus"]] == ["MIG-part-0", "MIG-part-1", "GPU-1"]
    assert seen["gpus"][0]["memory_bytes"] == 10 * 1024**3


def test_a_machine_without_a_driver_has_no_gpus_and_says_why() -> None:
    class Nothing:
        class NVMLError(Exception):
            pass

        def nvmlInit(self) -> None:
            raise self.NVMLError("library not found")

    gpus = Gpus(Nothing())
    assert gpus.scan() == Scan(absent="NVML offers no device: library not found")
    gpus.close()


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
