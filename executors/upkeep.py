"""What a node looks after besides its jobs and its files: free disk, GPUs, old folders.

A GPU whose job has ended is not used again before NVML shows that its memory came back; when it does not
come back in time, the device is reported with a fault until it does. A GPU that is doubted is not used again
before the cluster knows, and drains it.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Sequence
from pathlib import Path

from msgspec.structs import replace

from executors import host, telemetry
from executors.bench import Bench
from executors.folder import sweep_checkpoints
from executors.gpus import Reading, Scan, Scanner
from executors.logs import Logs
from executors.options import Options
from executors.ports import ClusterError
from executors.suspects import Suspects
from executors.telemetry import Telemetry
from statemachine.commands import DrainGpu
from statemachine.values import Gpu, PeerFacts

log = logging.getLogger(__name__)

#: memory that may stay in use after a job (driver contexts of other programs)
GPU_SLACK_BYTES = 512 * 1024 * 1024
GPU_SETTLE_S = 30.0
TIDY_EVERY_S = 60.0


class Upkeep:
    def __init__(
        self, bench: Bench, gpus: Scanner, options: Options, peer: str, holding: Callable[[], frozenset[str]]
    ) -> None:
        """`holding` says which GPUs attempts of this node have."""
        self.suspects = Suspects()
        #: every device in full, as of the last look
        self.telemetry: tuple[Telemetry, ...] = ()
        self._holding = holding
        self._peer = peer
        #: what a machine without NVML has instead
        self._metal: tuple[Gpu, ...] = ()
        #: what the cluster is told of each device
        self._told: dict[str, Gpu] = {}
        self._disk_free_bytes = 0
        self._bench = bench
        self._gpus = gpus
        self._options = options
        self._low_disk = ""
        self._base = PeerFacts()
        self._scan = Scan()
        self._scanned_s = 0.0
        self._tidied_s = 0.0
        #: memory in use while no job of ours had the device
        self._idle_bytes: dict[str, int] = {}
        #: devices whose memory has not come back: since when
        self._settling: dict[str, float] = {}

    @property
    def unsettled(self) -> frozenset[str]:
        """GPUs on which nothing may start: memory has not come back, or the cluster does not know yet of a doubt."""
        return frozenset(self._settling) | frozenset(self.suspects.doubts)

    def first_facts(self) -> PeerFacts:
        """The facts to join with: after the first look at every device. Blocks."""
        facts, options = self._bench.driver.facts(), self._options
        self._base = PeerFacts(
            hostname=facts.hostname,
            platform=facts.platform,
            release=options.release,
            cpu_cores=facts.cpu_cores,
            cpu_slots=self._slots(facts.cpu_cores),
            ram_bytes=facts.ram_bytes,
            disk_bytes=facts.disk_bytes,
            labels=options.labels,
            store_bytes=self._bench.blobs.quota_bytes,
            feature_level=options.feature_level,
        )
        self._metal = facts.metal
        self._look(frozenset(), None)
        if self._scan.absent:
            log.log(logging.WARNING if self._scan.gpus else logging.INFO, "event=no_gpus reason=%s", self._scan.absent)
        return self._facts()

    def _slots(self, cores: int) -> int:
        if self._options.cpu_slots is not None:
            return self._options.cpu_slots
        return len(self._bench.cpus) or cores

    async def facts(self) -> PeerFacts:
        """The facts as they are now; the devices are asked when it is time, or while memory should come back."""
        now = self._bench.clock.boot_s()
        if self._settling or now - self._scanned_s >= self._options.gpu_scan_every_s:
            settling, held = frozenset(self._settling), self._holding()
            await self._bench.on_disk(lambda: self._look(settling, held))
        return await self._bench.on_disk(self._facts)

    def ended(self, gpus: Collection[str]) -> None:
        """The last job on these devices has ended; they are free once their memory is."""
        for uuid in gpus:
            self._settling.setdefault(uuid, self._bench.clock.boot_s())

    def _facts(self) -> PeerFacts:
        floor, disks, was_low = self._options.disk_floor, self._bench.driver.disks(), bool(self._low_disk)
        shortages = (floor.shortage(disk.free_bytes, disk.total_bytes, was_low) for disk in disks)
        self._low_disk = next(filter(None, shortages), "")
        # The sentence without its figures, or every changed byte would be a new fact to tell.
        not_ready = self._low_disk.partition(":")[0]
        step = max(self._base.disk_bytes // 50, host.GIB)
        self._disk_free_bytes = telemetry.coarse(self._disk_free_bytes, floor.above(disks[0]), step, up=False)
        return replace(
            self._base,
            gpus=tuple(self._judged(self._told.get(gpu.uuid, gpu)) for gpu in self._scan.gpus),
            gpu_driver=self._scan.driver,
            cuda=self._scan.cuda,
            disk_free_bytes=self._disk_free_bytes,
            not_ready=not_ready,
        )

    def _judged(self, gpu: Gpu) -> Gpu:
        since = self._settling.get(gpu.uuid)
        if gpu.fault or since is None or self._bench.clock.boot_s() - since < GPU_SETTLE_S:
            return gpu
        return replace(gpu, fault="memory: what an ended job used has not come back")

    def _look(self, settling: frozenset[str], held: frozenset[str] | None) -> None:
        """Scan the devices; blocks on the driver. `held` are devices of our jobs; None: that is not known yet."""
        scan = self._gpus.scan()
        if not scan.gpus:
            scan = Scan(self._metal, absent=scan.absent)
        self._scan, self._scanned_s = scan, self._bench.clock.boot_s()
        readings = scan.readings or {}
        seen = []
        for gpu in scan.gpus:
            reading = readings.get(gpu.uuid)
            busy = held is None or gpu.uuid in held or gpu.uuid in settling
            foreign = self._foreign(reading, busy) if reading else 0
            self._told[gpu.uuid] = telemetry.told(gpu, reading, foreign, self._told.get(gpu.uuid))
            if reading is not None:
                self._settle(gpu.uuid, reading.used_bytes - foreign, gpu.uuid in settling)
                self.suspects.clocks(gpu.uuid, reading.slowdown)
            elif gpu.uuid in settling and not gpu.fault:
                self._settling.pop(gpu.uuid, None)  # a device that shows no memory will never show that it is back
            seen.append(Telemetry(gpu, reading, foreign, gpu.uuid in self._settling))
        for device, xid in scan.xids:
            for gpu in scan.gpus:
                if device in (gpu.uuid, gpu.part_of):
                    self.suspects.event(gpu.uuid, xid)
        known = {gpu.uuid for gpu in scan.gpus}
        for uuid in settling - known:
            self._settling.pop(uuid, None)  # the device is gone, and with it the question
        self._told = {uuid: gpu for uuid, gpu in self._told.items() if uuid in known}
        self.telemetry = tuple(seen)

    def _foreign(self, reading: Reading, busy: bool) -> int:
        jobs = self._bench.data_dir / "jobs"
        return telemetry.strangers(reading, lambda pid: telemetry.is_ours(pid, jobs), busy)

    def _settle(self, uuid: str, ours: int, settling: bool) -> None:
        """Take note of what we hold on a device; nothing more to wait for once it is what it was before the job."""
        if not settling:
            self._idle_bytes[uuid] = min(ours, self._idle_bytes.get(uuid, ours))
        elif ours <= self._idle_bytes.get(uuid, 0) + GPU_SLACK_BYTES:
            self._settling.pop(uuid, None)

    async def tidy(self, logs: Logs, held: Sequence[tuple[str, Path]]) -> None:
        """Tell what is doubted; now and then drop what is old.

        `held` are the items and folders of attempts that still matter.
        """
        bench, options = self._bench, self._options
        now = bench.clock.boot_s()
        try:
            await self._tell_doubts()
            if now - self._tidied_s < TIDY_EVERY_S:
                return
            self._tidied_s = now
            works, folders = [work for work, _ in held], [folder for _, folder in held]
            old = await bench.on_disk(lambda: logs.sweep(folders, options.logs_kept_s, options.logs_kept_bytes))
            old += await bench.on_disk(lambda: sweep_checkpoints(bench.data_dir, works, options.checkpoints_kept_s))
        except (ClusterError, OSError) as error:
            log.warning("event=upkeep_waits error=%s", error)
            return
        if old:
            log.info("event=tidied folders=%d", len(old))

    async def _tell_doubts(self) -> None:
        """Let the cluster drain the devices that are doubted."""
        doubts, for_ms = dict(self.suspects.doubts), self._bench.timing.gpu_suspect_ms
        if not doubts:
            return
        await self._bench.cluster.propose([DrainGpu(self._peer, u, True, why, for_ms) for u, why in doubts.items()])
        for uuid, reason in doubts.items():
            log.warning("event=gpu_drained gpu=%s for_ms=%d reason=%s", uuid, for_ms, reason)
            self.suspects.told(uuid)
