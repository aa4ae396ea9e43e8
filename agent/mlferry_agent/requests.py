"""The requests that delivery makes, one builder an endpoint of MLflow's REST API.

Owns paths, query strings and bodies. Pure: never opens a socket, knows neither host nor credentials. Every value passes
through `encoding`, so a builder raises `Unencodable` for what the server would swallow.

Artifact names deserve care. The server unquotes an artifact path again and again until it stops changing
(utils/uri.py `validate_path_is_safe`), parsing it as a URL each time: `a%41` is stored as `aA`, `a?` as `a`, a tab
vanishes, DEL becomes `%7f`. Each with 200. So `put_artifact` runs the same reduction and refuses every name that would
not come out as it went in.
"""

from __future__ import annotations

import urllib.parse
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from mlferry_agent import encoding, limits
from mlferry_agent.encoding import Entity
from mlferry_agent.errors import NotProxied, UndeliverableName, Unencodable

API = "/api/2.0/mlflow/"
ARTIFACTS = "/api/2.0/mlflow-artifacts/artifacts"
SERVER_INFO = "/api/3.0/mlflow/server-info"
VERSION = "/version"
SPANS = "/v1/traces"

#: Artifact stores that clients reach without the server, where it does not proxy them: see ``repositories``. Not `file:`: a
#: path of the server's names some other place here.
DIRECT = frozenset({"s3", "gs", "wasbs", "abfss"})


@dataclass(frozen=True, slots=True)
class Request:
    """One HTTP request, without host and credentials.

    `path` starts with `/`, is percent-encoded, and is relative to the tracking URI. `query` is not encoded. `body` is
    JSON (or what `headers` say), or None. `workspace` overrides the destination's workspace; None leaves it.

    Or, `is_direct`: `path` is the artifact URI of a run or model, and `query` holds the path of a file below that.
    """

    method: str
    path: str
    query: tuple[tuple[str, str], ...] = ()
    body: bytes | None = None
    workspace: str | None = None
    headers: tuple[tuple[str, str], ...] = ()

    def __post_init__(self) -> None:
        """Raises `Unencodable` for a workspace that a header cannot carry: it comes from a record."""
        if self.workspace is not None:
            encoding.workspace(self.workspace)

    @property
    def is_direct(self) -> bool:
        """Whether it goes to an artifact store, past the tracking server."""
        return not self.path.startswith("/")


def server_version() -> Request:
    """The server's MLflow version, as plain text. Open to every Host; behind the basic-auth app it needs credentials."""
    return Request("GET", VERSION)


def server_info() -> Request:
    """The store type and abilities of a server >= 3.4; an older one answers 404."""
    return Request("GET", SERVER_INFO)


def get_experiment_by_name(name: str, workspace: str | None = None) -> Request:
    """The experiment called `name`. Finds deleted ones too: look at `lifecycle_stage`."""
    query = (("experiment_name", encoding.experiment_name(name)),)
    return Request("GET", API + "experiments/get-by-name", query, workspace=workspace)


def create_experiment(
    name: str, tags: Sequence[Entity] = (), artifact_location: str | None = None, workspace: str | None = None
) -> Request:
    """A new experiment; ALREADY when the name is taken, also by a deleted one. `tags` from `encoding.experiment_tag`."""
    body: Entity = {"name": encoding.experiment_name(name)}
    if tags:
        body["tags"] = list(tags)
    if artifact_location is not None:
        body["artifact_location"] = encoding.text(artifact_location, "artifact location")
    return _post("experiments/create", body, workspace)


def get_experiment(experiment_id: str, workspace: str | None = None) -> Request:
    """An experiment by its id, deleted or not; GONE when the server has none."""
    query = (("experiment_id", encoding.text(experiment_id, "experiment id")),)
    return Request("GET", API + "experiments/get", query, workspace=workspace)


def restore_experiment(experiment_id: str, workspace: str | None = None) -> Request:
    """Undelete; ALREADY when it is active."""
    return _post("experiments/restore", {"experiment_id": encoding.text(experiment_id, "experiment id")}, workspace)


