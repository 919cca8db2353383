"""The GPUs of this machine as NVML sees them: identity, memory, health. The only file that knows NVML.

Without a driver there are no GPUs, and that is no fault. With a driver, each device is judged alone: a
device with a fault is reported with the reason and is not offered, its neighbours are.

    fault            from
    lost             any call answers that the device fell off the bus
    ecc              uncorrected memory errors since the last reset
    row remapping    a remap failed, or one is pending and wants a reset
    pages            retired pages that wait for a reset
    temperature      at or over the device's own shutdown limit
    xid              a critical event since the scans began
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pynvml

from statemachine.values import Gpu

#: XIDs that are the program's own fault and leave the device in order (graphics exception, page fault, ...)
HARMLESS_XIDS = frozenset({13, 31, 43, 45, 68})


@dataclass(frozen=True, slots=True)
class Reading:
    """What changes while a device works."""

    used_bytes: int
    total_bytes: int
    utilization_percent: int | None
    temperature_c: int | None


@dataclass(frozen=True, slots=True)
class Scan:
    """One look at all devices. `absent` says why there are none, in a sentence."""

    gpus: tuple[Gpu, ...] = ()
    readings: dict[str, Reading] | None = None
    absent: str = ""


class Gpus:
    """Scans devices. `scan` blocks on the driver for some milliseconds to seconds; call it on a thread."""

    def __init__(self, nvml: Any = pynvml) -> None:
        self._nvml = nvml
        self._lock = threading.Lock()
        self._ready = False
        self._events: Any = None
        self._watched: set[str] = set()
        self._xids: dict[str, int] = {}

    def scan(self) -> Scan:
        """All devices, MIG instances in place of the device they divide."""
        with self._lock:
            try:
                if not self._ready:
                    self._nvml.nvmlInit()
                    self._ready = True
                count = int(self._nvml.nvmlDeviceGetCount())
            except self._nvml.NVMLError as error:
                self._ready = False
                return Scan(absent=f"NVML offers no device: {error}")
            self._read_events()
            gpus: list[Gpu] = []
            readings: dict[str, Reading] = {}
            for number in range(count):
                self._device(number, gpus, readings)
            return Scan(tuple(gpus), readings)

    def used_bytes(self, uuids: tuple[str, ...]) -> dict[str, int]:
        """Memory in use now by UUID, for devices that answer."""
        readings = self.scan().readings or {}
        return {uuid: readings[uuid].used_bytes for uuid in uuids if uuid in readings}

    def close(self) -> None:
        with self._lock:
            if self._events is not None:
                self._ask(self._nvml.nvmlEventSetFree, self._events)
                self._events = None
            if self._ready:
                self._ask(self._nvml.nvmlShutdown)
                self._ready = False

    def _device(self, number: int, gpus: list[Gpu], readings: dict[str, Reading]) -> None:
        try:
            handle = self._nvml.nvmlDeviceGetHandleByIndex(number)
            uuid = _text(self._nvml.nvmlDeviceGetUUID(handle))
            memory = self._nvml.nvmlDeviceGetMemoryInfo(handle)
        except self._nvml.NVMLError as error:
            gpus.append(Gpu(uuid=f"index-{number}", fault=f"lost: {error}"[:256]))
            return
        name = _text(self._ask(self._nvml.nvmlDeviceGetName, handle) or "")
        self._watch(handle, uuid)
        fault = self._fault(handle, uuid)
        parts = self._instances(handle)
        for part in parts or [(handle, uuid, memory)]:
            device, key, held = part
            gpus.append(Gpu(uuid=key, name=name[:256], memory_bytes=int(held.total), fault=fault[:256]))
            rates = self._ask(self._nvml.nvmlDeviceGetUtilizationRates, device)
            readings[key] = Reading(
                int(held.used), int(held.total), int(rates.gpu) if rates else None, self._temperature(handle)
            )

    def _instances(self, handle: Any) -> list[tuple[Any, str, Any]]:
        """MIG instances of a divided device; empty when it is whole."""
        mode = self._ask(self._nvml.nvmlDeviceGetMigMode, handle)
        if not mode or mode[0] != 1:
            return []
        found = []
        for number in range(self._ask(self._nvml.nvmlDeviceGetMaxMigDeviceCount, handle) or 0):
            part = self._ask(self._nvml.nvmlDeviceGetMigDeviceHandleByIndex, handle, number)
            uuid = self._ask(self._nvml.nvmlDeviceGetUUID, part) if part else None
            memory = self._ask(self._nvml.nvmlDeviceGetMemoryInfo, part) if part else None
            if uuid and memory:
                found.append((part, _text(uuid), memory))
        return found

    def _fault(self, handle: Any, uuid: str) -> str:
        nvml = self._nvml
        if uuid in self._xids:
            return f"xid {self._xids[uuid]}: a critical error was reported by the driver; reset the device"
        errors = self._ask(
            nvml.nvmlDeviceGetTotalEccErrors,
            handle,
            nvml.NVML_MEMORY_ERROR_TYPE_UNCORRECTED,
            nvml.NVML_VOLATILE_ECC,
        )
        if errors:
            return f"ecc: {errors} uncorrected memory errors since the last reset"
        rows = self._ask(nvml.nvmlDeviceGetRemappedRows, handle)
        if rows and rows[3]:
            return "row remapping: a remap failed; the device needs service"
        if rows and rows[2]:
            return "row remapping: a remap waits for a reset of the device"
        if self._ask(nvml.nvmlDeviceGetRetiredPagesPendingStatus, handle):
            return "pages: retired pages wait for a reset of the device"
        heat = self._temperature(handle)
        limit = self._ask(nvml.nvmlDeviceGetTemperatureThreshold, handle, nvml.NVML_TEMPERATURE_THRESHOLD_SHUTDOWN)
        if heat is not None and limit and heat >= limit:
            return f"temperature: {heat} C, its shutdown limit is {limit} C"
        return ""

    def _temperature(self, handle: Any) -> int | None:
        value = self._ask(self._nvml.nvmlDeviceGetTemperature, handle, self._nvml.NVML_TEMPERATURE_GPU)
        return None if value is None else int(value)

    def _watch(self, handle: Any, uuid: str) -> None:
        """Ask for critical events of a device, once."""
        if uuid in self._watched:
            return
        self._watched.add(uuid)
        if self._events is None:
            self._events = self._ask(self._nvml.nvmlEventSetCreate)
        if self._events is not None:
            self._ask(
                self._nvml.nvmlDeviceRegisterEvents, handle, self._nvml.nvmlEventTypeXidCriticalError, self._events
            )

    def _read_events(self) -> None:
        for _ in range(64):
            event = self._ask(self._nvml.nvmlEventSetWait_v2, self._events, 0) if self._events is not None else None
            if event is None:
                return
            uuid = self._ask(self._nvml.nvmlDeviceGetUUID, event.device)
            if uuid and int(event.eventData) not in HARMLESS_XIDS:
                self._xids[_text(uuid)] = int(event.eventData)

    def _ask(self, call: Callable[..., Any], *arguments: Any) -> Any:
        """An answer, or None where the device or the driver does not offer the question."""
        try:
            return call(*arguments)
        except self._nvml.NVMLError:
            return None


def _text(value: str | bytes) -> str:
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else value
