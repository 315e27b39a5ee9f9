"""What waits for a later round of the event loop is read in its order, once, and forgotten by
nobody. test_rounds_end.py has those who go, timers and the end.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager

import pytest

from seckill.embedded import EmbeddedServer
from seckill.order import order_id
from seckill.server.connection import LATER_BYTES_MAX, Connection
from seckill.server.rounds import ROUND, Rounds
from tests.web.hot import TIME, Client, Site, order, paused, serving, under_way, until
from tests.web.rounds import connect, held, held_units, send_in_parts

HEALTH = b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n"
WAYS = pytest.mark.parametrize("hot", [True, False], ids=["hot", "aiohttp"])


@pytest.fixture
async def site(redis_server: EmbeddedServer) -> AsyncIterator[Site]:
    async with serving(redis_server.url) as site:
        await site.known("ann")
        yield site


@contextmanager
def counted_rounds(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """How many had their turn in each round."""
    counts: list[int] = []
    usual_next, usual_turn = Rounds._next, Connection.turn

    def following(rounds: Rounds) -> None:
        counts.append(0)
        usual_next(rounds)

    def turn(connection: Connection) -> None:
        counts[-1] += 1
        usual_turn(connection)

    with monkeypatch.context() as patch:
        patch.setattr(Rounds, "_next", following)
        patch.setattr(Connection, "turn", turn)
        yield counts


# -- one loop's rounds ----------------------------------------------------------------------------


class Waiter:
    """Notes when it has its turn."""

    def __init__(self, name: int, had: list[int]) -> None:
        self.name = name
        self.had = had

    def turn(self) -> None:
        self.had.append(self.name)


async def test_rounds_are_full_and_in_order(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever comes later is never read before whoever waits, however many come."""
    monkeypatch.setattr("seckill.server.rounds.ROUND", 3)
    rounds, had, came = Rounds(), [], 0  # type: ignore[var-annotated]
    for newcomers in (2, 3, 7, 0, 1, 2, 10, 4, 0, 0, 0, 0, 0, 0, 0, 0, 3, 4, 0, 0):
        before = len(had)
        for _ in range(newcomers):
            if rounds.mine(Waiter(came, had)):
                had.append(came)
            came += 1
        await asyncio.sleep(0)
        # What was read at once and what had its turn.
        assert len(had) - before <= 6
        assert had == list(range(len(had)))
    assert len(had) == came
    assert not rounds._waiting


async def test_no_more_than_a_round_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("seckill.server.rounds.ROUND", 4)
    rounds, had = Rounds(), []  # type: ignore[var-annotated]
    at_once = [rounds.mine(Waiter(n, had)) for n in range(15)]
    assert at_once == [True] * 4 + [False] * 11
    turns = []
    while rounds._waiting:
        before = len(had)
        await asyncio.sleep(0)
        turns.append(len(had) - before)
        # The last round has room for one newcomer.
        room = rounds._left
    assert (turns, room) == ([4, 4, 3], 1)
    # After it a new round begins when somebody comes, and has room for as many as the first.
    await asyncio.sleep(0)
    for _ in range(2):
        assert [rounds.mine(Waiter(n, had)) for n in range(5)] == [True] * 4 + [False]
        await asyncio.sleep(0)
        await asyncio.sleep(0)
    assert len(had) == 13


async def test_greedy_ones_take_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("seckill.server.rounds.ROUND", 2)
    rounds, loop = Rounds(), asyncio.get_running_loop()

    class Greedy:
        turns = 0

        def turn(self) -> None:
            """Comes again at once."""
            Greedy.turns += 1
            loop.call_soon(self.come)

        def come(self) -> None:
            if Greedy.turns < 1_000 and rounds.mine(self):
                self.turn()

    class Meek:
        turns_before = 0

        def turn(self) -> None:
            Meek.turns_before = Greedy.turns

    for _ in range(10):
        Greedy().come()
    await asyncio.sleep(0)
    came_after = Greedy.turns
    assert not rounds.mine(Meek())
    await until(lambda: Meek.turns_before)
    # Nobody had two turns before it had one.
    assert Meek.turns_before - came_after <= 10


