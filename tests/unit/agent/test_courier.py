"""The courier: when it tries again, when it stops, and how it treats a server that is down."""

from __future__ import annotations

import asyncio
import io
import random
from collections.abc import Awaitable, Callable
from typing import BinaryIO

import pytest
from tests.fakes.workbench import Clock

from mlferry_agent import requests
from mlferry_agent.answers import Answer, Verdict
from mlferry_agent.courier import Courier
from mlferry_agent.errors import GaveUp, Misconfigured, Unreachable
from mlferry_agent.requests import VERSION, Request
from mlferry_agent.retry import SUSPECT_400_ATTEMPTS, SUSPECT_500_ATTEMPTS

BATCH = requests.log_batch("run")
PUT = requests.put_artifact("mlflow-artifacts:/0/run/artifacts", "file")
GOOD, DOWN, SICK = (
    Answer(200, body=b"{}"),
    Answer(503, body=b"<html>"),
    Answer(500, body=b'{"error_code": "INTERNAL_ERROR"}'),
)
BAD_REQUEST = Answer(400, body=b'{"error_code": "BAD_REQUEST"}')
FORBIDDEN = Answer(401, body=b"<html>")
NO_SUCH_PAGE = Answer(404, body=b"<html>default backend - 404</html>")
NO_ARTIFACTS = Answer(503, body=b'{"detail": "the server runs with `--no-serve-artifacts`: --no-serve-artifacts"}')


class Scripted:
    """Answers in turn; the last one for ever."""

    def __init__(self, clock: Clock, *answers: Answer | Exception, takes_s: float = 0.0) -> None:
        self.clock = clock
        self.answers = list(answers)
        self.takes_s = takes_s
        self.asked_at: list[float] = []

    async def send(self, request: Request) -> Answer:
        if request.path == VERSION:
            return Answer(200, body=b"3.17.0")
        self.asked_at.append(self.clock.now)
        self.clock.now += self.takes_s
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        if isinstance(answer, Exception):
            raise answer
        return answer

    async def upload(self, request: Request, file: BinaryIO, size: int) -> Answer:
        return await self.send(request)


def courier(sender: Scripted, **options: object) -> Courier:
    return Courier(sender, rng=random.Random(1), clock=sender.clock, sleep=sender.clock.sleep, **options)  # type: ignore[arg-type]


def scripted(*answers: Answer | Exception, takes_s: float = 0.0) -> Scripted:
    return Scripted(Clock(), *answers, takes_s=takes_s)


async def test_an_agent_begins_gently_and_a_command_that_somebody_waits_for_with_one_request_at_a_time() -> None:
    windows = [courier(scripted(GOOD), patient=patient).gate.window for patient in (True, False)]
    assert [window.whole for window in windows] == [1, 1]
    assert windows[0].size < windows[1].size == 1.0


async def test_what_is_transient_is_tried_until_it_passes_and_ever_more_slowly() -> None:
    sender = scripted(*[Unreachable("refused"), DOWN] * 100, GOOD)
    assert (await courier(sender).ask(BATCH)).verdict is Verdict.ACCEPTED
    assert len(sender.asked_at) == 201
    slept = sender.clock.slept
    assert max(slept[:3]) < 2 < max(slept) <= 60


@pytest.mark.parametrize(("answer", "attempts"), [(BAD_REQUEST, SUSPECT_400_ATTEMPTS), (SICK, SUSPECT_500_ATTEMPTS)])
async def test_what_may_be_a_refusal_is_tried_a_few_times(answer: Answer, attempts: int) -> None:
    sender = scripted(answer)
    assert (await courier(sender).ask(BATCH)).verdict is Verdict.SUSPECT
    assert len(sender.asked_at) == attempts


async def test_a_wrong_token_is_raised_by_a_command_and_waited_for_by_the_daemon() -> None:
    with pytest.raises(Misconfigured):
        await courier(scripted(FORBIDDEN), patient=False).ask(BATCH)
    sender = scripted(FORBIDDEN, FORBIDDEN, GOOD)
    assert (await courier(sender).ask(BATCH)).verdict is Verdict.ACCEPTED
    assert all(30 <= slept <= 60 for slept in sender.clock.slept)


async def test_a_page_that_every_mlflow_server_has_and_this_one_has_not_is_a_wrong_address() -> None:
    sender = scripted(NO_SUCH_PAGE, NO_SUCH_PAGE, GOOD)
    assert (await courier(sender).ask(BATCH)).verdict is Verdict.ACCEPTED
    with pytest.raises(Misconfigured, match="default backend"):
        await courier(scripted(NO_SUCH_PAGE), patient=False).ask(BATCH)