def search_experiments(page_token: str | None = None, max_results: int = 1000, workspace: str | None = None) -> Request:
    """One page of all experiments, deleted ones included."""
    body: Entity = {"max_results": max_results, "view_type": "ALL"}
    if page_token:
        body["page_token"] = page_token
    return _post("experiments/search", body, workspace)


def create_run(
    experiment_id: str,
    start_time: int,
    run_name: str | None = None,
    user: str | None = None,
    tags: Sequence[Entity] = (),
    workspace: str | None = None,
) -> Request:
    """A new run, and *another* one whenever it is repeated. `start_time` in ms; `tags` from `encoding.tag`.

    The server does not cut tags here, and PostgreSQL refuses the run for one long tag: send long ones by `log_batch`.

    Raises:
        Unencodable: a tag over 8000 characters, or any field the server would refuse.
    """
    body: Entity = {
        "experiment_id": encoding.text(experiment_id, "experiment id"),
        "start_time": encoding.milliseconds(start_time, "start time"),
    }
    if run_name is not None:
        body["run_name"] = encoding.run_name(run_name)
    if user is not None:
        body["user_id"] = encoding.text(user, "user")
    if tags:
        body["tags"] = [_short(tag) for tag in tags]
    return _post("runs/create", body, workspace)


def search_runs_by_tag(
    experiment_ids: Iterable[str], key: str, value: str, workspace: str | None = None, max_results: int = 100
) -> Request:
    """Runs, deleted ones included, of these experiments that carry the tag `key` = `value`.

    Without experiment ids the server answers 200 and finds nothing.

    Raises:
        Unencodable: a quote in key or value: MLflow's filter language has no escape. ValueError: no experiment ids.
    """
    ids = list(experiment_ids)
    if not ids:
        raise ValueError("a search in no experiments finds nothing")
    if set("`'\"\\") & set(key + value):
        raise Unencodable(f"cannot search for the tag {key!r}: quotes have no escape in MLflow's filters")
    where = f"tags.`{key}` = '{value}'"
    body: Entity = {"experiment_ids": ids, "filter": where, "run_view_type": "ALL", "max_results": max_results}
    return _post("runs/search", body, workspace)


def get_run(run_id: str, workspace: str | None = None) -> Request:
    """Info, params, tags, latest metrics and inputs of a run, deleted or not."""
    return Request("GET", API + "runs/get", (("run_id", encoding.text(run_id, "run id")),), workspace=workspace)


def restore_run(run_id: str, workspace: str | None = None) -> Request:
    """Undelete; 200 as well when it is active."""
    return _post("runs/restore", _of_run(run_id), workspace)


def delete_run(run_id: str, workspace: str | None = None) -> Request:
    """Mark a run deleted; 200 as well when it is already."""
    return _post("runs/delete", _of_run(run_id), workspace)


def update_run(
    run_id: str,
    status: str | None = None,
    end_time: int | None = None,
    run_name: str | None = None,
    workspace: str | None = None,
) -> Request:
    """Status (a word of `encoding.RUN_STATUSES`), end time in ms, name: what is None stays. Repeatable."""
    body = _of_run(run_id)
    if status is not None:
        body["status"] = encoding.run_status(status)
    if end_time is not None:
        body["end_time"] = encoding.milliseconds(end_time, "end time")
    if run_name is not None:
        body["run_name"] = encoding.run_name(run_name)
    return _post("runs/update", body, workspace)


