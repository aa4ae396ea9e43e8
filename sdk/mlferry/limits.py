"""MLflow's limits on what a run may hold, each with its reason. Owns numbers only.

They are copied, not imported: the SDK works without MLflow, and a record that the server would refuse is better refused
where the line that logged it can still be named. A test compares each with the installed MLflow.
"""

from __future__ import annotations

#: Characters in the name of a metric, param or tag: the server's columns are VARCHAR(250).
MAX_KEY_CHARS = 250

#: Characters in a param's value; the server cuts what is longer, so the cut is made (and said) here.
MAX_PARAM_CHARS = 6000

#: Characters in a tag's value; cut in the same way.
MAX_TAG_CHARS = 8000

#: Characters in an experiment's name.
MAX_EXPERIMENT_CHARS = 500

#: A dataset's parts, in characters: columns of the server's ``datasets`` table.
MAX_DATASET_NAME_CHARS = 500
MAX_DATASET_DIGEST_CHARS = 36
MAX_DATASET_SOURCE_CHARS = 65535
MAX_DATASET_SCHEMA_CHARS = 1048575
MAX_DATASET_PROFILE_CHARS = 16777215
MAX_INPUT_TAG_KEY_CHARS = 255
MAX_INPUT_TAG_CHARS = 500

#: Longest side in pixels of the small copy that MLflow's UI shows of an image.
THUMBNAIL_PIXELS = 256

#: Steps and timestamps are int64 on the wire; a larger one makes the server drop the rest of a request silently.
MAX_INT64 = 2**63 - 1

#: Texts longer than this go into a blob: a frame holds 1 MiB in all.
MAX_INLINE_CHARS = 64 << 10

#: Names known to be good are remembered; a program that makes up names without end must not grow without end.
MAX_KNOWN_KEYS = 1 << 16

#: Different complaints a run makes at most: a defect that repeats with new names must not fill the terminal.
MAX_WARNINGS = 20
