"""The stand-in driver library, compiled for the test, behind the real binding in this process."""

from __future__ import annotations

import ctypes
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pynvml
import pytest

COMPILER = shutil.which("cc")


def compiled(folder: Path) -> Path:
    """Compile the library into a folder; returns its path."""
    if COMPILER is None:
        pytest.skip("the stand-in for the driver needs a C compiler")
    target = folder / "libnvidia-ml.so.1"
    source = Path(__file__).with_name("fake_nvml.c")
    subprocess.run([COMPILER, "-shared", "-fPIC", "-O0", "-o", str(target), str(source)], check=True, timeout=60)
    return target


class Driver:
    """What the machine has; lines of the script that fake_nvml.c plays."""

    def __init__(self, script: Path) -> None:
        self._script = script

    def plays(self, *lines: str) -> None:
        self._script.write_text("".join(f"{line}\n" for line in lines))


def driver(library: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Driver]:
    loaded = ctypes.CDLL(str(library))
    loaded.fake_forget()
    monkeypatch.setattr(pynvml, "nvmlLib", loaded)
    monkeypatch.setattr(pynvml, "_nvmlGetFunctionPointer_cache", {})
    monkeypatch.setenv("FAKE_NVML", str(tmp_path / "nvml-script"))
    yield Driver(tmp_path / "nvml-script")
