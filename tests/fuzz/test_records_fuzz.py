"""Records that are well-formed and mean nothing: the agent delivers or sets aside each, and whoever reads a spool reads on.

A hostile writer gets past the decoder with any texts, numbers and details of the right types. So records of every kind are
drawn, written into a run's log and the store's by the real writer, delivered to a server that says yes or no at random, and
read by everything else that reads a spool. Nothing may end in a defect of ours.
"""

from __future__ import annotations

import contextlib
import logging
import random
import tempfile
import types
import typing
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, Phase, example, given, settings
from hypothesis import strategies as st
from tests.examples import examples
from tests.fakes.tracking import refusal
from tests.fakes.workbench import Workbench, run_alone
from tests.fuzz.test_agent_fuzz import Said
from tests.spooling import SpooledRun

from mlferry_agent.answers import Answer
from mlferry_agent.discovery import STORE, discover, store_log
from mlferry_agent.errors import AgentError
from mlferry_agent.requests import Request
from mlferry_agent.status import run_status
from mlferry_agent.verification import verify
from mlferry_spool.catalogue import Catalogue
from mlferry_spool.dump import dump_segment
from mlferry_spool.errors import SpoolError
from mlferry_spool.layout import store_directory
from mlferry_spool.records import RECORDS, Open, Record, SegmentEnd, Trace
from mlferry_spool.writer import Writer

RUN, MODEL = "a" * 32, "m-" + "b" * 32

WORDS = f"""x {RUN} {MODEL} 0 FINISHED RUNNING READY deleted active set_tag rename e mlflow.user mlferry.run_id
mlflow.parentRunId mlflow.runName models:/m/1 runs:/{RUN}/x ../x a/b {{}} [] assess link link_prompts locate delete_tag
create_registered_model create_model_version delete_model_version transition_model_version_stage mlflow-artifacts:/0
file:///etc"""
texts = st.text(max_size=6) | st.sampled_from([*WORDS.split(), "", "x\0", "\u202e", "k" * 251])
integers = st.sampled_from([0, 1, -1, 2**63 - 1, -(2**63), 1_700_000_000_000]) | st.integers(-(2**63), 2**63 - 1)
plain = st.recursive(
    st.none() | st.booleans() | integers | st.floats() | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=8,
)
DETAILS = """key value tags new_name uid version source run_id stage alias prompts name assessment trace_location
trace_metadata request_time state artifact_location description"""


def of(hint: Any) -> st.SearchStrategy[Any]:
    """What a field of this type may hold."""
    origin, inside = typing.get_origin(hint), typing.get_args(hint)
    if origin in (types.UnionType, typing.Union):
        return st.one_of([of(part) for part in inside])
    if is_dataclass(hint):
        return st.builds(hint, **{name: of(kind) for name, kind in typing.get_type_hints(hint).items()})
    if origin is dict and inside[1] is Any:
        return st.dictionaries(st.sampled_from(DETAILS.split()) | texts, plain, max_size=4)
    if origin is dict:
        return st.dictionaries(texts, of(inside[1]), max_size=3)
    if origin is tuple and inside[-1] is not ...:
        return st.tuples(*map(of, inside))
    if origin is tuple:
        return st.lists(of(inside[0]), max_size=2).map(tuple)
    simple: dict[Any, st.SearchStrategy[Any]] = {
        str: texts,
        int: integers,
        float: st.floats(),
        bool: st.booleans(),
        type(None): st.none(),
        bytes: st.sampled_from([b"", b"x" * 32, bytes(16), b"\0" * 8]),
    }
    return simple[hint]


def some(kind: type[Any]) -> st.SearchStrategy[Any]:
    hints = typing.get_type_hints(kind)
    return st.fixed_dictionaries({item.name: of(hints[item.name]) for item in fields(kind)}).map(
        lambda given: made(kind, given)
    )


def made(kind: type[Any], given: dict[str, Any]) -> Record | None:
    with contextlib.suppress(ValueError):  # columns of several lengths
        return kind(**given)  # type: ignore[no-any-return]
    return None


SOME = {kind: some(kind) for kind in RECORDS.values() if kind is not SegmentEnd}


