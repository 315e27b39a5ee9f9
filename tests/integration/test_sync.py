"""The engine for threads: the same words as the async one, from many threads at once, around forks
and at the end of a process.
"""

from __future__ import annotations

import contextlib
import gc
import inspect
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import redis

from seckill import redis as servers
from seckill.admission import Admission
from seckill.embedded import EmbeddedServer
from seckill.engine import Engine as AsyncEngine
from seckill.errors import EngineClosed, EventsTrimmed, InvalidInput, RedisUnavailable, UnknownSale
from seckill.keys import queue_keys, stream_key
from seckill.order import Outcome, State, Wish
from seckill.queues import Queues as AsyncQueues
from seckill.sale import Sale
from seckill.status import Status
from seckill.stream import EventKind
from seckill.sync import Engine
from seckill.sync_queues import Queues
from tests.support import make_sale, new_sale_id

ROOT = Path(__file__).parents[2]
OPTIONS: dict[str, Any] = {"durability": "memory", "sweep_ms": 0}


@pytest.fixture
def engine(server: EmbeddedServer) -> Iterator[Engine]:
    engine = Engine(server.url, **OPTIONS)
    yield engine
    engine.stop()
    assert loop_threads() == []


def loop_threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "seckill"]


def open_sale(engine: Engine, *args: Any, **fields: Any) -> Sale:
    sale = make_sale(*args, **fields)
    assert engine.create(sale).status is Status.CREATED
    assert engine.open(sale.id).status is Status.DONE
    return sale


def held(engine: Engine, sale: Sale) -> list[str]:
    """The ids of the orders that were ever accepted."""
    events = engine.history(sale.id)
    return [e.order.id for e in events if e.kind is EventKind.HELD and e.order]


# -- the same engine --------------------------------------------------------------------------

RENAMED = {"aclose": "stop"}
# What the hot route looks at between two awaits, on the engine's own loop, where no thread stands.
LOOP_ONLY = {"at_hand"}


def verbs(engine: type) -> dict[str, Callable[..., Any]]:
    return {
        name: getattr(engine, name)
        for name in vars(engine)
        if name == "__init__" or not (name.startswith("_") or name in LOOP_ONLY)
    }


def shape(verb: Callable[..., Any]) -> str:
    """A signature as a caller of either engine sees it."""
    text = str(inspect.signature(verb)).replace("servers.", "")
    return text.replace("AsyncIterator", "Iterator").replace("'", "")


def test_the_two_engines_say_the_same_words() -> None:
    ours, theirs = verbs(Engine), verbs(AsyncEngine)
    assert sorted(ours) == sorted(
        [*(RENAMED.get(name, name) for name in theirs), "facts"]  # an attribute over there
    )
    for name, verb in theirs.items():
        other = ours[RENAMED.get(name, name)]
        if isinstance(verb, property):
            continue
        assert shape(other) == shape(verb), name
        assert inspect.getdoc(other) == inspect.getdoc(verb), name
    options, _, _ = inspect.getdoc(AsyncEngine).rpartition("\n\n")
    assert inspect.getdoc(Engine).startswith(options)


# For an engine's own sweeps and its end.
INSIDE = {"keep", "aclose"}


def test_the_two_queues_say_the_same_words() -> None:
    theirs = {name: verb for name, verb in verbs(AsyncQueues).items() if name not in INSIDE}
    ours = verbs(Queues)
    assert sorted(ours) == sorted(theirs)
    for name in theirs.keys() - {"__init__"}:
        assert shape(ours[name]) == shape(theirs[name]), name
        assert inspect.getdoc(ours[name]) == inspect.getdoc(theirs[name]), name


