"""Work that is added to a cluster of processes all the time, from a thread of its own."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx

from ringrift_cluster.api.items import NewWork
from ringrift_cluster.client import Client
from ringrift_cluster.client.errors import ClientError
from tests.support.cluster import NodeProcess, eventually


class Load:
    """A client that adds items without a pause, few of a kind, under the addresses of the moment."""

    def __init__(self, addresses: list[str], token: str, ca: Path | None = None) -> None:
        self.addresses = addresses
        self._token, self._ca = token, ca
        self._enough = threading.Event()
        self.added: list[str] = []
        self.failures: list[str] = []
        self._thread = threading.Thread(target=self._work)

    def _work(self) -> None:
        while not self._enough.is_set() and not self.failures:
            asked = self.addresses
            with Client(asked, token=self._token, ca=self._ca, retry_s=60.0) as client:
                while asked is self.addresses and not self._enough.is_set():
                    work = f"load-{len(self.added)}"
                    try:
                        client.work_add(NewWork(work_id=work, work_type=f"load{len(self.added) // 100}"))
                    except ClientError as error:
                        self.failures.append(f"{work}: {error}")
                        break
                    self.added.append(work)

    def __enter__(self) -> Load:
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._enough.set()
        self._thread.join(90.0)

    def goes_on(self) -> None:
        """Some more is added from now on."""
        goal = len(self.added) + 5
        eventually(lambda: len(self.added) >= goal or self.failures, "the clients to go on", 60.0)
        assert not self.failures


@contextmanager
def acknowledged(node: NodeProcess, prefix: str, work_type: str) -> Iterator[list[str]]:
    """Items that one node has acknowledged so far; what it does not take is not tried again."""
    taken: list[str] = []
    enough = threading.Event()

    def submit() -> None:
        number = 0
        while not enough.is_set():
            number += 1
            work = f"{prefix}{number}"
            try:
                if node.post("/work/add", {"work_id": work, "work_type": work_type}).is_success:
                    taken.append(work)
            except httpx.HTTPError:
                continue

    client = threading.Thread(target=submit)
    client.start()
    try:
        yield taken
    finally:
        enough.set()
        client.join()
