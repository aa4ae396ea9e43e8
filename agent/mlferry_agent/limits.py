"""MLflow's limits, copied: the agent must know them and must not import mlflow.

Importing mlflow costs about two seconds and 200 MB, so the few numbers are repeated here, each with the reason why it
binds. A test compares every one with `mlflow.utils.validation` of the installed MLflow. Owns numbers; checks nothing.

Lengths are in characters (code points) unless the name says bytes, because MLflow measures `len(str)`.
"""

from __future__ import annotations

MAX_METRICS_PER_BATCH = 1000
"""More in one log-batch is answered 400 and nothing of the batch is stored."""

MAX_PARAMS_TAGS_PER_BATCH = 100
"""The same, for params and for tags, each counted alone."""

MAX_ENTITIES_PER_BATCH = 1000
"""The same, for metrics, params and tags of one log-batch together."""

MAX_DATASETS_PER_BATCH = 1000
"""Dataset inputs in one log-inputs."""

MAX_REQUEST_BYTES = 1_000_000
"""MLflow documents 1 MB a request but does not enforce it; Databricks and reverse proxies do (413)."""

MAX_KEY_LENGTH = 250
"""Of a metric, param or tag key: 400 for the whole batch."""

MAX_PARAM_VALUE_LENGTH = 6000
"""The server cuts a longer param value here and answers 200, unless MLFLOW_TRUNCATE_LONG_VALUES=false: then 400."""

MAX_TAG_VALUE_LENGTH = 8000
"""The same, for a run tag. In runs/create nothing is cut: SQLite stores all of it, PostgreSQL answers 400."""

MAX_SENT_VALUE_LENGTH = 100_000
"""Ours. Values beyond the two limits above are sent so that the server applies its own rule, as it would online; but
no server keeps more than this, and at 6 bytes a character (`\\u0001`) it still fits in one request."""

MAX_EXPERIMENT_NAME_LENGTH = 500
"""400 above it."""

MAX_EXPERIMENT_TAG_KEY_LENGTH = 250
"""400 above it."""

MAX_EXPERIMENT_TAG_VALUE_LENGTH = 20_000
"""400 above it: experiment tags are never cut."""

MAX_RUN_NAME_LENGTH = 250
"""`runs.name` is VARCHAR(250): SQLite does not mind, PostgreSQL answers 400 BAD_REQUEST to the whole runs/create."""

MAX_DATASET_NAME_LENGTH = 500
"""400 above it."""

MAX_DATASET_DIGEST_LENGTH = 36
"""400 above it."""

MAX_DATASET_SOURCE_LENGTH = 65_535
"""400 above it (a TEXT column)."""

MAX_DATASET_SCHEMA_LENGTH = 1_048_575
"""400 above it."""

MAX_DATASET_PROFILE_LENGTH = 16_777_215
"""400 above it (a MEDIUMTEXT column)."""

MAX_INPUT_TAG_KEY_LENGTH = 255
"""400 above it: a tag of a dataset input."""

MAX_INPUT_TAG_VALUE_LENGTH = 500
"""400 above it: a tag of a dataset input."""

MAX_PATH_SEGMENT_BYTES = 255
"""NAME_MAX of every common file system: an artifact with a longer segment is answered 500, then the connection drops."""

INT64_MIN = -(2**63)
INT64_MAX = 2**63 - 1
"""protobuf int64. Beyond it the server answers 200 and forgets the rest of the request."""