async def test_a_server_that_takes_no_artifacts_is_well_otherwise() -> None:
    sent = courier(scripted(NO_ARTIFACTS), patient=False)
    assert (await sent.upload(PUT, io.BytesIO(), 0)).verdict is Verdict.UNSUPPORTED
    assert sent.health.trouble is None


async def test_a_command_gives_up_when_no_good_answer_came_for_so_long() -> None:
    sender = scripted(GOOD, DOWN)
    sent = courier(sender, give_up_after_s=100.0)
    sender.clock.now = 500.0
    await sent.ask(BATCH)
    sender.clock.now = 1000.0
    with pytest.raises(GaveUp):
        await sent.ask(BATCH)
    assert 100 <= sender.clock.now - 1000 < 200


async def test_hours_of_an_upload_that_breaks_off_are_not_hours_without_an_answer() -> None:
    sender = scripted(Unreachable("reset"), GOOD, takes_s=7200.0)
    sent = courier(sender, give_up_after_s=100.0)
    assert (await sent.upload(PUT, io.BytesIO(), 0)).verdict is Verdict.ACCEPTED


async def test_retry_after_is_obeyed() -> None:
    sender = scripted(Answer(429, {"retry-after": "40"}, b""), GOOD)
    await courier(sender).ask(BATCH)
    assert 40 <= sender.clock.slept[0] <= 80


class Gate:
    """A server that is down until it is opened; every request waits at the gate."""

    def __init__(self) -> None:
        self.up = False
        self.in_flight = self.most = self.served = 0

    async def send(self, request: Request) -> Answer:
        self.in_flight += 1
        self.most = max(self.most, self.in_flight)
        for _ in range(3):
            await asyncio.sleep(0)
        self.in_flight -= 1
        if not self.up:
            raise Unreachable("refused")
        self.served += 1
        return GOOD

    async def upload(self, request: Request, file: BinaryIO, size: int) -> Answer:
        return await self.send(request)


async def until(holds: Callable[[], bool], pause: Callable[[float], Awaitable[None]]) -> None:
    while not holds():
        await pause(0)


async def test_while_the_server_is_down_one_request_at_a_time_asks_whether_it_is_back() -> None:
    gate, clock = Gate(), Clock()
    sent = Courier(gate, rng=random.Random(1), clock=clock, sleep=clock.sleep)
    first = asyncio.create_task(sent.ask(BATCH))
    await until(lambda: sent.health.trouble is not None, asyncio.sleep)
    gate.most = 0
    others = [asyncio.create_task(sent.ask(BATCH)) for _ in range(50)]
    await until(lambda: sent.health.failures > 100, asyncio.sleep)
    assert gate.most == 1
    gate.up = True
    await asyncio.gather(first, *others)
    assert gate.served == 51


async def test_a_request_that_never_gets_through_does_not_hold_up_the_others() -> None:
    class OnePoison(Gate):
        async def send(self, request: Request) -> Answer:
            self.up = request is BATCH
            return await super().send(request)

    gate, clock = OnePoison(), Clock()
    sent = Courier(gate, rng=random.Random(1), clock=clock, sleep=clock.sleep)
    poison = asyncio.create_task(sent.ask(PUT))
    await until(lambda: sent.health.failures > 3, asyncio.sleep)
    for _ in range(20):
        await sent.ask(BATCH)
    assert gate.served == 20
    poison.cancel()
    await asyncio.gather(poison, return_exceptions=True)


async def test_what_waited_while_the_server_was_down_did_not_each_try_and_fail() -> None:
    gate, clock = Gate(), Clock()
    sent = Courier(gate, rng=random.Random(1), clock=clock, sleep=clock.sleep)
    others = [asyncio.create_task(sent.ask(BATCH)) for _ in range(50)]
    await until(lambda: clock.now > 600, asyncio.sleep)
    assert sent.health.failures < 45
    gate.up = True
    await asyncio.gather(*others)
    assert gate.served == 50


async def test_a_server_that_says_after_half_a_minute_that_it_is_full_is_left_more_room_than_one_that_says_so_at_once() -> (
    None
):
    sizes = []
    for takes_s in (0.0, 30.0):
        sent = courier(scripted(Answer(503), takes_s=takes_s))
        await sent.ask_once(BATCH, sent.attempts())
        sizes.append(sent.gate.window.size)
    assert sizes[1] < 0.125 <= sizes[0]


async def test_a_large_file_that_is_refused_at_its_end_says_nothing_of_a_crowd() -> None:
    sent = courier(scripted(Answer(502), GOOD, takes_s=600.0), uploads=4)
    await sent.upload(PUT, io.BytesIO(), 0)
    assert sent._files.gate.window.size >= 2