async def test_a_turn_that_fails_costs_nobody_else_his(
    site: Site, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """And its client is cut, as it would be had it been read at once."""
    clients = await connect(site, 4)
    async with held(site) as waiting:
        for number, client in enumerate(clients):
            client.send(TIME)
            await until(lambda number=number: len(waiting) == number + 1)
        broken, usual = waiting[1], Connection.parse

        def parse(connection: Connection, data: bytes) -> None:
            if connection is broken:
                raise ZeroDivisionError
            usual(connection, data)

        monkeypatch.setattr(Connection, "parse", parse)
        with counted_rounds(monkeypatch) as rounds:
            site.connections.rounds._next()
        assert rounds == [4]
    for client in (clients[0], *clients[2:]):
        assert (await client.answer()).http == 200
    with pytest.raises((asyncio.IncompleteReadError, ConnectionResetError)):
        await clients[1].answer()
    assert "a connection could not be read" in caplog.text
    await until(lambda: len(site.connections.connections) == 3)


# -- many connections -----------------------------------------------------------------------------


async def test_six_hundred_orders_in_one_moment(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    sale = await site.open_sale(601)
    clients = await connect(site, 600)
    with counted_rounds(monkeypatch) as rounds:
        for number, client in enumerate(clients):
            client.send(order(sale.id, key=f"k{number}"))
        answers = [await client.answer() for client in clients]
    assert {answer.http for answer in answers} == {201}
    for number, answer in enumerate(answers):
        assert json.loads(answer.body)["order"]["id"] == order_id(sale.id, "ann", f"k{number}")
    now = (await site.engine.snapshot(sale.id)).stock["a"]
    assert (now.held, now.available) == (601, 0)
    assert site.hits == 600
    # They did come in one moment, and did not all get a turn in it.
    assert sum(rounds) >= 600 - 2 * ROUND
    assert max(rounds) <= ROUND


@WAYS
async def test_a_probe_is_answered_among_a_crowd(
    redis_server: EmbeddedServer, monkeypatch: pytest.MonkeyPatch, *, hot: bool
) -> None:
    monkeypatch.setattr("seckill.server.rounds.ROUND", 8)
    async with serving(redis_server.url, server={"hot_route": hot}) as site:
        probe, *crowd = await connect(site, 200)
        with counted_rounds(monkeypatch) as rounds:
            async with held(site) as waiting:
                for client in crowd:
                    client.send(HEALTH)
                await until(lambda: len(waiting) == 199)
                probe.send(HEALTH)
                await until(lambda: len(waiting) == 200)
            assert (await probe.answer()).http == 200
        # It was the last of the 25th round.
        assert rounds[:25] == [8] * 25
        assert {(await client.answer()).http for client in crowd} == {200}


async def test_a_probe_is_answered_among_the_greedy(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Some have always sent more before they were answered."""
    monkeypatch.setattr("seckill.server.rounds.ROUND", 1)
    probe, *greedy = await connect(site, 12)

    async def ask_for_ever(client: Client) -> None:
        client.send(TIME * 4)
        while True:
            client.send(TIME)
            assert (await client.answer()).http == 200

    asking = [asyncio.create_task(ask_for_ever(client)) for client in greedy]
    for _ in range(20):
        assert (await probe.ask(HEALTH)).http == 200
        assert len(site.connections.rounds._waiting) <= 12
    for task in asking:
        assert not task.done()
        task.cancel()
    await asyncio.wait(asking)


# -- one connection -------------------------------------------------------------------------------


@WAYS
async def test_parts_that_wait_are_one_request(redis_server: EmbeddedServer, *, hot: bool) -> None:
    async with serving(redis_server.url, server={"hot_route": hot}) as site:
        await site.known("ann")
        sale = await site.open_sale()
        (client,) = await connect(site, 1)
        (connection,) = site.connections._open()
        raw = order(sale.id)
        async with held(site) as waiting:
            await send_in_parts(client, connection, raw[:1], raw[1:90], raw[90:-3], raw[-3:])
            assert len(waiting) == 1
            assert await held_units(site, sale.id) == 0
        assert (await client.answer()).http == 201
        assert site.hits == hot
        # What came before the round was full and what waits for the next are one as well.
        raw = order(sale.id, key="k2")
        client.send(raw[:90])
        await until(lambda: connection in site.connections.heads)
        async with held(site):
            await send_in_parts(client, connection, raw[90:-3], raw[-3:])
        assert (await client.answer()).http == 201
        assert await held_units(site, sale.id) == 2


@WAYS
async def test_requests_that_wait_keep_their_order(
    redis_server: EmbeddedServer, *, hot: bool
) -> None:
    async with serving(redis_server.url, server={"hot_route": hot}) as site:
        await site.known("ann")
        sale = await site.open_sale()
        (client,) = await connect(site, 1)
        (connection,) = site.connections._open()
        first, second, third = (order(sale.id, key=f"k{n}") for n in range(3))
        async with held(site):
            await send_in_parts(client, connection, first, TIME, second[:30], second[30:] + third)
        client.send(TIME)
        answers = [await client.answer() for _ in range(5)]
        assert [answer.http for answer in answers] == [201, 200, 201, 201, 200]
        assert [json.loads(answers[n].body)["order"]["id"] for n in (0, 2, 3)] == [
            order_id(sale.id, "ann", f"k{n}") for n in range(3)
        ]
        # And behind an order that is under way.
        async with paused(site):
            client.send(order(sale.id, key="k3"))
            await under_way(site)
            async with held(site):
                await send_in_parts(client, connection, TIME, order(sale.id, key="k4"))
        assert [(await client.answer()).http for _ in range(3)] == [201, 200, 201]


@WAYS
async def test_a_parser_with_requests_left_has_no_need_of_a_turn(
    redis_server: EmbeddedServer, *, hot: bool
) -> None:
    """aiohttp takes 32 requests, and when they are answered asks itself for the others: in a full
    round nothing else would remind it of them."""
    async with serving(redis_server.url, server={"hot_route": hot}) as site:
        await site.known("ann")
        sale = await site.open_sale()
        (client,) = await connect(site, 1)
        (connection,) = site.connections._open()
        async with paused(site):
            client.send(order(sale.id))
            await under_way(site)
            client.send(TIME * 100)
            await until(lambda: len(connection._messages) == 32)
        async with held(site) as waiting:
            assert [(await client.answer()).http for _ in range(101)] == [201] + [200] * 100
            assert not waiting


async def test_whoever_sends_more_is_read_at_once_and_waits_but_once(site: Site) -> None:
    (client,) = await connect(site, 1)
    (connection,) = site.connections._open()
    fit = LATER_BYTES_MAX // len(TIME)
    async with held(site) as waiting:
        connection.data_received(TIME * (fit + 1))
        assert [(await client.answer()).http for _ in range(fit + 1)] == [200] * (fit + 1)
        assert not waiting
        for _ in range(3):
            await send_in_parts(client, connection, TIME * (fit - 1), TIME)
            client.send(TIME * 2)
            assert [(await client.answer()).http for _ in range(fit + 2)] == [200] * (fit + 2)
            assert len(waiting) == 1
        await send_in_parts(client, connection, TIME, HEALTH)
        assert len(waiting) == 1
    assert '"now_ms"' in (await client.answer()).body
    assert '"status"' in (await client.answer()).body


@pytest.mark.parametrize("hot", [True, False])
async def test_pipelined_ones_after_a_cut_one(redis_server: EmbeddedServer, *, hot: bool) -> None:
    """aiohttp's parser then stops one request earlier than its queue is full."""
    async with serving(redis_server.url, server={"hot_route": hot}) as site:
        await site.known("ann")
        sale = await site.open_sale(1_000)
        client = await site.connect()
        head, _, body = order(sale.id, key="cut").partition("\r\n\r\n")
        client.send(f"{head}\r\n\r\n")
        await under_way(site)
        client.send(body)
        assert (await client.answer()).http == 201
        client.send("".join(order(sale.id, key=f"k{number}") for number in range(70)))
        async with asyncio.timeout(60):
            for _ in range(70):
                assert (await client.answer()).http == 201
