"""What a node looks after besides its jobs: free disk, GPUs, known holders, old files.

A GPU whose job has ended is not used again before NVML shows that its memory came back; when it does not
come back in time, the device is reported with a fault until it does.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

from msgspec.structs import replace

from executors import host
from executors.bench import Bench
from executors.folder import sweep_checkpoints
from executors.gpus import Gpus, Scan
from executors.logs import Logs
from executors.options import Options
from executors.ports import ClusterError
from statemachine.commands import AddHolder, Command, DropHolder
from statemachine.state import State
from statemachine.values import Gpu, PeerFacts

log = logging.getLogger(__name__)

#: memory that may stay in use after a job (driver contexts of other programs)
GPU_SLACK_BYTES = 512 * 1024 * 1024
GPU_SETTLE_S = 30.0
TIDY_EVERY_S = 60.0
#: holders told to the cluster at a time
HOLDERS_PER_BATCH = 200


@dataclass(frozen=True, slots=True)
class FileRows:
    """What the committed rows say about files: every known digest, and those this peer is said to hold."""

    known: frozenset[str]
    held: frozenset[str]


def file_rows(state: State, peer: str) -> FileRows:
    held = frozenset(d for d, row in state.artifacts.items() if peer in row.holders)
    return FileRows(frozenset(state.artifacts), held)


class Upkeep:
    def __init__(self, bench: Bench, gpus: Gpus, options: Options, peer: str) -> None:
        self._bench = bench
        self._gpus = gpus
        self._options = options
        self._peer = peer
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
        return frozenset(self._settling)

    def first_facts(self) -> PeerFacts:
        """The facts to join with: after the first look at every device. Blocks."""
        facts, options = host.facts(self._bench.data_dir), self._options
        self._base = PeerFacts(
            hostname=facts.hostname,
            platform=facts.platform,
            release=options.release,
            cpu_cores=facts.cpu_cores,
            cpu_slots=facts.cpu_cores if options.cpu_slots is None else options.cpu_slots,
            ram_bytes=facts.ram_bytes,
            disk_bytes=facts.disk_bytes,
            labels=options.labels,
            feature_level=options.feature_level,
        )
        self._look(frozenset())
        if self._scan.absent:
            log.info("no_gpus reason=%s", self._scan.absent)
        return self._facts()

    async def facts(self) -> PeerFacts:
        """The facts as they are now; the devices are asked when it is time, or while memory should come back."""
        now = self._bench.clock.boot_s()
        if self._settling or now - self._scanned_s >= self._options.gpu_scan_every_s:
            await self._bench.on_disk(lambda: self._look(frozenset(self._settling)))
        return await self._bench.on_disk(self._facts)

    def ended(self, gpus: Collection[str]) -> None:
        """The last job on these devices has ended; they are free once their memory is."""
        for uuid in gpus:
            self._settling.setdefault(uuid, self._bench.clock.boot_s())

    def _facts(self) -> PeerFacts:
        self._low_disk = host.disk_shortage(self._bench.data_dir, self._options.disk_floor, bool(self._low_disk))
        # The sentence without its figures, or every changed byte would be a new fact to tell.
        not_ready = self._low_disk.partition(":")[0]
        return replace(self._base, gpus=tuple(self._judged(gpu) for gpu in self._scan.gpus), not_ready=not_ready)

    def _judged(self, gpu: Gpu) -> Gpu:
        since = self._settling.get(gpu.uuid)
        if gpu.fault or since is None or self._bench.clock.boot_s() - since < GPU_SETTLE_S:
            return gpu
        return replace(gpu, fault="memory: what an ended job used has not come back")

    def _look(self, settling: frozenset[str]) -> None:
        """Scan the devices; blocks on the driver."""
        self._scan = self._gpus.scan()
        self._scanned_s = self._bench.clock.boot_s()
        for uuid, reading in (self._scan.readings or {}).items():
            if uuid not in settling:
                self._idle_bytes[uuid] = min(reading.used_bytes, self._idle_bytes.get(uuid, reading.used_bytes))
            elif reading.used_bytes <= self._idle_bytes.get(uuid, 0) + GPU_SLACK_BYTES:
                self._settling.pop(uuid, None)
        known = {gpu.uuid for gpu in self._scan.gpus}
        for uuid in settling - known:
            self._settling.pop(uuid, None)  # the device is gone, and with it the question

    async def tidy(self, logs: Logs, held: Sequence[tuple[str, Path]]) -> None:
        """Tell new holders at once; now and then drop what is old or no longer named.

        `held` are the items and folders of attempts that still matter.
        """
        bench, options = self._bench, self._options
        commands: list[Command] = [AddHolder(d, self._peer) for d in sorted(bench.fetched)[:HOLDERS_PER_BATCH]]
        now = bench.clock.boot_s()
        try:
            if now - self._tidied_s >= TIDY_EVERY_S:
                self._tidied_s = now
                # The rows are read before the directory: what a row says is here was stored before it was said.
                rows, _ = await bench.cluster.read(lambda state: file_rows(state, self._peer))
                stored = await bench.on_disk(bench.blobs.digests)
                missing = sorted(rows.held - stored)[:HOLDERS_PER_BATCH]
                commands += [DropHolder(digest, self._peer) for digest in missing]
                swept = await bench.on_disk(lambda: bench.blobs.sweep(rows.known, options.blob_min_age_s))
                works, folders = [work for work, _ in held], [folder for _, folder in held]
                old = await bench.on_disk(lambda: logs.sweep(folders, options.logs_kept_s, options.logs_kept_bytes))
                old += await bench.on_disk(lambda: sweep_checkpoints(bench.data_dir, works, options.checkpoints_kept_s))
                if swept or old or missing:
                    log.info("tidied files=%d folders=%d missing=%d", len(swept), len(old), len(missing))
            if commands:
                await bench.cluster.propose(commands)
                bench.fetched.difference_update(c.digest for c in commands if isinstance(c, AddHolder))
        except (ClusterError, OSError) as error:
            log.warning("upkeep_waits error=%s", error)
