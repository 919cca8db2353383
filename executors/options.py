"""What an operator may choose about a node's executor."""

from __future__ import annotations

from dataclasses import dataclass, field

from executors.host import GIB, DiskFloor
from executors.notice import Notice
from executors.transfers import Patience


@dataclass(frozen=True, slots=True)
class Options:
    """Spans in seconds, sizes in bytes."""

    #: CPU slots offered; None is one for each core that jobs may use
    cpu_slots: int | None = None
    #: cores that jobs may not use, so that a voter's own work does not wait for theirs
    reserve_cpus: int = 0
    labels: tuple[str, ...] = ()
    release: str = ""
    #: the newest feature level that this release can apply
    feature_level: int = 1
    #: at most this many keepers at a time; 0 is twice the slots and GPUs, at least 32
    max_processes: int = 0
    starts_per_s: float = 50.0
    progress_every_s: float = 30.0
    tick_s: float = 1.0
    upkeep_every_s: float = 5.0
    gpu_scan_every_s: float = 60.0
    #: keepers kill this long before a lease is over
    margin_s: float = 5.0
    disk_floor: DiskFloor = field(default_factory=DiskFloor)
    max_log_bytes: int = 16 * 1024 * 1024
    logs_kept_s: float = 3 * 86_400.0
    logs_kept_bytes: int = 4 * GIB
    #: checkpoints of items that did not complete here
    checkpoints_kept_s: float = 7 * 86_400.0
    #: a file that no row names is deleted at this age
    blob_min_age_s: float = 900.0
    #: bytes a second of all files that the node fetches and sends on its own account; 0 is no bound
    transfer_bytes_per_s: float = 0.0
    #: bytes a second that the check of stored files may read
    scrub_bytes_per_s: float = 20_000_000.0
    #: a file that was used within this time is not evicted
    evict_min_age_s: float = 60.0
    #: how often the stored files are looked after, at most
    storage_every_s: float = 5.0
    #: whether the machine is about to be taken away, and how often that is asked
    notice: Notice = field(default_factory=Notice)
    notice_every_s: float = 5.0
    patience: Patience = field(default_factory=Patience)
    request_timeout_s: float = 10.0