def test_a_draw_from_a_thread(engine: Engine, client: redis.Redis) -> None:
    draw_at = datetime.now(UTC) + timedelta(minutes=30)
    sale = open_sale(engine, {"a": 1}, admission=Admission(mode="draw", draw_at=draw_at))
    queue = engine.queue
    tickets = {}
    for buyer in ("ann", "bob"):
        joined = queue.join(sale.id, buyer)
        assert joined.status is Status.CREATED
        assert joined.place is not None
        tickets[buyer] = joined.place.ticket
    assert queue.rotate("nope").status is Status.UNKNOWN_SALE
    assert queue.name_value(sale.id, "7").status is Status.NO_QUEUE
    assert list(queue.tickets(sale.id)) == []
    client.hset(queue_keys(sale.id)[0], "draw_ms", 0)  # The moment has come.
    assert queue.draw(sale.id) is Status.DONE
    record = queue.record(sale.id)
    assert record is not None
    assert record.commitment == queue.commitment(sale.id)
    assert b"".join(queue.tickets(sale.id)).count(b"\n") == 1 + record.tickets == 3
    assert queue.views()[sale.id].closed == 2
    with pytest.raises(UnknownSale):
        list(queue.tickets("nope"))
    places = {buyer: queue.place(sale.id, buyer, ticket) for buyer, ticket in tickets.items()}
    tokens = {buyer: found.place.token for buyer, found in places.items() if found.place}
    assert sorted(map(bool, tokens.values())) == [False, True]
    [winner] = [buyer for buyer, token in tokens.items() if token]
    bought = engine.reserve(sale.id, winner, "k", {"a": 1}, token=tokens[winner])
    assert bought.status is Status.CREATED
    assert queue.leave(sale.id, winner).status is Status.DONE


def test_a_sale_from_beginning_to_end(engine: Engine) -> None:
    assert not engine.started
    sale = make_sale({"a": 5, "b": 1})
    assert engine.create(sale).status is Status.CREATED
    assert engine.started
    assert engine.facts is not None
    assert engine.facts.durability == "memory"
    assert engine.pause(sale.id).status is Status.NOT_OPEN
    assert engine.open(sale.id).ok
    assert engine.pause(sale.id, "盘点").ok
    assert engine.resume(sale.id).ok
    assert sale.id in engine.sales()
    assert engine.sale(sale.id) == sale
    assert abs(engine.now_ms() - time.time() * 1000) < 10_000

    got = engine.reserve(sale.id, "ann", "k", {"a": 2}, attrs="room=7")
    assert got.status is Status.CREATED
    assert got.order is not None
    order = got.order.id
    again = engine.reserve(sale.id, "ann", "k", {"a": 2}, attrs="room=7")
    assert again == Outcome(Status.EXISTS, got.order)
    assert engine.begin_payment(sale.id, order, buyer="ann").ok
    assert engine.order(sale.id, order, buyer="bob") is None
    assert engine.confirm(sale.id, order, "wx-1").ok
    assert engine.refund(sale.id, order, "r", return_units=True, return_limit=True).ok
    found = engine.order(sale.id, order)
    assert found is not None
    assert found.state is State.REFUNDED

    wishes = [Wish(f"b{n}", "k", {"a": 1}) for n in range(3)] + [Wish("", "k", {"a": 1})]
    *accepted, refused = engine.reserve_many(sale.id, wishes)
    assert [getattr(outcome, "status", None) for outcome in accepted] == [Status.CREATED] * 3
    assert isinstance(refused, InvalidInput)
    assert isinstance(accepted[0], Outcome)
    assert accepted[0].order is not None
    assert engine.release(sale.id, accepted[0].order.id).ok
    assert engine.add_stock(sale.id, "b", 4, key="more").total == 5
    assert engine.lanes()[sale.id].orders == 5
    assert engine.snapshot(sale.id).stock["a"].held == 2
    assert engine.close(sale.id).ok

    bought = next(event for event in engine.history(sale.id) if event.kind is EventKind.HELD)
    assert bought.attrs == "room=7"
    kinds = [event.kind for batch in engine.events(sale.id, "g", follow=False) for event in batch]
    assert kinds == [event.kind for event in engine.history(sale.id)]
    assert kinds.count(EventKind.HELD) == 4
    assert list(engine.events(sale.id, "g", follow=False)) == [], "all was acknowledged"


