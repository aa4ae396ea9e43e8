"""MLflow's limits on what a run may hold, each with its reason. Owns numbers only.

They are copied, not imported: the SDK works without MLflow, and a record that the server would refuse is better refused
where the line that logged it can still be named. A test compares each with the installed MLflow.
"""

from __future__ import annotations

#: Characters in the name of a metric, param or tag: the server's columns are VARCHAR(250).
#: Beyond: `BadKey`: this entry is not logged, the rest of the call is.
#: Test: tests/unit/sdk/test_side_by_side.py::test_a_key_is_refused_where_mlflow_refuses_it
MAX_KEY_CHARS = 250

#: Characters in a param's value; the server cuts what is longer, so the cut is made (and said) here.
#: Beyond: cut and said, as MLflow cuts it; with MLFLOW_TRUNCATE_LONG_VALUES=false `TextTooLong`, and not logged.
#: Test: tests/unit/sdk/test_side_by_side.py::test_long_values_are_cut_where_mlflow_cuts_them,
#: tests/unit/sdk/test_trouble.py::test_a_long_value_is_refused_where_it_must_not_be_cut
MAX_PARAM_CHARS = 6000

#: Characters in a tag's value; cut in the same way.
#: Beyond: as a param's.
#: Test: tests/unit/sdk/test_side_by_side.py::test_long_values_are_cut_where_mlflow_cuts_them
MAX_TAG_CHARS = 8000

#: Characters in an experiment's name.
#: Beyond: `BadExperiment`, which is raised: nothing was logged yet.
#: Test: tests/unit/sdk/test_limits.py::test_an_experiment_may_have_a_name_of_so_many_characters_and_no_more
MAX_EXPERIMENT_CHARS = 500

#: A dataset's parts, in characters: columns of the server's ``datasets`` table.
#: Beyond: `BadDataset`: the input is not logged, everything else is.
#: Test: tests/unit/sdk/test_limits.py::test_each_part_of_a_dataset_may_fill_its_limit_and_no_more
MAX_DATASET_NAME_CHARS = 500
MAX_DATASET_DIGEST_CHARS = 36
MAX_DATASET_SOURCE_CHARS = 65535
MAX_DATASET_SCHEMA_CHARS = 1048575
MAX_DATASET_PROFILE_CHARS = 16777215
MAX_INPUT_TAG_KEY_CHARS = 255
MAX_INPUT_TAG_CHARS = 500

#: Longest side in pixels of the small copy that MLflow's UI shows of an image.
#: Beyond: the copy is made smaller, the image itself is kept as it is.
#: Test: tests/unit/sdk/test_artifacts.py::test_an_image_of_a_step_has_the_names_that_the_user_interface_looks_for
THUMBNAIL_PIXELS = 256

#: Steps and timestamps are int64 on the wire; a larger one makes the server drop the rest of a request silently.
#: Beyond: `BadStep`: this point is not logged.
#: Test: tests/unit/sdk/test_values.py::test_a_step_that_is_no_int64_is_refused
MAX_INT64 = 2**63 - 1

#: Texts longer than this go into a blob: a frame holds 1 MiB in all.
#: Beyond: the text becomes a blob of the run.
#: Test: tests/unit/sdk/test_limits.py::test_a_text_too_long_for_a_record_becomes_a_blob
MAX_INLINE_CHARS = 64 << 10

#: Names known to be good are remembered; a program that makes up names without end must not grow without end.
#: Beyond: all are forgotten, and each is checked anew when it is used again.
#: Test: tests/unit/sdk/test_limits.py::test_names_without_end_are_not_remembered_without_end
MAX_KNOWN_KEYS = 1 << 16

#: Different complaints a run makes at most: a defect that repeats with new names must not fill the terminal.
#: Beyond: one line says that more are only counted; they are.
#: Test: tests/unit/sdk/test_trouble.py::test_complaints_do_not_fill_the_terminal
MAX_WARNINGS = 20