def log_batch(
    run_id: str,
    metrics: Sequence[Entity] = (),
    params: Sequence[Entity] = (),
    tags: Sequence[Entity] = (),
    workspace: str | None = None,
) -> Request:
    """Metrics, params and tags of one run, each made by `encoding`. Not one transaction: better one kind a request.

    Raises:
        ValueError: more of a kind than MLflow takes in one request.
    """
    counts = (len(metrics), len(params), len(tags))
    most = (limits.MAX_METRICS_PER_BATCH, limits.MAX_PARAMS_TAGS_PER_BATCH, limits.MAX_PARAMS_TAGS_PER_BATCH)
    if any(count > limit for count, limit in zip(counts, most, strict=True)):
        raise ValueError(f"{counts} metrics, params, tags in one batch: MLflow takes {most}")
    if sum(counts) > limits.MAX_ENTITIES_PER_BATCH:
        raise ValueError(f"{sum(counts)} entities in one batch: MLflow takes {limits.MAX_ENTITIES_PER_BATCH}")
    body = _of_run(run_id)
    body.update({k: list(v) for k, v in (("metrics", metrics), ("params", params), ("tags", tags)) if v})
    return _post("runs/log-batch", body, workspace)


def set_report(run_id: str, said: Iterable[str], report: Mapping[str, str], workspace: str | None = None) -> Request:
    """Tags that tell how much of a run is missing there; what was ``said`` before and is no longer missing becomes 0."""
    told = {**dict.fromkeys(said, "0"), **report}
    return log_batch(run_id, tags=[encoding.tag(key, value) for key, value in told.items()], workspace=workspace)


def set_tag(run_id: str, key: str, value: str, workspace: str | None = None) -> Request:
    """One tag of a run; the last one sent wins."""
    return _post("runs/set-tag", {**_of_run(run_id), **encoding.tag(key, value)}, workspace)


def delete_tag(run_id: str, key: str, workspace: str | None = None) -> Request:
    """Take a tag off a run; ALREADY when it has none."""
    return _post("runs/delete-tag", {**_of_run(run_id), "key": encoding.tag(key, "")["key"]}, workspace)


def log_inputs(run_id: str, datasets: Sequence[Entity], workspace: str | None = None) -> Request:
    """Dataset inputs from `encoding.dataset_input`. Repeatable; the tags of a known input are not changed.

    Raises:
        ValueError: more than 1000.
    """
    if len(datasets) > limits.MAX_DATASETS_PER_BATCH:
        raise ValueError(f"{len(datasets)} datasets in one request: MLflow takes {limits.MAX_DATASETS_PER_BATCH}")
    return _post("runs/log-inputs", {**_of_run(run_id), "datasets": list(datasets)}, workspace)


def get_metric_history(
    run_id: str, key: str, page_token: str | None = None, max_results: int = 25_000, workspace: str | None = None
) -> Request:
    """One page of the points of one metric."""
    query = [("run_id", run_id), ("metric_key", encoding.text(key, "key")), ("max_results", str(max_results))]
    if page_token:
        query.append(("page_token", page_token))
    return Request("GET", API + "metrics/get-history", tuple(query), workspace=workspace)


def list_artifacts(
    run_id: str, path: str | None = None, page_token: str | None = None, workspace: str | None = None
) -> Request:
    """One folder of a run's artifacts, whatever store holds them. `path` relative to the run; None is its root."""
    query = [("run_id", run_id)]
    if path:
        _segments(path)
        query.append(("path", path))
    if page_token:
        query.append(("page_token", page_token))
    return Request("GET", API + "artifacts/list", tuple(query), workspace=workspace)


def put_artifact(artifact_uri: str, path: str, workspace: str | None = None) -> Request:
    """Store one file at `path` under the run's `artifact_uri`; the body is streamed.

    Raises:
        NotProxied: the URI names a store that is out of reach. UndeliverableName: it would be refused or renamed.
    """
    return _artifact("PUT", artifact_uri, path, workspace)


def get_artifact(artifact_uri: str, path: str, workspace: str | None = None) -> Request:
    """The bytes of one artifact. Raises as `put_artifact`."""
    return _artifact("GET", artifact_uri, path, workspace)


def head_artifact(artifact_uri: str, path: str, workspace: str | None = None) -> Request:
    """The size of one artifact, in Content-Length. Raises as `put_artifact`."""
    return _artifact("HEAD", artifact_uri, path, workspace)


