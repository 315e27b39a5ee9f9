"""The hot route against aiohttp's way: the same bytes to two intakes that differ in nothing else.

Both have the same sales, copied from one database of a Redis to another, so what they say and do
must be the same byte for byte, but for the time. A failure prints what was sent, shrunk.
"""

from __future__ import annotations

import asyncio
import logging
import re
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, suppress
from datetime import UTC, datetime, timedelta
from itertools import count
from time import monotonic
from typing import Any

import jwt
import pytest
import redis
import uvloop
from hypothesis import HealthCheck, given, settings

from seckill.admission import Admission
from seckill.embedded import EmbeddedServer
from seckill.keys import SALES, queue_keys, shard_keys, stream_key
from seckill.sale import Sale
from seckill.server.connection import Connection
from seckill.server.hot_route import HotConnection
from tests.properties.mangled import LAST, TIME, TWISTED, Talk, pieces_of, talks
from tests.properties.test_engine_twin import SOAK_SECONDS
from tests.support import make_item, make_sale
from tests.web.hot import SECRET, Answer, Client, Site, order, serving, token

# Two ways of reading HTTP are compared: the Redis behind them is the same.
pytestmark = pytest.mark.once

ROUND = 500
ROUNDS_MAX = 10
SAME = settings(
    max_examples=150, deadline=None, print_blob=True, suppress_health_check=list(HealthCheck)
)
# What differs between two moments: in answers, and in the record of a new order.
_TIMES = re.compile(
    rb'(\r\nDate: )[^\r]+|("(?:deadline_ms|server_ms|now_ms|at_ms|eta_ms|expires_ms)":)\d+'
)
_DEADLINE = re.compile(rb"^(held\|\|.{8})\d+")
# A head that does not end is cut after read_timeout_s or keepalive_s; which of them depends on
# whether anything was being answered when its beginning was read.
_TOO_SLOW = b"HTTP/1.1 408 Request Timeout\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
_NUMBERS = count(100_000)


class Side:
    """One of the two intakes."""

    def __init__(self, site: Site, client: redis.Redis, sale: Sale) -> None:
        self.site = site
        self._client = client
        # As the server sends it: redis-py would make a dict of an entry's fields.
        client.set_response_callback("XRANGE", lambda response, **_: response)
        self._sale = sale.id
        self._seen = b"-"
        self._left = 0
        self._connection: Connection | None = None
        self._count_reads()

    def _count_reads(self) -> None:
        """Makes connections count what was read from them: a piece is sent when the one before it
        was read, so that both intakes read the same pieces."""
        connections, side = self.site.connections, self
        make = connections._connect

        def reading(base: type[Connection]) -> type[Connection]:
            class Counting(base):  # type: ignore[valid-type, misc]
                __slots__ = ()

                def data_received(self, data: bytes) -> None:
                    super().data_received(data)
                    side._left -= len(data)

            return Counting

        counting = {base: reading(base) for base in (Connection, HotConnection)}

        def connect(*args: Any, **options: Any) -> Connection:
            side._connection = connection = make(*args, **options)
            connection.__class__ = counting[type(connection)]
            return connection

        connections._connect = connect

    async def connect(self) -> Client:
        """A new connection, which is then the one that pieces are sent on."""
        self._connection = None
        client = Client(*await asyncio.open_connection("127.0.0.1", self.site.port))
        await _until(lambda: self._connection is not None and self._connection.transport)
        return client

    async def send(self, client: Client, pieces: list[bytes], waits: list[bool]) -> None:
        """Sends these, each when the one before was read, or, if wanted, answered; until the
        server hangs up."""
        for piece, wait in zip(pieces, waits, strict=True):
            self._left = len(piece)
            client.send(piece)
            await _until(lambda: self._left <= 0 or self._has_ended())
            if wait:
                await _until(lambda: not self.site.intake.in_flight)
                for _ in range(10):  # aiohttp comes round to waiting for the next one.
                    await asyncio.sleep(0)
            if self._has_ended():
                return

    def _has_ended(self) -> bool:
        transport = self._connection.transport if self._connection else None
        return transport is None or transport.is_closing()

    async def ask(self, pieces: list[bytes], waits: list[bool]) -> bytes:
        """All that is said to these pieces on a connection of their own, but for the time."""
        client = await self.connect()
        async with asyncio.timeout(60):
            _, said = await asyncio.gather(self.send(client, pieces, waits), _all_of(client))
        client.writer.close()
        return _TIMES.sub(rb"\1\2", said)

    async def meet(self, *tokens: str) -> None:
        """Lets the intake verify these user tokens."""
        asked = "GET /v1/sales/s/orders/00a1b2c3d4e5f60718293a4b HTTP/1.1\r\nHost: x\r\n"
        raw = "".join(f"{asked}Authorization: Bearer {each}\r\n\r\n" for each in tokens) + LAST
        assert (await self.ask([raw.encode()], [False])).count(b"HTTP/1.1 404 ") == len(tokens)

    def news(self) -> list[tuple[bytes, bytes]]:
        """What has happened in the sale since this was last asked, but for the time."""
        stream = stream_key(self._sale)
        entries: Any = self._client.execute_command("XRANGE", stream, self._seen, "+")
        events = []
        for entry, fields in entries:
            self._seen = b"(" + entry
            for subject, value in zip(fields[::2], fields[1::2], strict=True):
                events.append((subject, _DEADLINE.sub(rb"\1", value)))
        return events

    def books(self, *buyers: str) -> Any:
        """What the sale has left, and what these buyers have of it."""
        _, stock, have, *_ = shard_keys(self._sale)
        return self._client.hgetall(stock), self._client.hmget(have, buyers)