@st.composite
def a_record(draw: st.DrawFn, kinds: tuple[type[Any], ...] = tuple(kind for kind in SOME if kind is not Open)) -> Any:
    return draw(SOME[draw(st.sampled_from(kinds))])


class Moody:
    """A server that says yes or no to whatever the fake one does not know."""

    def __init__(self, bench: Workbench, chance: random.Random) -> None:
        self.serve, self.chance = bench.server._serve, chance

    def __call__(self, request: Request, answer: Any) -> Answer:
        try:
            return self.serve(request, answer)
        except (AttributeError, KeyError, AssertionError, TypeError, ValueError):
            if self.chance.random() < 0.5:
                return refusal(400, "INVALID_PARAMETER_VALUE", "no")
            info = b'{"model_id": "m-1", "artifact_uri": "mlflow-artifacts:/0/models/m-1/artifacts"}'
            return Answer(200, {}, b'{"model": {"info": %s}, "model_version": {"version": "1"}, "trace": {}}' % info)


class Empty:
    """A server's artifacts, of which there are none."""

    async def download(self, request: Request, sink: object) -> Answer:
        return Answer(404, {}, b'{"error_code": "RESOURCE_DOES_NOT_EXIST"}')


def put(writer: Writer, wanted: list[Record | None]) -> None:
    for record in wanted:
        if record is not None:
            with contextlib.suppress(SpoolError):
                writer.put(record)


# A delivery takes a tenth of a second: to look for the shortest that fails takes longer than to read a long one.
@settings(
    max_examples=examples(40),
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
    phases=(Phase.explicit, Phase.reuse, Phase.generate),
)
@given(a_record((Open,)), st.lists(a_record(), max_size=6), st.lists(a_record(), max_size=6), st.integers(0, 2**32))
@example(None, [], [Trace(1, "tr-1", {"trace_metadata": True}), Trace(2, "tr-2", {"tags": ["x"]})], 0)
def test_no_records_make_anybody_trip(
    opening: Open | None, of_run: list[Record | None], of_store: list[Record | None], seed: int
) -> None:
    log, said = logging.getLogger("mlferry.agent"), Said()
    log.addHandler(said)
    try:
        with tempfile.TemporaryDirectory() as name:
            bench = Workbench(Path(name), seed=seed)
            bench.server._serve = Moody(bench, random.Random(seed))  # type: ignore[method-assign]
            told = {item.name: getattr(opening, item.name) for item in fields(Open) if opening is not None}
            told = {key: value for key, value in told.items() if key not in ("writer_id", "run_id", "experiment_name")}
            run = SpooledRun(bench.spool, "e", **told)
            put(run.writer, of_run)
            run.writer.close()
            store = Writer(store_directory(bench.spool), Open("w-store"))
            put(store, of_store)
            store.close()
            read_all(bench)
            run_alone(deliver_all(bench))
    finally:
        log.removeHandler(said)
    assert said.defects == []


def read_all(bench: Workbench) -> None:
    """As the plugin, `mlferry status` and `mlferry dump` do."""
    catalogue = Catalogue(bench.spool)
    states = catalogue.runs()
    assert len(states) == 1
    experiments = catalogue.experiments()
    assert all(isinstance(catalogue.experiment_id_of(state), str) for state in states)
    for state in states:
        for key in state.metrics.values():
            catalogue.history(state.run_id, str(key))
    assert experiments is not None
    for model, _ in [*catalogue.models()]:
        catalogue.measured(model)
    for path in bench.spool.rglob("*.seg"):
        assert list(dump_segment(path))


async def deliver_all(bench: Workbench) -> None:
    runs = discover(bench.spool)
    with bench.carrier(give_up_after_s=300.0, patient=False) as carrier, contextlib.suppress(AgentError):
        await carrier.deliver(runs)
    with bench.ledger() as ledger:
        store = store_log(bench.spool)
        for run in [*runs, *([store] if store else [])]:
            assert run_status(run, ledger).as_json()
            if run.run_id != STORE:
                with contextlib.suppress(AgentError):
                    courier = bench.courier(give_up_after_s=300.0, patient=False)
                    await verify(run, ledger, courier, Empty())  # type: ignore[arg-type]
