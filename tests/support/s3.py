"""An S3-compatible server on loopback, for as long as a test runs; where it is not installed the test is skipped."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

KEY, SECRET = "AKIAOURSALONE", "hush/a+secret/of/the/bucket"


@contextmanager
def server(*buckets: str) -> Iterator[str]:
    """Yields the address of a server that has these buckets."""
    moto = pytest.importorskip("moto.server", reason="the S3-compatible server (moto[s3], flask) is not installed")
    pytest.importorskip("obstore", reason="obstore (ringrift-cluster[s3]) is not installed")
    running = moto.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    running.start()
    host, port = running.get_host_and_port()
    url = f"http://{host}:{port}"
    try:
        for bucket in buckets:
            client(url).create_bucket(Bucket=bucket)
        yield url
    finally:
        running.stop()


def client(url: str) -> Any:
    """A client of Amazon's own, to look into a bucket from outside."""
    import boto3

    return boto3.client(
        "s3", endpoint_url=url, region_name="us-east-1", aws_access_key_id=KEY, aws_secret_access_key=SECRET
    )


def credentials(folder: Path) -> Path:
    path = folder / "credentials"
    path.write_text(f"[default]\naws_access_key_id = {KEY}\naws_secret_access_key = {SECRET}\n")
    path.chmod(0o600)
    return path