async def _all_of(client: Client) -> bytes:
    """What is said until the end, be it that what was sent last was read or not."""
    said = b""
    with suppress(ConnectionError):
        while got := await client.reader.read(65_536):
            said += got
    return said


async def _until(is_so: Callable[[], Any]) -> None:
    async with asyncio.timeout(60):
        while not is_so():  # noqa: ASYNC110 - the other side of the socket makes it true
            await asyncio.sleep(0)


class Twin:
    """The two sides, on one event loop, which runs while something is asked."""

    def __init__(self, runner: asyncio.Runner, sides: list[Side], own: dict[str, str]) -> None:
        self._runner = runner
        self.sides = sides
        self.own = own

    def each(self, call: Callable[[Side], Any]) -> list[Any]:
        """What both sides make of it, at the same time."""

        async def both() -> list[Any]:
            return await asyncio.gather(*map(call, self.sides))

        return self._runner.run(both())

    def hear(self, talk: Talk, *, again: bool = True) -> None:
        """Sends this to both, from buyers whom nobody has seen before. They must say the same, do
        the same, and do what they say."""
        number = next(_NUMBERS)
        buyers = [f"{letter}{number}" for letter in "kon"]
        known, other, new = map(_token, buyers)
        self.each(lambda side: side.meet(known, other))
        own = {"KNOWN": known, "OTHER": other, "NEW": new, "KEY": f"k{number}"} | self.own
        pieces = pieces_of(talk, own)
        waits = [talk.waits[at % len(talk.waits)] for at in range(len(pieces))]
        sent = list(zip(pieces, waits, strict=True))
        quick, slow = self.each(lambda side: side.ask(pieces, waits))
        done, done_too = (side.news() for side in self.sides)
        if again and quick != slow and b"HTTP/1.1 408 " in quick + slow:
            # To one of them a machine that stands still for a moment may look like a slow client.
            self.hear(talk, again=False)
            return
        assert quick.removesuffix(_TOO_SLOW) == slow.removesuffix(_TOO_SLOW), sent
        assert b" 500 " not in quick, sent
        assert done == done_too, sent
        assert len(done) == quick.count(b'"code":"created"'), sent
        books, books_too = (side.books(*buyers) for side in self.sides)
        assert books == books_too, sent


def _token(buyer: str) -> str:
    return jwt.encode({"sub": buyer, "exp": int(time.time()) + 3_600}, SECRET)


def _sales() -> tuple[Sale, Sale]:
    """One that sells, and one with a queue in which nobody is called yet."""
    items = (make_item("a", total=10**7), make_item("b", total=10**7, limit_per_buyer=3))
    later = datetime.now(UTC) + timedelta(hours=2)
    window = {"opens_at": later, "ends_at": later + timedelta(hours=1)}
    return make_sale(items=items), make_sale(**window, admission=Admission(mode="queue"))


@asynccontextmanager
async def _sides(url: str) -> AsyncIterator[tuple[list[Side], dict[str, str]]]:
    urls = [f"{url}?db=0", f"{url}?db=1"]
    clients = [redis.Redis.from_url(each) for each in urls]
    # What is never finished is soon ended.
    server = {"read_timeout_s": 0.5, "keepalive_s": 0.8}
    sale, queued = _sales()
    async with serving(urls[0], server=server) as hot:
        for each in (sale, queued):
            await hot.engine.create(each)
            await hot.engine.open(each.id)
        place = (await hot.engine.queue.join(queued.id, "holder")).place
        assert place is not None
        for key in (SALES, *shard_keys(sale.id), *shard_keys(queued.id), *queue_keys(queued.id)):
            clients[0].copy(key, key, destination_db=1)
        async with serving(urls[1], server=server | {"hot_route": False}) as cold:
            sides = [Side(*each, sale) for each in zip((hot, cold), clients, strict=True)]
            for side in sides:
                # The lanes are opened by the first order.
                for each in (sale, queued):
                    await side.site.engine.reserve(each.id, "first", "k", {"a": 1})
                await side.meet(token("holder"))
                side.news()
            own = {"SALE": sale.id, "QUEUE": queued.id, "TICKET": place.ticket}
            yield sides, own | {"HOLDER": token("holder")}
    for client in clients:
        client.close()