def test_errors_come_as_they_are(engine: Engine) -> None:
    for bad in ({"timeout_ms": 0}, {"durability": "hope"}, {"lease_ms": -1}):
        with pytest.raises(InvalidInput, match=next(iter(bad))):
            Engine("redis://127.0.0.1:1", **bad)
    with pytest.raises(UnknownSale):
        engine.snapshot("nope")
    with pytest.raises(UnknownSale):
        next(engine.history("nope"))
    with pytest.raises(InvalidInput, match="group"):
        next(engine.events("nope", ""))
    assert engine.reserve("nope", "ann", "k", {"a": 1}).status is Status.UNKNOWN_SALE
    with pytest.raises(InvalidInput, match="key"):
        engine.reserve("nope", "ann", "", {"a": 1})


def test_a_group_may_begin_after_what_was_trimmed(engine: Engine, client: redis.Redis) -> None:
    sale = open_sale(engine)
    engine.reserve(sale.id, "ann", "k", {"a": 1})
    client.xtrim(stream_key(sale.id), maxlen=1, approximate=False)
    with pytest.raises(EventsTrimmed):
        next(engine.events(sale.id, "g", follow=False))
    batches = engine.events(sale.id, "g", follow=False, after_trim=True)
    assert [event.seq for batch in batches for event in batch] == [3]


def test_a_long_history_comes_whole(engine: Engine) -> None:
    sale = open_sale(engine, {"a": 5_000})
    engine.reserve_many(sale.id, [Wish(f"b{n}", "k", {"a": 1}) for n in range(1_200)])
    assert [event.seq for event in engine.history(sale.id)] == list(range(1, 1_203))
    assert len(list(engine.history(sale.id, through_seq=700))) == 700


# -- many threads -----------------------------------------------------------------------------


def test_orders_of_many_threads_share_batches(engine: Engine) -> None:
    sale = open_sale(engine, {"a": 500})
    engine.reserve(sale.id, "first", "k", {"a": 1})
    together = threading.Barrier(32)

    def buy(thread: int) -> list[Outcome]:
        together.wait(60)
        return [engine.reserve(sale.id, f"b{thread}-{n}", "k", {"a": 1}) for n in range(20)]

    with ThreadPoolExecutor(32) as pool:
        answers = list(pool.map(buy, range(32)))
    for thread, outcomes in enumerate(answers):
        # Each caller got its own answer, and not its neighbour's.
        for n, outcome in enumerate(outcomes):
            assert outcome.status in (Status.CREATED, Status.SOLD_OUT)
            assert outcome.order is None or outcome.order.buyer == f"b{thread}-{n}"
    assert len(held(engine, sale)) == 500
    assert engine.snapshot(sale.id).stock["a"].available == 0
    lane = engine.lanes()[sale.id]
    assert lane.batches < lane.orders / 2, f"{lane.orders} orders in {lane.batches} batches"


def test_the_first_calls_of_many_threads_start_it_once(engine: Engine) -> None:
    together = threading.Barrier(16)

    def first(_: int) -> int:
        together.wait(60)
        return engine.now_ms()

    with ThreadPoolExecutor(16) as pool:
        assert len(list(pool.map(first, range(16)))) == 16
    assert len(loop_threads()) == 1


