"""Limits of the spool format, each with its reason. Owns numbers only; the limits of MLflow live with the SDK and agent."""

from __future__ import annotations

#: Bytes of payload one frame may carry. A reader must hold a frame in memory, and a damaged length must be
#: recognisable; LevelDB cuts at 32 KiB, Vector at 128 MiB. Longer texts (a dataset profile) go into a blob.
MAX_PAYLOAD_BYTES = 1 << 20

#: A writer rotates here: small enough that retention frees space in useful steps, large enough that a busy run
#: makes a new file every few minutes (Prometheus 128 MiB, etcd 64 MB, wandb never).
SEGMENT_BYTES = 16 << 20

#: A reader looks at no byte past this one, so a sparse file that claims a terabyte costs nothing.
MAX_SEGMENT_BYTES = 64 << 20

#: A writer rotates after this many seconds too, so that a slow run's early segments can be retired.
SEGMENT_AGE_S = 600.0

#: A quiet writer says that it lives this often (seconds). An agent on another host calls a writer stale only after
#: many of these.
HEARTBEAT_S = 30.0

#: Seconds between two fdatasync calls with the default durability.
FSYNC_INTERVAL_S = 1.0

#: After a failed write, seconds before the disk is tried again: on a full ext4 every failing write may force a
#: journal commit, and a training loop must not pay that at each step.
RETRY_S = 1.0

#: Bytes kept aside for the last words (DROPPED, RUN_END, SEGMENT_END) of a writer on a full disk.
BALLAST_BYTES = 64 << 10

#: Elements in one decoded array or map. A batch holds at most 1000 metrics in MLflow; models and series need more.
MAX_ELEMENTS = 1 << 17

#: Arrays and maps in one payload, and how deep they may lie in each other. msgpack allocates an array on the word of its
#: header, and an empty array of one byte costs 64 in memory.
MAX_CONTAINERS = 1 << 16
MAX_DEPTH = 64

#: Characters in a name that becomes a directory entry (POSIX NAME_MAX is 255 bytes).
MAX_NAME_CHARS = 128

#: Points in one SERIES frame: 24 bytes each when neither steps nor timestamps are regular, kept below the payload limit.
MAX_SERIES_POINTS = 32768
