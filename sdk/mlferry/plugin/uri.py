"""``spool:`` URIs: which spool, and whose artifacts. Pure but for the environment that names the default spool.

A store's URI is ``spool:`` (the default spool), ``spool:///path`` or ``spool:/path``: MLflow itself turns the one spelling
into the other (``mlflow.utils.uri.append_to_uri_path``), so both are read everywhere and one is written. Nothing is
percent-decoded, and ``?`` and ``#``, which MLflow would take for a query or a fragment, are refused.

Below a spool, artifacts have places that MLflow's code can take apart and append to, and that exist on no disk::

    spool:///path/artifacts/<experiment>/<run>/artifacts[/...]
                                        /models/<model>/artifacts[/...]
                                        /traces/<trace>/artifacts[/...]
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from mlferry.errors import BadSpoolUri
from mlferry_spool.layout import default_root

__all__ = [
    "Owner",
    "experiment_artifacts",
    "is_spool",
    "model_artifacts",
    "parse_artifacts",
    "root_of",
    "run_artifacts",
    "store_uri",
    "trace_artifacts",
]

_SCHEME = "spool:"
_OWNED = re.compile(
    r"(?P<root>/.*?)/artifacts/(?P<experiment>[\w-]+)/(?:(?P<kind>models|traces)/)?(?P<id>[\w.-]+)(?P<inside>/artifacts(?:/(?P<path>.*))?)?"
)


@dataclass(frozen=True, slots=True)
class Owner:
    """Whose artifacts: of the spool at ``root``, the ``run``, ``model`` or ``trace`` of this id; ``path`` below them.

    ``above``: the URI names the directory that holds ``artifacts`` alone; MLflow goes there to download all of them.
    """

    root: Path
    kind: str
    owner_id: str
    path: str = ""
    above: bool = False


def is_spool(uri: str) -> bool:
    return uri.startswith(_SCHEME)


def root_of(uri: str, environ: Mapping[str, str] = os.environ) -> Path:
    """The spool that a store's URI names.

    Raises:
        BadSpoolUri: it has a host, a query or a fragment.
    """
    path = _path(uri)
    return Path(os.path.abspath(path)) if path else default_root(environ).absolute()  # noqa: PTH100 - keeps symlinks


def store_uri(root: Path) -> str:
    return f"spool://{root}"


def experiment_artifacts(root: Path, experiment_id: str) -> str:
    return f"{store_uri(root)}/artifacts/{experiment_id}"


def run_artifacts(root: Path, experiment_id: str, run_id: str) -> str:
    return f"{experiment_artifacts(root, experiment_id)}/{run_id}/artifacts"


def model_artifacts(root: Path, experiment_id: str, model_id: str) -> str:
    return f"{experiment_artifacts(root, experiment_id)}/models/{model_id}/artifacts"


def trace_artifacts(root: Path, experiment_id: str, trace_id: str) -> str:
    return f"{experiment_artifacts(root, experiment_id)}/traces/{trace_id}/artifacts"


def parse_artifacts(uri: str) -> Owner:
    """Whose artifacts a URI below a spool names.

    Raises:
        BadSpoolUri: it names none.
    """
    found = _OWNED.fullmatch(_path(uri).rstrip("/"))
    if found is None:
        raise BadSpoolUri(f"{uri!r:.200} names no run, model or trace")
    kind = {"models": "model", "traces": "trace"}.get(found["kind"] or "", "run")
    return Owner(Path(found["root"]), kind, found["id"], (found["path"] or "").strip("/"), not found["inside"])


def _path(uri: str) -> str:
    rest = uri.removeprefix(_SCHEME)
    if rest == uri or "?" in rest or "#" in rest:
        raise BadSpoolUri(f"{uri!r:.200}")
    if rest.startswith("//"):
        host, slash, path = rest[2:].partition("/")
        if host:
            raise BadSpoolUri(f"{uri!r:.200} names the host {host!r}; a spool is a directory")
        return slash + path
    return rest