def delete_artifact(artifact_uri: str, path: str, workspace: str | None = None) -> Request:
    """Delete one artifact or folder. Raises as `put_artifact`."""
    return _artifact("DELETE", artifact_uri, path, workspace)


def _artifact(method: str, artifact_uri: str, path: str, workspace: str | None) -> Request:
    if urllib.parse.urlsplit(artifact_uri).scheme not in DIRECT:
        return Request(method, artifact_path(artifact_uri, path), workspace=workspace)
    if set("?#") & set(artifact_uri):
        raise NotProxied("the artifact URI carries a query or fragment")
    return Request(method, artifact_uri, (("path", "/".join(_segments(path))),), workspace=workspace)


def artifact_authority(artifact_uri: str) -> str | None:
    """`host:port` that an artifact URI names, or None where it leaves the host to the tracking server."""
    return urllib.parse.urlsplit(artifact_uri).netloc or None


def artifact_path(artifact_uri: str, path: str) -> str:
    """The percent-encoded proxy path of `path` under a run's `artifact_uri`, workspace prefix included.

    Raises:
        NotProxied: the URI names another store. UndeliverableName: the server would refuse or rename it.
    """
    segments = [*_proxy_root(artifact_uri), *_segments(path)]
    plain = "/".join(segments)
    if _as_the_server_reads(plain) != plain:
        raise UndeliverableName(f"{path!a}: the server would store it under another name")
    return "/".join([ARTIFACTS, *(urllib.parse.quote(segment, safe="") for segment in segments)])


def _proxy_root(artifact_uri: str) -> list[str]:
    uri = urllib.parse.urlsplit(artifact_uri)
    if uri.scheme in ("http", "https") and f"{ARTIFACTS}/" in uri.path:
        root = uri.path.split(f"{ARTIFACTS}/", 1)[1]
    elif uri.scheme == "mlflow-artifacts":
        root = uri.path
    else:
        raise NotProxied(f"the artifact URI begins with {uri.scheme or 'no scheme'}:, not mlflow-artifacts:")
    if uri.query or uri.fragment:
        raise NotProxied("the artifact URI carries a query or fragment")
    return [urllib.parse.unquote(segment) for segment in root.split("/") if segment]


def _segments(path: str) -> list[str]:
    segments = path.split("/")
    for segment in segments:
        problem = _problem(segment)
        if problem:
            raise UndeliverableName(f"{ascii(path)[:300]}: {problem}")
    return segments


def _problem(segment: str) -> str | None:
    if segment in ("", ".", ".."):
        return "a path may not be absolute, nor hold empty, '.' or '..' parts"
    if any(ord(char) < 32 or ord(char) == 127 for char in segment):
        return "control characters do not survive the server"
    if "#" in segment:
        return "MLflow refuses '#' in artifact names"
    try:
        size = len(segment.encode())
    except UnicodeEncodeError:
        return "the name is not Unicode text"
    if size > limits.MAX_PATH_SEGMENT_BYTES:
        return f"one part has {size} bytes, file systems take {limits.MAX_PATH_SEGMENT_BYTES}"
    return None


def _as_the_server_reads(path: str) -> str:
    """One round of utils/uri.py `_decode`; the server repeats it, but a fixed point after one round is one for good.

    Stricter than the server by names like `%00`, which it decodes, escapes again, stores, and then cannot delete.
    """
    return urllib.parse.urlunparse(urllib.parse.urlparse(urllib.parse.unquote(path)))


def _short(tag: Entity) -> Entity:
    if len(str(tag["value"])) > limits.MAX_TAG_VALUE_LENGTH:
        raise Unencodable(f"the tag {tag['key']!r} is too long for runs/create; send it by log-batch")
    return tag


def _of_run(run_id: str) -> Entity:
    return {"run_id": encoding.text(run_id, "run id")}


def _post(endpoint: str, body: Entity, workspace: str | None) -> Request:
    return Request("POST", API + endpoint, body=encoding.dumps(body), workspace=workspace)
