"""MLflow's limits, copied: the agent must know them and must not import mlflow.

Importing mlflow costs about two seconds and 200 MB, so the few numbers are repeated here, each with the reason why it
binds. A test compares every one with `mlflow.utils.validation` of the installed MLflow. Owns numbers; checks nothing.

Lengths are in characters (code points) unless the name says bytes, because MLflow measures `len(str)`.
"""

from __future__ import annotations

MAX_METRICS_PER_BATCH = 1000
"""More in one log-batch is answered 400 and nothing of the batch is stored.

Beyond: the rest goes in the next request.
Test: tests/unit/agent/test_planner.py::test_a_request_holds_at_most_what_mlflow_takes
"""

MAX_PARAMS_TAGS_PER_BATCH = 100
"""The same, for params and for tags, each counted alone.

Beyond: the rest goes in the next request.
Test: tests/unit/agent/test_planner.py::test_a_request_holds_at_most_what_mlflow_takes
"""

MAX_ENTITIES_PER_BATCH = 1000
"""The same, for metrics, params and tags of one log-batch together.

Beyond: never: one kind goes in one request.
Test: tests/unit/test_requests.py::test_a_batch_holds_what_mlflow_takes_and_no_more
"""

MAX_DATASETS_PER_BATCH = 1000
"""Dataset inputs in one log-inputs.

Beyond: never: a request holds fewer.
Test: tests/unit/agent/test_limits.py::test_a_request_holds_no_more_datasets_than_mlflow_takes
"""

MAX_REQUEST_BYTES = 1_000_000
"""MLflow documents 1 MB a request but does not enforce it; Databricks and reverse proxies do (413).

Beyond: the rest goes in the next request.
Test: tests/unit/agent/test_planner.py::test_a_request_stays_below_a_megabyte
"""

MAX_KEY_LENGTH = 250
"""Of a metric, param or tag key: 400 for the whole batch.

Beyond: the record is set aside with the reason, everything else of the run is delivered.
Test: tests/unit/test_encoding.py::test_a_key_passes_exactly_when_mlflow_would_take_it
"""

MAX_PARAM_VALUE_LENGTH = 6000
"""The server cuts a longer param value here and answers 200, unless MLFLOW_TRUNCATE_LONG_VALUES=false: then 400.

Beyond: the server decides, as online: it cuts, or the record is set aside.
Test: tests/e2e/test_wire.py::test_a_long_value_ends_as_it_would_online
"""

MAX_TAG_VALUE_LENGTH = 8000
"""The same, for a run tag. In runs/create nothing is cut: SQLite stores all of it, PostgreSQL answers 400.

Beyond: the server decides, as online. A tag of the creation waits until the run is there.
Test: tests/e2e/test_wire.py::test_a_long_value_ends_as_it_would_online,
tests/unit/test_requests.py::test_a_tag_that_postgresql_would_refuse_does_not_ride_on_the_creation
"""

MAX_SENT_VALUE_LENGTH = 100_000
"""Ours. Values beyond the two limits above are sent so that the server applies its own rule, as it would online; but
no server keeps more than this, and at 6 bytes a character (`\\u0001`) it still fits in one request.

Beyond: cut here.
Test: tests/unit/test_encoding.py::test_a_long_value_is_left_for_the_server_to_cut_but_not_without_bound
"""

MAX_EXPERIMENT_NAME_LENGTH = 500
"""400 above it.

Beyond: the runs of that experiment are parked, all others are delivered.
Test: tests/unit/test_encoding.py::test_names_may_fill_their_limits_and_no_more
"""

MAX_EXPERIMENT_TAG_KEY_LENGTH = 250
"""400 above it.

Beyond: the record is set aside with the reason, everything else of the run is delivered.
Test: tests/unit/agent/test_limits.py::test_an_experiment_tag_may_fill_its_limits_and_no_more
"""

MAX_EXPERIMENT_TAG_VALUE_LENGTH = 20_000
"""400 above it: experiment tags are never cut.

Beyond: the record is set aside with the reason, everything else of the run is delivered.
Test: tests/unit/test_encoding.py::test_an_experiment_tag_is_refused_where_the_server_would_not_cut_it
"""

MAX_RUN_NAME_LENGTH = 250
"""`runs.name` is VARCHAR(250): SQLite does not mind, PostgreSQL answers 400 BAD_REQUEST to the whole runs/create.

Beyond: sent as it is; where the server does not take it, the name is cut here.
Test: tests/unit/agent/test_identity.py::test_a_name_that_the_server_has_no_room_for_is_cut
"""

MAX_DATASET_NAME_LENGTH = 500
"""400 above it.

Beyond: the record is set aside with the reason, everything else of the run is delivered.
Test: tests/unit/test_encoding.py::test_a_dataset_field_may_fill_its_limit_and_no_more
"""

MAX_DATASET_DIGEST_LENGTH = 36
"""400 above it.

Beyond: the record is set aside with the reason, everything else of the run is delivered.
Test: tests/unit/test_encoding.py::test_a_dataset_field_may_fill_its_limit_and_no_more
"""

MAX_DATASET_SOURCE_LENGTH = 65_535
"""400 above it (a TEXT column).

Beyond: the record is set aside with the reason, everything else of the run is delivered.
Test: tests/unit/test_encoding.py::test_a_dataset_field_may_fill_its_limit_and_no_more
"""

MAX_DATASET_SCHEMA_LENGTH = 1_048_575
"""400 above it.

Beyond: the record is set aside with the reason, everything else of the run is delivered.
Test: tests/unit/test_encoding.py::test_a_dataset_field_may_fill_its_limit_and_no_more
"""

MAX_DATASET_PROFILE_LENGTH = 16_777_215
"""400 above it (a MEDIUMTEXT column).

Beyond: the record is set aside with the reason, everything else of the run is delivered.
Test: tests/unit/test_encoding.py::test_a_dataset_field_may_fill_its_limit_and_no_more
"""

MAX_INPUT_TAG_KEY_LENGTH = 255
"""400 above it: a tag of a dataset input.

Beyond: the record is set aside with the reason, everything else of the run is delivered.
Test: tests/unit/agent/test_limits.py::test_a_tag_of_an_input_may_fill_its_limits_and_no_more
"""

MAX_INPUT_TAG_VALUE_LENGTH = 500
"""400 above it: a tag of a dataset input.

Beyond: the record is set aside with the reason, everything else of the run is delivered.
Test: tests/unit/agent/test_limits.py::test_a_tag_of_an_input_may_fill_its_limits_and_no_more
"""

MAX_PATH_SEGMENT_BYTES = 255
"""NAME_MAX of every common file system: an artifact with a longer segment is answered 500, then the connection drops.

Beyond: `UndeliverableName`: the file is set aside, everything else is delivered.
Test: tests/unit/test_requests.py::test_a_name_that_the_server_refuses_or_renames_is_undeliverable
"""

INT64_MIN = -(2**63)
INT64_MAX = 2**63 - 1
"""protobuf int64. Beyond it the server answers 200 and forgets the rest of the request.

Beyond: the record is set aside with the reason, everything else of the run is delivered.
Test: tests/unit/test_encoding.py::test_a_step_that_is_no_int64_is_refused,
tests/unit/test_encoding.py::test_a_timestamp_that_is_no_positive_int64_is_refused
"""
