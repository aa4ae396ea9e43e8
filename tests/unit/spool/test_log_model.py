"""Writers that log, rotate, are killed or lose power, and a reader that comes and goes: against a list of what was kept."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from tests.examples import examples
from tests.unit.spool.fake_files import FakeFiles
from tests.unit.spool.spools import FINISHED, number, segment_files, untended

from mlferry_spool.codec import decode
from mlferry_spool.layout import segment_name
from mlferry_spool.reader import LogReader, segment_offsets
from mlferry_spool.records import Kind, Params
from mlferry_spool.settings import Settings
from mlferry_spool.tailer import Cursor, Entry, Lost
from mlferry_spool.writer import Writer

SETTINGS = Settings(segment_bytes=900, segment_age_s=10.0, heartbeat_s=3.0)


class RememberedSyncs(FakeFiles):
    """Knows how much of each file a power cut cannot take."""

    def __init__(self) -> None:
        super().__init__()
        self.safe: dict[str, int] = {}

    def sync(self, fd: int) -> None:
        super().sync(fd)
        # By its name: the inode number of a deleted segment is soon another one's.
        self.safe[os.readlink(f"/proc/self/fd/{fd}")] = os.fstat(fd).st_size


class Life:
    """One writer from its start to its end, and what a reader has made of it so far."""

    def __init__(self, run: Path, name: str) -> None:
        self.files = RememberedSyncs()
        self.writer: Writer = untended(run, SETTINGS, name, files=self.files)
        self.directory = self.writer.directory
        self.kept: list[int] = []
        self.safe: list[int] = []
        self.powered = True
        self.alive = True
        self.ended = False
        self.cursor = Cursor()
        self.delivered: list[int] = []
        self.offsets: list[int] = []
        self.lost: list[Lost] = []

    def deliver(self, events: Iterator[Entry | Lost]) -> None:
        for event in events:
            if isinstance(event, Lost):
                self.lost.append(event)
                continue
            self.offsets.append(event.offset)
            record = decode(event.kind, event.payload)
            if isinstance(record, Params):
                self.delivered.append(record.timestamp)


class Spool(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.run_directory = Path(tempfile.mkdtemp()).resolve()
        self.now = 0.0
        self.count = 0
        self.lives = [Life(self.run_directory, "w0")]

    def teardown(self) -> None:
        for life in self.lives:
            if life.alive:
                assert life.writer.close(FINISHED)
                life.alive = False
            reader = LogReader(life.directory, life.cursor)
            while events := reader.read():
                life.deliver(iter(events))
            life.deliver(iter(reader.finish()))
            if life.powered:
                assert life.delivered == life.kept, "everything kept, once and in order"
                assert not life.lost
            assert set(life.safe) <= set(life.delivered)
        shutil.rmtree(self.run_directory)

    @property
    def life(self) -> Life:
        return self.lives[-1]

    @rule(size=st.integers(0, 400), times=st.integers(1, 4))
    def append(self, size: int, times: int) -> None:
        for _ in range(times):
            if self.life.writer.append(Kind.PARAMS, number(self.count, "x" * size)):
                self.life.kept.append(self.count)
            self.count += 1

    @rule(later=st.sampled_from([0.5, 4.0, 11.0]))
    def tend(self, later: float) -> None:
        """Syncs; a heartbeat or a rotation by age where it is due."""
        self.now += later
        self.life.writer.tend(self.life.writer._log.segment.begun_at + self.now)  # type: ignore[union-attr]
        self.life.safe = list(self.life.kept)

    @rule(orderly=st.booleans())
    def start_another(self, orderly: bool) -> None:
        """The process ends, in order or killed, and another one goes on with the run."""
        if orderly:
            assert self.life.writer.close(FINISHED)
            self.life.safe = list(self.life.kept)
        else:
            self.life.writer._leave_parent()  # what a death does: every descriptor is closed
        self.life.alive = False
        self.lives.append(Life(self.run_directory, f"w{len(self.lives)}"))

    @rule(data=st.data())
    def lose_power(self, data: st.DataObject) -> None:
        """Of each file any part behind the last sync may be gone, or be zeros."""
        self.life.writer._leave_parent()
        for path in segment_files(self.life.directory):
            size = path.stat().st_size
            safe = self.life.files.safe.get(str(path), 0)
            kept = data.draw(st.integers(safe, size))
            os.truncate(path, kept)
            if data.draw(st.booleans()):
                os.truncate(path, size)
        self.life.alive = self.life.powered = False
        self.lives.append(Life(self.run_directory, f"w{len(self.lives)}"))

    @rule(which=st.integers(0, 50), reads=st.integers(1, 3))
    def read(self, which: int, reads: int) -> None:
        """A reader starts where the last one was, reads a little and goes."""
        life = self.lives[which % len(self.lives)]
        reader = LogReader(life.directory, life.cursor)
        for _ in range(reads):
            life.deliver(iter(reader.read()))
        life.cursor = reader.cursor

    @precondition(lambda self: any(life.cursor.segment for life in self.lives))
    @rule()
    def delete_what_was_read(self) -> None:
        for life in self.lives:
            for offset in segment_offsets(life.directory):
                if offset < life.cursor.segment:
                    (life.directory / segment_name(offset)).unlink()

    @invariant()
    def nothing_is_delivered_twice_out_of_order_or_from_nowhere(self) -> None:
        for life in self.lives:
            assert life.delivered == sorted(set(life.delivered))
            assert life.offsets == sorted(set(life.offsets))
            assert set(life.delivered) <= set(life.kept)
            assert not (life.powered and life.lost)


Spool.TestCase.settings = settings(
    max_examples=examples(60), stateful_step_count=40, deadline=None, suppress_health_check=list(HealthCheck)
)
test_whatever_happens_what_was_kept_is_delivered_once = Spool.TestCase
