"""An S3-compatible object store for tests: moto's server in a process of its own, and boto3 to look into it."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.servers import free_port

_UP_S = 120.0


class ObjectStore:
    """A running store with one bucket. ``environ``: with it MLflow and boto3 find it, and an agent may write there."""

    def __init__(self, port: int) -> None:
        import boto3

        self.url, self.bucket = f"http://127.0.0.1:{port}", "artifacts"
        self.environ = {
            "MLFLOW_S3_ENDPOINT_URL": self.url,
            "AWS_ACCESS_KEY_ID": "testing",
            "AWS_SECRET_ACCESS_KEY": "testing",
            "AWS_DEFAULT_REGION": "us-east-1",
            "MLFERRY_STORES": f"s3://{self.bucket}",
        }
        key = {"aws_access_key_id": "testing", "aws_secret_access_key": "testing", "region_name": "us-east-1"}
        self._client: Any = boto3.client("s3", endpoint_url=self.url, **key)

    def objects(self, prefix: str = "") -> dict[str, bytes]:
        """The bytes of every object by its key, the prefix cut off."""
        pages = self._client.get_paginator("list_objects_v2").paginate(Bucket=self.bucket, Prefix=prefix)
        keys = [item["Key"] for page in pages for item in page.get("Contents", [])]
        return {
            key.removeprefix(prefix): self._client.get_object(Bucket=self.bucket, Key=key)["Body"].read()
            for key in keys
        }

    def put(self, key: str, content: bytes) -> None:
        self._client.put_object(Bucket=self.bucket, Key=key, Body=content)

    def remove(self, key: str) -> None:
        self._client.delete_object(Bucket=self.bucket, Key=key)

    def make_bucket(self) -> None:
        """Until it answers."""
        end = time.monotonic() + _UP_S
        while True:
            try:
                self._client.create_bucket(Bucket=self.bucket)
                return
            except Exception:  # boto3 has many, and makes them as it goes
                assert time.monotonic() < end, "moto did not come up"
                time.sleep(0.1)


@contextmanager
def object_store(log: Path, port: int | None = None) -> Iterator[ObjectStore]:
    """Start one, empty."""
    store = ObjectStore(port or free_port())
    command = [sys.executable, "-W", "ignore", "-m", "moto.server", "-p", store.url.rpartition(":")[2]]
    with log.open("ab") as sink:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=sink, stderr=sink)
    try:
        store.make_bucket()
        yield store
    finally:
        process.kill()
        process.wait()
