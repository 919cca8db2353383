"""The rows that the OpenAPI document shows: one small cluster, seen from every route.

They are the law's own Structs, so an example cannot drift from its schema.
"""

from __future__ import annotations

from statemachine.commands import AddWork, CompleteJob, StartGauntlet
from statemachine.rows import (
    Actual,
    Artifact,
    Desired,
    Gauntlet,
    GauntletStatus,
    Job,
    Model,
    ModelStatus,
    Peer,
    PeerStatus,
    Work,
    WorkStatus,
)
from statemachine.values import Beat, Evidence, Gpu, JobProgress, MatchResult, Needs, Output, PeerFacts, Tally

DIGEST = "3f2a" * 16
CHAMPION = "91c0" * 16

GPU = Gpu("GPU-5c0e", "NVIDIA H100 80GB HBM3", 80 * 2**30, pci="00000000:01:00.0", power_limit_w=700)
PEER = Peer(
    peer="gpu-1",
    incarnation=1_735_400_000_000,
    boot_id="c0ffee",
    role="follower",
    address="http://10.0.0.4:8770",
    facts=PeerFacts(hostname="gpu-1", cpu_cores=16, cpu_slots=4, ram_bytes=64 * 2**30, gpus=(GPU,)),
    status=PeerStatus.ALIVE,
    joined_at_ms=1_000,
    heard_at_ms=61_000,
)
NEEDS = Needs(cpu_slots=1)
SPEC = AddWork(
    work="sp-1",
    work_type="selfplay",
    config="hex8_2p",
    template="selfplay",
    params={"games": "50"},
    needs=NEEDS,
)
WORK = Work(
    spec=SPEC,
    status=WorkStatus.RUNNING,
    seq=7,
    created_at_ms=2_000,
    ready_at_ms=2_000,
    attempts=1,
    grants=1,
    job="sp-1.1",
)
JOB = Job(
    job="sp-1.1",
    work="sp-1",
    work_type="selfplay",
    config="hex8_2p",
    peer="gpu-1",
    incarnation=PEER.incarnation,
    fence=12,
    desired=Desired.RUN,
    actual=Actual.RUNNING,
    granted_at_ms=3_000,
    lease_ms=300_000,
    renewed_at_ms=60_000,
    needs=NEEDS,
    timeout_ms=7_200_000,
    started_at_ms=3_400,
    counts={"games": 20},
    total={"games": 50},
)
RESULT = MatchResult(
    a=f"{DIGEST}@policy-only",
    b="random",
    tally=(Tally(seats_a=1, seats_b=1, wins_a=14, wins_b=5, draws=1),),
    histogram=(0, 1, 2, 4, 3),
)
COMPLETION = CompleteJob(
    job="sp-1.1",
    fence=12,
    counts={"games": 50, "positions": 1_900},
    outputs=(Output(path="games.npz", digest=DIGEST, size_bytes=81_920, kind="games", counts={"games": 50}),),
)
PROGRESS = JobProgress(job="sp-1.1", fence=12, counts={"games": 20}, total={"games": 50})
BEAT = Beat(peer="gpu-1", incarnation=PEER.incarnation, progress=(PROGRESS,))
ARTIFACT = Artifact(
    digest=DIGEST,
    size_bytes=81_920,
    kind="games",
    config="hex8_2p",
    seq=9,
    created_at_ms=50_000,
    counts={"games": 50},
    holders=("gpu-1",),
    job="sp-1.1",
    fence=12,
    name="games.npz",
    parent=CHAMPION,
)
EVIDENCE = Evidence(
    kind="gauntlet", gauntlet="g-1", games=100, groups=50, llr_milli=3_010, lower_milli=-2_944, upper_milli=2_944
)
MODEL = Model(
    digest=CHAMPION,
    config="hex8_2p",
    generation=3,
    status=ModelStatus.CHAMPION,
    seq=5,
    created_at_ms=20_000,
    promoted_at_ms=40_000,
    evidence=EVIDENCE,
)
GAUNTLET = Gauntlet(
    spec=StartGauntlet(
        gauntlet="g-2",
        config="hex8_2p",
        candidate=DIGEST,
        opponent=f"{CHAMPION}@policy-only",
        baselines=("random",),
        floor_games=50,
        cap_games=50,
    ),
    status=GauntletStatus.RUNNING,
    seq=11,
    started_at_ms=55_000,
)
