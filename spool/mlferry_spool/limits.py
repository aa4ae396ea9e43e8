"""Limits of the spool format, each with its reason. Owns numbers only; the limits of MLflow live with the SDK and agent."""

from __future__ import annotations

#: Bytes of payload one frame may carry. A reader must hold a frame in memory, and a damaged length must be
#: recognisable; LevelDB cuts at 32 KiB, Vector at 128 MiB. Longer texts (a dataset profile) go into a blob.
#: Beyond: `RecordTooLarge`: the record is not written but counted as dropped, everything else is. A length beyond it
#: in a file is damage.
#: Test: tests/unit/spool/test_writer.py::test_a_value_that_cannot_be_stored_is_refused_and_leaves_no_mark
MAX_PAYLOAD_BYTES = 1 << 20

#: A writer rotates here: small enough that retention frees space in useful steps, large enough that a busy run
#: makes a new file every few minutes (Prometheus 128 MiB, etcd 64 MB, wandb never).
#: Beyond: the caretaker ends the segment, which names the next one; at twice this size the thread that logs does.
#: Test: tests/unit/spool/test_writer.py::test_a_segment_ends_where_it_is_full_and_names_the_next,
#: tests/unit/spool/test_rotation.py::test_a_logging_thread_rotates_itself_where_the_caretaker_does_not_come
SEGMENT_BYTES = 16 << 20

#: A reader looks at no byte past this one, so a sparse file that claims a terabyte costs nothing.
#: Beyond: nothing there is read; it is reported as damage once the writer is dead. No writer gets so far.
#: Test: tests/unit/spool/test_reader.py::test_nothing_is_read_past_the_limit_of_a_sparse_file,
#: tests/unit/spool/test_writer.py::test_the_largest_record_fits_and_a_segment_of_the_largest_setting_is_read_whole
MAX_SEGMENT_BYTES = 64 << 20

#: A writer rotates after this many seconds too, so that a slow run's early segments can be retired.
#: Beyond: the segment ends and names the next one.
#: Test: tests/unit/spool/test_writer.py::test_an_old_segment_is_ended_so_that_it_can_be_retired
SEGMENT_AGE_S = 600.0

#: A quiet writer says that it lives this often (seconds). An agent on another host calls a writer stale only after
#: many of these.
#: Beyond: a record that says so and nothing else.
#: Test: tests/unit/spool/test_writer.py::test_a_quiet_writer_says_that_it_lives
HEARTBEAT_S = 30.0

#: Seconds between two fdatasync calls with the default durability.
#: Beyond: a power cut costs what was logged since the last one, and nothing before it.
#: Test: tests/crash/test_power_cut.py::test_with_fsync_at_intervals_nothing_is_lost_once_an_interval_has_passed
FSYNC_INTERVAL_S = 1.0

#: After a failed write, seconds before the disk is tried again: on a full ext4 every failing write may force a
#: journal commit, and a training loop must not pay that at each step.
#: Beyond: until then records are counted as dropped without a try, then logging goes on.
#: Test: tests/unit/spool/test_limits.py::test_a_disk_that_failed_is_left_alone_for_a_while
RETRY_S = 1.0

#: Bytes kept aside for the last words (DROPPED, RUN_END, SEGMENT_END) of a writer on a full disk.
#: Beyond: never: drops without end are one record, and the last words are a few hundred bytes.
#: Test: tests/unit/spool/test_writer.py::test_on_a_full_disk_the_ballast_keeps_room_for_the_last_words,
#: tests/unit/spool/test_codec.py::test_drops_without_end_are_one_record_and_take_no_room
BALLAST_BYTES = 64 << 10

#: Values in one payload: numbers, texts, keys, arrays and maps alike. msgpack allocates an array on the word of its header,
#: an empty one of one byte costs 64 in memory, and each value is looked at, so a megabyte of tiny ones would cost a reader
#: a hundred milliseconds. MLflow takes 1000 metrics at once, which are 2000 values.
#: Beyond: `RecordTooLarge` for who writes it: it is not written but counted as dropped, everything else is.
#: `CorruptRecord` for who reads it all the same: it is set aside, everything else goes on.
#: Test: tests/unit/spool/test_codec.py::test_the_number_of_values_has_a_limit_and_texts_only_that_of_bytes,
#: tests/unit/spool/test_writer.py::test_a_value_that_cannot_be_stored_is_refused_and_leaves_no_mark
MAX_VALUES = 1 << 13

#: How deep arrays and maps may lie in each other, in payloads larger than a few kilobytes.
#: Beyond: as with too many values.
#: Test: tests/unit/spool/test_codec.py::test_nesting_has_a_limit
MAX_DEPTH = 64

#: Characters in a name that becomes a directory entry (POSIX NAME_MAX is 255 bytes).
#: Beyond: it is no name: a run id is refused where it is given, a directory of it is not looked into.
#: Test: tests/unit/spool/test_layout.py::test_no_name_leads_out_of_its_directory
MAX_NAME_CHARS = 128

#: Points in one SERIES frame: 24 bytes each when neither steps nor timestamps are regular, kept below the payload limit.
#: Beyond: a longer series is cut into several records.
#: Test: tests/unit/sdk/test_series.py::test_a_long_series_is_cut_into_frames
MAX_SERIES_POINTS = 32768