@pytest.fixture(scope="module")
def twin(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Twin]:
    # aiohttp has a traceback for each request that it can't make sense of.
    log = logging.getLogger("aiohttp.server")
    log.setLevel(logging.CRITICAL)
    with (
        EmbeddedServer(tmp_path_factory.mktemp("redis"), appendfsync="no") as server,
        asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner,
    ):
        serves = _sides(server.url)
        twin = Twin(runner, *runner.run(serves.__aenter__()))
        yield twin
        runner.run(serves.__aexit__(None, None, None))
    log.setLevel(logging.NOTSET)


def test_each_twist_by_itself(twin: Twin) -> None:
    """Orders that are plain but for one thing, each followed by a question."""
    for head, body in TWISTED:
        twin.hear(Talk([(head, body), (TIME, ""), (LAST, "")], None, None, [], [True]))


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_whatever_is_sent(twin: Twin) -> None:
    hits, places = _hits(twin)
    for _ in range(ROUNDS_MAX):
        _hear(twin, SAME)
        # Or nothing was compared. A slow machine has fewer in a round, where what was seen of the
        # queue is too old more often, and more orders wait for a turn.
        if _hits(twin)[0] - hits > 10 and _hits(twin)[1] > places:
            return
    pytest.fail(f"the hot route has hardly answered: {_hits(twin)} after {(hits, places)}")


def _hits(twin: Twin) -> tuple[int, int]:
    """How many orders, and how many questions, the hot route has answered."""
    hot, cold = (side.site.intake.metrics for side in twin.sides)
    assert (cold.hot_orders, cold.hot_places) == (0, 0)
    return hot.hot_orders, hot.hot_places


def _hear(twin: Twin, chosen: settings) -> None:
    @chosen
    @given(talks())
    def hear(talk: Talk) -> None:
        twin.hear(talk)

    hear()


@pytest.mark.soak
@pytest.mark.timeout(SOAK_SECONDS + 120)
def test_whatever_is_sent_for_minutes(twin: Twin) -> None:
    """Rounds of ever new examples until the time is over."""
    began, rounds = monotonic(), 0
    while monotonic() - began < SOAK_SECONDS:
        _hear(twin, settings(SAME, max_examples=ROUND, database=None))
        rounds += 1
        print(f"{rounds * ROUND} examples after {monotonic() - began:.0f} s, no difference")


def _timeless(answer: Answer) -> tuple[Any, ...]:
    headers = answer.headers.items() - {("Date", answer.headers["Date"])}
    return answer.line, headers, _TIMES.sub(rb"\1\2", answer.body.encode())


@pytest.mark.slow
@pytest.mark.parametrize("wait", [False, True], ids=["at once", "when all is answered"])
def test_cut_at_every_byte(twin: Twin, wait: bool) -> None:
    """Two orders and a question between them on one connection, cut in two at each byte in turn."""

    async def talk(side: Side) -> list[Any]:
        await side.meet(token("ann"), token("bob"))
        client, said = await side.connect(), []
        length = len(conversation(0))
        for at in range(length):
            raw = conversation(at)
            pieces = [piece for piece in (raw[:at], raw[at:]) if piece]
            await side.send(client, pieces, [wait] * len(pieces))
            answers = [await client.answer() for _ in range(3)]
            assert [answer.http for answer in answers] == [201, 200, 201], at
            said.append([_timeless(answer) for answer in answers])
        client.writer.close()
        return said

    def conversation(at: int) -> bytes:
        first = order(twin.own["SALE"], key=f"{wait:d}a{at:04d}")
        second = order(twin.own["SALE"], key=f"{wait:d}b{at:04d}", buyer="bob")
        return (first + TIME + second).encode()

    hits, _ = _hits(twin)
    quick, slow = twin.each(talk)
    assert _hits(twin)[0] > hits
    assert quick == slow
    done, done_too = (side.news() for side in twin.sides)
    assert done == done_too
    assert len(done) == 2 * len(quick)
