"""The GPUs of this machine as NVML sees them: identity, memory, health, processes. The only file that knows NVML.

Without a driver there are no GPUs, and that is no fault. A driver that is installed and shows no device is one, of a
device called `unseen`. With a driver, each device is judged alone: a device with a fault is reported with the reason
and is not offered, its neighbours are.

    fault            from
    driver           it has not answered for half a minute, or refuses to (another version than its kernel module's)
    lost             any call answers that the device fell off the bus, or it is not listed any more
    ecc              uncorrected memory errors since the last reset
    row remapping    a remap failed, or one is pending and wants a reset
    pages            retired pages that wait for a reset
    temperature      at or over the device's own shutdown limit

A fault lasts as long as it is seen. Critical events (XIDs) are told once, by the scan that finds them.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from queue import Empty, Queue
from threading import Thread
from typing import Any, Protocol

import pynvml
from msgspec.structs import replace

from statemachine.values import Gpu

#: XIDs that are the program's own fault and leave the device in order (graphics exception, page fault, ...)
HARMLESS_XIDS = frozenset({13, 31, 43, 45, 68})
#: the name of devices that a driver should have shown and never did
UNSEEN = "unseen"
#: a driver that takes longer for one look hangs; without its persistence mode the first one takes many seconds
ANSWER_S = 30.0
HUNG = "driver: it does not answer; see nvidia-smi and dmesg on the node, often only a reboot helps"
#: reasons for slow clocks that mean trouble, by the bit in NVML's answer
SLOWDOWNS = {0x8: "hardware slowdown", 0x40: "thermal slowdown", 0x80: "power brake"}


@dataclass(frozen=True, slots=True)
class Reading:
    """What changes while a device works. None where the device does not say."""

    used_bytes: int
    total_bytes: int
    utilization_percent: int | None
    temperature_c: int | None
    power_w: float | None = None
    ecc_errors: int | None = None
    #: why its clocks are slow; empty when they are not, or for no bad reason
    slowdown: str = ""
    #: (pid, bytes) of the programs that use it
    processes: tuple[tuple[int, int | None], ...] = ()


@dataclass(frozen=True, slots=True)
class Scan:
    """One look at all devices. `absent` says why there are none, in a sentence."""

    gpus: tuple[Gpu, ...] = ()
    readings: dict[str, Reading] | None = None
    absent: str = ""
    driver: str = ""
    cuda: str = ""
    #: critical events since the last look: (uuid of the device, number)
    xids: tuple[tuple[str, int], ...] = ()


class Scanner(Protocol):
    """Who looks at the devices of a machine."""

    def scan(self) -> Scan:
        """All devices. Blocks."""
        ...

    def close(self) -> None: ...


class Gpus:
    """Scans devices. `scan` blocks on the driver for some milliseconds to seconds; call it on a thread."""

    def __init__(self, nvml: Any = pynvml) -> None:
        self._nvml = nvml
        self._lock = threading.Lock()
        self._ready = False
        self._events: Any = None
        self._watched: set[str] = set()
        #: what each device was offered as when it was seen last: itself, or its MIG instances
        self._seen: dict[str, tuple[Gpu, ...]] = {}
        self._uuid_at: dict[int, str] = {}

    def scan(self) -> Scan:
        """All devices, MIG instances in place of the device they divide, lost ones with the fault."""
        with self._lock:
            try:
                if not self._ready:
                    self._nvml.nvmlInit()
                    self._ready = True
                count = int(self._nvml.nvmlDeviceGetCount())
            except self._nvml.NVMLError as error:
                self._let_go()
                gone = self._lost(set(self._seen), f"lost: NVML offers no device: {error}")
                if not gone and error.value != self._nvml.NVML_ERROR_LIBRARY_NOT_FOUND:
                    gone = _unseen(f"driver: {error}")
                return Scan(gone, {}, absent=f"NVML offers no device: {error}")
            xids = self._read_events()
            gpus: list[Gpu] = []
            readings: dict[str, Reading] = {}
            listed: set[str] = set()
            for number in range(count):
                listed.add(self._device(number, gpus, readings))
            gpus += self._lost(set(self._seen) - listed, "lost: the driver does not list it any more")
            driver = _text(self._ask(self._nvml.nvmlSystemGetDriverVersion) or "")
            cuda = int(self._ask(self._nvml.nvmlSystemGetCudaDriverVersion_v2) or 0)
            if any(gpu.fault.startswith("lost") for gpu in gpus):
                self._let_go()  # a device that was reset is only found by a new session
            return Scan(tuple(gpus), readings, "", driver, _cuda(cuda), xids)

    def close(self) -> None:
        with self._lock:
            self._let_go()

    def _let_go(self) -> None:
        if self._events is not None:
            self._ask(self._nvml.nvmlEventSetFree, self._events)
            self._events = None
        if self._ready:
            self._ask(self._nvml.nvmlShutdown)
            self._ready = False
        self._watched.clear()

    def _lost(self, devices: set[str], fault: str) -> tuple[Gpu, ...]:
        return tuple(replace(gpu, fault=fault[:256]) for uuid in sorted(devices) for gpu in self._seen[uuid])

    def _device(self, number: int, gpus: list[Gpu], readings: dict[str, Reading]) -> str:
        """Add one device; returns its UUID."""
        nvml = self._nvml
        try:
            handle = nvml.nvmlDeviceGetHandleByIndex(number)
            uuid = _text(nvml.nvmlDeviceGetUUID(handle))
            memory = nvml.nvmlDeviceGetMemoryInfo(handle)
        except nvml.NVMLError as error:
            known = self._uuid_at.get(number, "")
            stranger = (Gpu(uuid=f"index-{number}", fault=f"lost: {error}"[:256]),)
            gpus += self._lost({known}, f"lost: {error}") if known else stranger
            return known
        self._watch(handle, uuid)
        pci = self._ask(nvml.nvmlDeviceGetPciInfo, handle)
        whole = Gpu(
            uuid=uuid,
            name=_text(self._ask(nvml.nvmlDeviceGetName, handle) or "")[:256],
            memory_bytes=int(memory.total),
            fault=self._fault(handle)[:256],
            pci=_text(pci.busId) if pci else "",
            power_limit_w=int(self._ask(nvml.nvmlDeviceGetEnforcedPowerLimit, handle) or 0) // 1000,
        )
        parts = self._instances(handle)
        offered = tuple(replace(whole, uuid=key, memory_bytes=int(m.total), part_of=uuid) for _, key, m in parts)
        for device, key, held in parts or [(handle, uuid, memory)]:
            readings[key] = self._reading(handle, device, held)
        self._uuid_at[number] = uuid
        self._seen[uuid] = offered or (whole,)
        gpus += self._seen[uuid]
        return uuid

    def _reading(self, handle: Any, device: Any, memory: Any) -> Reading:
        """`device` is the handle's MIG instance, or the handle itself."""
        nvml = self._nvml
        rates = self._ask(nvml.nvmlDeviceGetUtilizationRates, device)
        power = self._ask(nvml.nvmlDeviceGetPowerUsage, handle)
        reasons = int(self._ask(nvml.nvmlDeviceGetCurrentClocksThrottleReasons, handle) or 0)
        programs = {
            int(process.pid): process.usedGpuMemory
            for listing in (nvml.nvmlDeviceGetGraphicsRunningProcesses, nvml.nvmlDeviceGetComputeRunningProcesses)
            for process in self._ask(listing, device) or ()
        }
        return Reading(
            used_bytes=int(memory.used),
            total_bytes=int(memory.total),
            utilization_percent=int(rates.gpu) if rates else None,
            temperature_c=self._temperature(handle),
            power_w=None if power is None else power / 1000,
            ecc_errors=self._ecc(handle),
            slowdown=", ".join(text for bit, text in SLOWDOWNS.items() if reasons & bit),
            processes=tuple(sorted(programs.items())),
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

    def _ecc(self, handle: Any) -> int | None:
        nvml = self._nvml
        kind, since = nvml.NVML_MEMORY_ERROR_TYPE_UNCORRECTED, nvml.NVML_VOLATILE_ECC
        errors = self._ask(nvml.nvmlDeviceGetTotalEccErrors, handle, kind, since)
        return None if errors is None else int(errors)

    def _fault(self, handle: Any) -> str:
        nvml = self._nvml
        if errors := self._ecc(handle):
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
            return f"temperature: at its shutdown limit of {limit} C"
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

    def _read_events(self) -> tuple[tuple[str, int], ...]:
        found = []
        for _ in range(64):
            event = self._ask(self._nvml.nvmlEventSetWait_v2, self._events, 0) if self._events is not None else None
            if event is None:
                break
            uuid = self._ask(self._nvml.nvmlDeviceGetUUID, event.device)
            if uuid and int(event.eventData) not in HARMLESS_XIDS:
                found.append((_text(uuid), int(event.eventData)))
        return tuple(found)

    def _ask(self, call: Callable[..., Any], *arguments: Any) -> Any:
        """An answer, or None where the device or the driver does not offer the question."""
        try:
            return call(*arguments)
        except self._nvml.NVMLError:
            return None


class Patient:
    """Looks through another scanner, and waits so long for it and no longer: a driver may hang for hours.

    While it does, each device that was seen last is told with that as its fault.
    """

    def __init__(self, scanner: Scanner, within_s: float = ANSWER_S) -> None:
        self._scanner = scanner
        self._within_s = within_s
        #: where the look that is under way puts what it finds; None: none is
        self._answer: Queue[Scan | None] | None = None
        self._late = False
        self._last = Scan()

    def scan(self) -> Scan:
        """All devices, or those of the last answer with a fault. Blocks."""
        if self._answer is None:
            self._answer = Queue()
            # A daemon, since a thread that a driver holds in the kernel would hold up the end of the process as well.
            Thread(target=self._look, args=(self._answer,), name="gpus", daemon=True).start()
        try:
            found = self._answer.get(timeout=None if self._late else self._within_s, block=not self._late)
        except Empty:
            self._late = True
            hung = tuple(replace(gpu, fault=HUNG) for gpu in self._last.gpus) or _unseen(HUNG)
            return Scan(hung, {}, HUNG, self._last.driver, self._last.cuda)
        self._answer, self._late = None, False
        if found is None:
            raise RuntimeError("looking at the GPUs failed; the log has the reason")
        self._last = found
        return found

    def _look(self, answer: Queue[Scan | None]) -> None:
        found = None
        try:
            found = self._scanner.scan()
        finally:
            answer.put(found)

    def close(self) -> None:
        if self._answer is None:  # else it would wait for the driver as well
            self._scanner.close()


def _unseen(fault: str) -> tuple[Gpu, ...]:
    """What stands for the devices of a machine whose driver has shown none yet: it would idle, and nobody miss it."""
    return (Gpu(uuid=UNSEEN, fault=fault[:256]),)


def _text(value: str | bytes) -> str:
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else value


def _cuda(number: int) -> str:
    """`12.4` for 12040; empty for 0."""
    return f"{number // 1000}.{number % 1000 // 10}" if number else ""
