"""The GPUs of a host without an agent, as its nvidia-smi prints them."""

from __future__ import annotations

from executors.gpus import Reading, Scan
from statemachine.values import Gpu, is_name


def scan_of(text: str) -> Scan:
    """What nvidia-smi printed, one device a line; lines that are none are passed over."""
    gpus, readings, driver = [], {}, ""
    for line in text.splitlines():
        uuid, *rest = [field.strip() for field in line.split(",")]
        if len(rest) != 6 or not uuid.startswith("GPU-") or not is_name(uuid):
            continue
        name, total, used, busy, heat, driver = rest
        total_bytes = _number(total) << 20
        gpus.append(Gpu(uuid=uuid, name=name[:256], memory_bytes=total_bytes))
        readings[uuid] = Reading(_number(used) << 20, total_bytes, _number(busy), _number(heat))
    absent = "" if gpus else "nvidia-smi shows no device"
    return Scan(tuple(gpus), readings, absent, driver[:256])


def _number(text: str) -> int:
    return int(text) if text.isdecimal() else 0
