"""The process that reaches object stores: MLflow's own artifact repositories, asked over a pipe. See ``repositories``.

A line of JSON in for each thing to do, a line out when it is done, in whatever order; threads do several at once. It ends,
whatever it is in the middle of, when the pipe does. Files come as the path of an open file of the asking process, with the
device and inode that it must turn out to be: whoever asked may have given up and closed it meanwhile, and another file may
stand under its number.

MLflow names an object after the local file, so a link of that name in a folder of its own stands for the file.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
import tempfile
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from pathlib import Path
from typing import Any, TextIO

__all__ = ["main", "status_of"]

#: What libraries raise where nobody has told them who we are, and S3's names for credentials that are no good any more.
_NOBODY = frozenset({"NoCredentialsError", "PartialCredentialsError", "DefaultCredentialsError", "TokenRetrievalError"})
_EXPIRED = frozenset({"ExpiredToken", "InvalidToken", "TokenRefreshRequired", "RequestTimeTooSkewed"})

_NOT_INSTALLED = 501

#: Characters of what a library says that are handed on: a line of the pipe has room for more than ten times as many.
_WORDS = 2_000
_ADVICE = "pip install 'mlferry[s3]' (or what MLflow needs for this store) where the agent runs, then: mlferry retry"

_making = threading.Lock()


def main() -> None:
    """``python -m mlferry_agent.repository_worker THREADS``."""
    lock = threading.Lock()
    with os.fdopen(os.dup(1), "w") as answers:
        os.dup2(2, 1)  # what libraries print is no answer
        pool = ThreadPoolExecutor(int(sys.argv[1]))
        for line in sys.stdin:
            pool.submit(_answer, json.loads(line), answers, lock)
        os._exit(0)


def _answer(told: dict[str, Any], answers: TextIO, lock: threading.Lock) -> None:
    try:
        _carry(**{name: value for name, value in told.items() if name != "id"})
        said = {"id": told["id"], "status": 200}
    except BaseException as error:
        status = status_of(error)
        advice = f"; {_ADVICE}" if status == _NOT_INSTALLED else ""
        said = {"id": told["id"], "status": status, "detail": f"{type(error).__name__}: {error}"[:_WORDS] + advice}
    with lock:
        print(json.dumps(said), file=answers, flush=True)


def _carry(method: str, root: str, path: str, file: str, is_file: tuple[int, int]) -> None:
    """PUT ``file`` to ``path`` below ``root``, GET that into ``file``, or DELETE it."""
    repository = _repository(root)
    if method == "PUT":
        folder, _, name = path.rpartition("/")
        with _named(file, tuple(is_file), name) as local:
            repository.log_artifact(str(local), folder or None)
    elif method == "GET":
        repository._download_file(path, file)
    else:
        repository.delete_artifacts(path)


def _repository(root: str) -> Any:
    with _making:
        repository = _made(root)
        # boto3 makes no two clients at once; MLflow keeps the one that is made here, for minutes.
        getattr(repository, "_get_s3_client", lambda: None)()
        return repository


@lru_cache(maxsize=64)
def _made(root: str) -> Any:
    from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

    return get_artifact_repository(root)


@contextlib.contextmanager
def _named(file: str, expected: tuple[int, ...], name: str) -> Iterator[Path]:
    """The file under its name. Raises OSError, also where it is another one."""
    with Path(file).open("rb") as opened, tempfile.TemporaryDirectory() as folder:
        found = os.fstat(opened.fileno())
        if (found.st_dev, found.st_ino) != expected:
            raise OSError("the file was closed meanwhile")
        local = Path(folder) / name
        local.symlink_to(f"/proc/self/fd/{opened.fileno()}")
        yield local


def status_of(error: BaseException) -> int:
    """The HTTP status that says the same as what a store's library raised, or MLflow around it."""
    for cause in _causes(error):
        response = getattr(cause, "response", None)
        if isinstance(response, dict):  # botocore's ClientError
            return _of_s3(response)
        if isinstance(cause, ImportError):
            return _NOT_INSTALLED
        if type(cause).__name__ in _NOBODY:
            return 401
        for name in ("status_code", "code"):  # Azure's and Google's
            status = getattr(cause, name, None)
            if isinstance(status, int) and 400 <= status < 600:
                return status
    # Whatever a network or a library of many does not name: most of it passes.
    return 503


def _of_s3(response: dict[str, Any]) -> int:
    code = str(response.get("Error", {}).get("Code"))
    if code in _EXPIRED:
        return 401
    if code == "NoSuchBucket":
        return 403  # none of the files is to blame
    return int(response.get("ResponseMetadata", {}).get("HTTPStatusCode") or 503)


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__ or error.__context__


if __name__ == "__main__":
    main()
