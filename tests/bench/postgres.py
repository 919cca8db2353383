"""The anchor of the queue: PostgreSQL with pgqueuer, the same cycle of add, claim and complete in batches of 100.

    python -m tests.bench postgres

One server without replicas, `synchronous_commit=on`, in a throw-away cluster of its own. pgqueuer's own queries are
called, in batches as large as ours and by as many workers: its worker loop around them would only be slower.
"""

from __future__ import annotations

import asyncio
import importlib.util
import os
import pwd
import shutil
import subprocess
import tempfile
import time
import uuid
from datetime import timedelta
from pathlib import Path

from tests.bench.cluster import BATCH, CYCLERS
from tests.bench.sitting import Sitting
from tests.support.cluster import free_ports

PAYLOAD = b"x" * 160


def programs() -> Path | None:
    """Where Debian keeps the server's programs, newest version first."""
    found = shutil.which("initdb")
    places = [Path(found).parent] if found else []
    places += sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)
    return next((place for place in places if (place / "initdb").exists() and (place / "postgres").exists()), None)


def somebody() -> str | None:
    """PostgreSQL refuses to run as root: whom to run it as then."""
    if os.geteuid() != 0:
        return None
    names = {entry.pw_name for entry in pwd.getpwall()}
    return "postgres" if "postgres" in names else "nobody"


def run(sitting: Sitting, seconds: float = 4.0) -> None:
    place = programs()
    if place is None:
        sitting.lacks("PostgreSQL is not installed (Debian: postgresql)")
        return
    if importlib.util.find_spec("pgqueuer") is None or importlib.util.find_spec("asyncpg") is None:
        sitting.lacks("pgqueuer is not installed (pip install -e '.[bench]')")
        return
    user = somebody()
    with tempfile.TemporaryDirectory() as folder:
        if user:
            os.chown(folder, pwd.getpwnam(user).pw_uid, -1)
        data = f"{folder}/data"
        made = [str(place / "initdb"), "-D", data, "-A", "trust", "-U", "bench", "--no-instructions"]
        subprocess.run(made, user=user, cwd=folder, check=True, capture_output=True)
        (port,) = free_ports(1)
        options = ["-c", "synchronous_commit=on", "-c", "fsync=on", "-c", f"unix_socket_directories={folder}"]
        with Path(folder, "log").open("wb") as log:
            command = [str(place / "postgres"), "-D", data, "-p", str(port), "-h", "127.0.0.1", *options]
            server = subprocess.Popen(command, user=user, cwd=folder, stdout=log, stderr=log)
        try:
            asyncio.run(_cycles(sitting, port, seconds))
        finally:
            server.terminate()
            server.wait(30)


async def _cycles(sitting: Sitting, port: int, seconds: float) -> None:
    import asyncpg
    from pgqueuer.db import AsyncpgDriver
    from pgqueuer.ports.repository import EntrypointExecutionParameter
    from pgqueuer.queries import Queries

    async def connected() -> asyncpg.Connection:
        deadline = time.monotonic() + 30
        while True:
            try:
                return await asyncpg.connect(host="127.0.0.1", port=port, user="bench", database="postgres")
            except (OSError, asyncpg.CannotConnectNowError):
                assert time.monotonic() < deadline, "PostgreSQL does not answer"
                await asyncio.sleep(0.05)

    connections = [await connected() for _ in range(CYCLERS)]
    await Queries(AsyncpgDriver(connections[0])).install()

    async def worker(number: int, deadline: float) -> int:
        queries = Queries(AsyncpgDriver(connections[number]))
        name, who = f"cycle{number}", uuid.uuid4()
        asked = {name: EntrypointExecutionParameter(concurrency_limit=0)}
        done = 0
        while time.perf_counter() < deadline:
            await queries.enqueue([name] * BATCH, [PAYLOAD] * BATCH, [0] * BATCH)
            jobs = await queries.dequeue(BATCH, asked, who, None, timedelta(seconds=300))
            assert len(jobs) == BATCH, f"{len(jobs)} jobs were taken"
            await queries.log_jobs([(job, "successful", None) for job in jobs])
            done += BATCH
        return done

    await asyncio.gather(*(worker(n, time.perf_counter() + 0.5) for n in range(CYCLERS)))
    began = time.perf_counter()
    done = sum(await asyncio.gather(*(worker(n, began + seconds) for n in range(CYCLERS))))
    rate = done / (time.perf_counter() - began)
    sitting.note("postgres.cycles_per_s", rate)
    print(f"postgres: batches of {BATCH} from {CYCLERS} workers: {rate:,.0f} cycles/s")
    for connection in connections:
        await connection.close()