async def test_a_file_does_not_find_out_whether_the_server_is_back() -> None:
    paths: list[str] = []

    class Away(Gate):
        async def send(self, request: Request) -> Answer:
            paths.append(request.path)
            self.up = len(paths) > 5
            answer = await super().send(request)
            return Answer(200, body=b"3.17.0") if request.path == VERSION else answer

    gate, clock = Away(), Clock()
    sent = Courier(gate, rng=random.Random(1), clock=clock, sleep=clock.sleep)
    assert (await sent.upload(PUT, io.BytesIO(), 0)).verdict is Verdict.ACCEPTED
    assert paths == [PUT.path, *[VERSION] * 5, PUT.path]


async def test_a_server_that_hangs_is_asked_something_small() -> None:
    clock, paths = Clock(), []

    class Hangs(Gate):
        async def send(self, request: Request) -> Answer:
            paths.append(request.path)
            clock.now += 60.0
            self.up = len(paths) > 4
            answer = await super().send(request)
            return Answer(200, body=b"3.17.0") if request.path == VERSION else answer

    sent = Courier(Hangs(), rng=random.Random(1), clock=clock, sleep=clock.sleep)
    assert (await sent.ask(BATCH)).verdict is Verdict.ACCEPTED
    assert paths == [BATCH.path, *[VERSION] * 4, BATCH.path]


async def test_those_who_wait_give_up_with_the_one_that_tried() -> None:
    sender = scripted(GOOD, DOWN)
    sent = courier(sender, give_up_after_s=100.0)
    await sent.ask(BATCH)
    ends = await asyncio.gather(*(sent.ask(BATCH) for _ in range(30)), return_exceptions=True)
    assert {type(end) for end in ends} == {GaveUp}
    assert sender.clock.now < 300


async def test_an_attempt_that_must_not_be_repeated_blindly_is_made_once() -> None:
    sender = scripted(Unreachable("timeout"), GOOD)
    sent = courier(sender)
    attempts = sent.attempts()
    assert (await sent.ask_once(BATCH, attempts)).verdict is Verdict.RETRY
    assert (len(sender.asked_at), attempts.made, len(sender.clock.slept)) == (1, 1, 1)
    assert (await sent.ask_once(BATCH, attempts)).verdict is Verdict.ACCEPTED


async def test_what_is_overtaken_while_it_waits_for_its_turn_is_not_sent() -> None:
    gate, clock = Gate(), Clock()
    sent = Courier(gate, rng=random.Random(1), clock=clock, sleep=clock.sleep)
    first = asyncio.create_task(sent.ask(BATCH))
    await until(lambda: sent.health.trouble is not None, asyncio.sleep)
    overtaken: list[bool] = []
    late = asyncio.create_task(sent.ask_unless(lambda: bool(overtaken), BATCH, sent.attempts()))
    await until(lambda: sent.health.failures > 5, asyncio.sleep)
    overtaken.append(True)
    gate.up = True
    assert (await first).verdict is Verdict.ACCEPTED
    told = await late
    assert (told is None or told.verdict is Verdict.RETRY, gate.served) == (True, 1)
    assert await sent.ask_unless(lambda: True, BATCH, sent.attempts()) is None


async def test_a_store_past_the_server_that_is_away_holds_up_no_request_to_the_server() -> None:
    class AwayPastTheServer(Scripted):
        async def upload(self, request: Request, file: BinaryIO, size: int) -> Answer:
            return DOWN

    sender = AwayPastTheServer(Clock(), GOOD)
    asleep = asyncio.Event()

    async def sleep(delay_s: float) -> None:
        asleep.set()
        await asyncio.Event().wait()

    carrying = Courier(sender, clock=sender.clock, sleep=sleep)
    direct = requests.put_artifact("s3://bucket/0/run/artifacts", "file")
    uploads = [asyncio.create_task(carrying.upload(direct, io.BytesIO(b"x"), 1)) for _ in range(2)]
    await asleep.wait()
    assert (await carrying.ask(BATCH)).verdict is Verdict.ACCEPTED
    assert carrying.health.trouble is None
    assert "503" in str(carrying.store_health.trouble)
    for upload in uploads:
        upload.cancel()
    await asyncio.gather(*uploads, return_exceptions=True)


async def test_what_goes_past_the_server_takes_no_place_at_its_gate() -> None:
    class SlowPastTheServer(Scripted):
        async def send(self, request: Request) -> Answer:
            return await (asyncio.Event().wait() if request.is_direct else super().send(request))  # type: ignore[return-value]

    carrying = courier(SlowPastTheServer(Clock(), GOOD), connections=1)
    direct = asyncio.create_task(carrying.ask(requests.delete_artifact("s3://bucket/0/run/artifacts", "file")))
    await asyncio.sleep(0)
    assert (await asyncio.wait_for(carrying.ask(BATCH), 60)).verdict is Verdict.ACCEPTED
    direct.cancel()
    await asyncio.gather(direct, return_exceptions=True)