def test_a_failed_start_is_shared_and_not_final(
    server: EmbeddedServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(servers, "CONNECT_SECONDS", 0.5)
    path = tmp_path / "stuck.sock"
    engine = Engine(f"unix://{path}", **OPTIONS, timeout_ms=500)
    with socket.socket(socket.AF_UNIX) as stuck:
        stuck.bind(str(path))
        stuck.listen(16)
        with ThreadPoolExecutor(8) as pool:
            asked = [pool.submit(engine.sales) for _ in range(8)]
            for call in asked:
                with pytest.raises(RedisUnavailable):
                    call.result(10)
        assert not engine.started
        stuck.setblocking(False)
        attempts = 0
        with contextlib.suppress(BlockingIOError):
            while True:
                stuck.accept()[0].close()
                attempts += 1
        assert attempts == 1, "the last would have waited for all the others"
    path.unlink()
    path.symlink_to(server.url.removeprefix("unix://"))
    assert engine.sales() is not None
    engine.stop()


# -- stopping ---------------------------------------------------------------------------------


def test_after_stop_nothing_is_taken_until_start(engine: Engine) -> None:
    sale = open_sale(engine)
    engine.stop()
    engine.stop()
    assert not engine.started
    assert engine.facts is None
    for call in (
        engine.sales,
        lambda: engine.reserve(sale.id, "ann", "k", {"a": 1}),
        lambda: next(engine.history(sale.id)),
    ):
        with pytest.raises(EngineClosed):
            call()
    engine.start()
    engine.start()
    assert engine.reserve(sale.id, "ann", "k", {"a": 1}).ok
    with Engine(engine.url, **OPTIONS) as other:
        assert len(held(other, sale)) == 1
    with pytest.raises(EngineClosed):
        other.sales()


def test_stopped_under_load_every_order_has_its_answer(engine: Engine) -> None:
    sale = open_sale(engine, {"a": 1_000_000})
    accepted: list[list[str]] = [[] for _ in range(8)]

    def buy(thread: int) -> None:
        for n in range(1_000_000):
            try:
                outcome = engine.reserve(sale.id, f"b{thread}-{n}", "k", {"a": 1})
            except EngineClosed:
                return
            assert outcome.order is not None
            accepted[thread].append(outcome.order.id)

    with ThreadPoolExecutor(8) as pool:
        buying = [pool.submit(buy, thread) for thread in range(8)]
        while sum(map(len, accepted)) < 50:
            time.sleep(0.01)
        engine.stop()
        for call in buying:
            call.result(60)
    engine.start()
    told = [order for orders in accepted for order in orders]
    assert len(told) > 8
    assert sorted(told) == sorted(held(engine, sale)), "told, and nothing that was not told"


def test_stop_ends_those_who_wait_for_events(engine: Engine) -> None:
    sale = open_sale(engine)
    read: list[int] = []

    def follow() -> None:
        for batch in engine.events(sale.id, "g"):
            read.extend(event.seq for event in batch)

    with ThreadPoolExecutor(1) as pool:
        following = pool.submit(follow)
        while not read:
            time.sleep(0.01)
        engine.stop()
        with pytest.raises(EngineClosed):
            following.result(60)


# -- leaving early ----------------------------------------------------------------------------


def blocked_readers(client: redis.Redis) -> int:
    return sum(entry["cmd"] == "xreadgroup" for entry in client.client_list())


@pytest.mark.parametrize("leave", ["close", "forget"])
def test_leaving_a_loop_ends_its_reader(engine: Engine, client: redis.Redis, leave: str) -> None:
    sale = open_sale(engine)
    batches = engine.events(sale.id, "g", consumer="one")
    assert len(next(batches)) == 2
    before = blocked_readers(client)
    assert before >= 1
    if leave == "close":
        batches.close()  # type: ignore[attr-defined]
    else:
        del batches
        gc.collect()
    patience = time.monotonic() + 60
    while blocked_readers(client) == before:
        assert time.monotonic() < patience, "its connection is still there"
        time.sleep(0.01)
    # What it took and did not acknowledge goes to somebody else.
    other = engine.events(sale.id, "g", consumer="two", reclaim_ms=0, follow=False)
    assert [event.seq for batch in other for event in batch] == [1, 2]


class CtrlC:
    """Ctrl-C for the main thread, so long from now that what it is to interrupt has begun."""

    def __enter__(self) -> None:
        main = threading.main_thread().ident
        assert main is not None
        threading.Timer(0.8, signal.pthread_kill, (main, signal.SIGINT)).start()

    def __exit__(self, *_: object) -> None: ...


def test_an_interrupted_order_is_found_by_its_retry(tmp_path: Path) -> None:
    with (
        EmbeddedServer(tmp_path, appendfsync="no") as server,
        Engine(server.url, **OPTIONS, timeout_ms=10_000) as engine,
    ):
        sale = open_sale(engine)
        engine.reserve(sale.id, "first", "k", {"a": 1})
        os.kill(server.pid, signal.SIGSTOP)
        try:
            with CtrlC(), pytest.raises(KeyboardInterrupt):
                engine.reserve(sale.id, "ann", "k", {"a": 1})
        finally:
            os.kill(server.pid, signal.SIGCONT)
        outcome = engine.reserve(sale.id, "ann", "k", {"a": 1})
        assert outcome.status is Status.EXISTS
        assert outcome.order is not None
        assert held(engine, sale)[1:] == [outcome.order.id]


def test_an_interrupted_reader_takes_nothing_more(engine: Engine, client: redis.Redis) -> None:
    sale = open_sale(engine)
    batches = engine.events(sale.id, "g", consumer="one")
    next(batches)
    with CtrlC(), pytest.raises(KeyboardInterrupt):
        next(batches)
    assert list(batches) == []
    engine.reserve(sale.id, "ann", "k", {"a": 1})
    time.sleep(0.1)
    # Going on unseen, it would have taken the order's event.
    groups: Any = client.xinfo_groups(stream_key(sale.id))
    [group] = groups
    assert (group["pending"], group["lag"]) == (0, 1)
    other = engine.events(sale.id, "g", consumer="two", follow=False)
    assert [event.seq for batch in other for event in batch] == [3]


# -- from inside ------------------------------------------------------------------------------


class Nosy(Mapping[str, int]):
    """A cart that asks the engine, from wherever it is looked at, what it should hold."""

    def __init__(self, ask: Callable[[], object]) -> None:
        self.ask = ask

    def __len__(self) -> int:
        self.ask()
        return 1

    def __iter__(self) -> Iterator[str]:
        return iter("a")

    def __getitem__(self, sku: str) -> int:
        return 1


def test_a_call_from_its_own_thread_is_refused(engine: Engine) -> None:
    sale = open_sale(engine)
    for ask in (
        engine.now_ms,
        engine.start,
        engine.stop,
        lambda: list(engine.history(sale.id)),
    ):
        with pytest.raises(RuntimeError, match="its own thread"):
            engine.reserve(sale.id, "ann", "k", Nosy(ask))
        engine.start()
    assert engine.reserve(sale.id, "ann", "k", {"a": 1}).status is Status.CREATED


# -- processes --------------------------------------------------------------------------------

START = """
import json, os, sys, threading, time
from seckill import sync
from seckill.sync import Engine
from seckill.errors import EmbeddedError, EngineClosed
from tests.support import make_sale
def tell(**what): os.write(1, json.dumps(what).encode() + b"\\n")
"""


NOISY = ("-W", "default::ResourceWarning", "-W", "default::RuntimeWarning")


def run(script: str, *args: object) -> list[dict[str, Any]]:
    """What a program tells, in the order of its telling. It must end well and silently."""
    done = subprocess.run(
        # What is left open is told, and so are coroutines that nobody awaited.
        [sys.executable, *NOISY, "-c", START + script, *map(str, args)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=90,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, ""), done
    return [json.loads(line) for line in done.stdout.splitlines()]


FORK = """
engine = Engine(sys.argv[1], durability="memory", sweep_ms=50)
sale = make_sale({"a": 10_000}, id=sys.argv[2])
engine.create(sale), engine.open(sale.id)
ours = engine.history(sale.id)
next(ours)
tell(who="parent", got=engine.reserve(sale.id, "parent", "k", {"a": 1}).status.name)
done = threading.Event()
def hammer(thread):
    n = 0
    while not done.is_set():
        engine.reserve(sale.id, f"{thread}-{n}", "k", {"a": 1})
        n += 1
def hold(lock, taken):
    with lock:
        taken.set()
        time.sleep(0.2)
locks = [sync._lock, engine._thread._lock, threading.Lock()]
hammers = [threading.Thread(target=hammer, args=(n,)) for n in range(2)]
for thread in hammers: thread.start()
for child, lock in enumerate(locks):
    # Whatever the parent's threads are at, no lock is left taken in the child.
    taken = threading.Event()
    holder = threading.Thread(target=hold, args=(lock, taken))
    holder.start()
    taken.wait()
    if os.fork() == 0:
        started = engine.started
        again = engine.reserve(sale.id, "parent", "k", {"a": 1}).status.name
        new = engine.reserve(sale.id, f"child-{child}", "k", {"a": 1}).status.name
        try:
            list(ours)
        except EngineClosed as error:
            tell(who="child", started=started, again=again, new=new, error=str(error))
        sys.exit(0)  # With all that a process does at its end.
    os.wait()
    holder.join()
done.set()
for thread in hammers: thread.join()
tell(who="parent", got=engine.reserve(sale.id, "child-2", "k", {"a": 1}).status.name)
tell(who="parent", before=len(list(ours)), after=len(list(engine.history(sale.id))) > 8)
"""


def test_a_forked_child_starts_its_own(tmp_path: Path) -> None:
    # It sweeps all sales of its server, and would speak of those that other tests have damaged.
    with EmbeddedServer(tmp_path, appendfsync="no") as server:
        first, *children, last, events = run(FORK, server.url, new_sale_id())
    assert first == {"who": "parent", "got": "CREATED"}
    child = {
        "who": "child",
        "started": False,
        "again": "EXISTS",
        "new": "CREATED",
        "error": "the engine was stopped, or is another process's",
    }
    assert children == [child] * 3
    assert last == {"who": "parent", "got": "EXISTS"}
    assert events == {"who": "parent", "before": 1, "after": True}


EMBEDDED_FORK = """
engine = Engine.embedded(sys.argv[1])
engine.start()
if os.fork() == 0:
    try:
        engine.sales()
    except EmbeddedError as error:
        tell(error=str(error))
    sys.exit(0)
os.wait()
tell(sales=engine.sales(), pid=os.getpid())
"""


def test_an_embedded_server_stays_with_its_process(tmp_path: Path) -> None:
    refused, parent = run(EMBEDDED_FORK, tmp_path / "data")
    assert f"already in use by process {parent['pid']}" in refused["error"]
    assert parent["sales"] == []


ENDS = {
    "main thread": "buy('main')",
    # The main thread ends first; the others go on selling.
    "other threads": "[threading.Thread(target=buy, args=(f't{n}',)).start() for n in range(4)]",
    "daemon threads": (
        "[threading.Thread(target=buy, args=(f't{n}',), daemon=True).start() for n in range(4)]\n"
        "time.sleep(0.2)"
    ),
    "reader": "events = engine.events('s', 'g'); next(events)",
    "never used": "",
}
END = """
engine = Engine.embedded(sys.argv[1], durability="memory")
sale = make_sale({"a": 100_000}, id="s")
def buy(who):
    for n in range(300):
        try:
            got = engine.reserve("s", f"{who}-{n}", "k", {"a": 1})
        except EngineClosed:
            return  # Only a daemon thread may live as long as this.
        tell(buyer=got.order.buyer)
if sys.argv[2] != "never used":
    engine.create(sale), engine.open("s")
    tell(pid=engine._thread._server.pid)
"""


@pytest.mark.parametrize("how", ENDS)
def test_a_process_ends_without_stop(how: str, tmp_path: Path) -> None:
    data = tmp_path / "data"
    told = run(END + ENDS[how], data, how)
    if how == "never used":
        assert told == []
        assert not data.exists()
        return
    [pid] = [line["pid"] for line in told if "pid" in line]
    assert not Path(f"/proc/{pid}").exists() or os.name != "posix"
    assert not (data / "server.lock").exists()
    buyers = {line["buyer"] for line in told if "buyer" in line}
    assert len(buyers) >= {"main thread": 300, "other threads": 1_200, "daemon threads": 1}.get(
        how, 0
    )
    with Engine.embedded(data, durability="memory") as engine:
        found = {event.order.buyer for event in engine.history("s") if event.order}
        assert buyers <= found


def test_it_is_imported_only_by_who_asks() -> None:
    code = "import seckill, sys; print({'seckill.sync', 'asyncio'} & sys.modules.keys())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
    source = (ROOT / "seckill" / "sync.py").read_text("utf-8")
    assert not re.search(r"(?m)^(from|import) (redis|aiohttp|uvloop)", source)
