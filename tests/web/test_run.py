"""Serving and ending: addresses, signals, and what a drain promises."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from seckill.embedded import EmbeddedServer
from seckill.engine import Engine
from seckill.errors import InvalidInput
from seckill.sale import Sale
from seckill.server import run
from tests.support import make_sale
from tests.web.intake import trusting
from tests.web.processes import (
    Process,
    connections_of,
    process_on,
    until,
    until_read,
    until_refused,
)

OUTSIDE = [
    "0.0.0.0",  # noqa: S104 - it must be refused
    "::",
    "192.168.1.1",
    "8.8.8.8",
    "::ffff:8.8.8.8",
]
NO_ADDRESSES = ["", "example.com", "*", "127.1"]


@pytest.fixture
async def sale(redis_server: EmbeddedServer) -> Sale:
    sale = make_sale({"a": 1_000_000})
    async with Engine(redis_server.url, durability="memory", sweep_ms=0) as engine:
        assert (await engine.create(sale)).ok
        assert (await engine.open(sale.id)).ok
    return sale


async def orders_of(redis_server: EmbeddedServer, sale: Sale, ids: list[str]) -> list[Any]:
    async with Engine(redis_server.url, durability="memory", sweep_ms=0) as engine:
        return [await engine.order(sale.id, order) for order in ids]


@pytest.mark.parametrize("host", OUTSIDE + NO_ADDRESSES)
def test_only_loopback_where_the_settings_prove_nothing(host: str) -> None:
    with pytest.raises(InvalidInput, match=r"not a loopback address.*unix socket"):
        run(Engine("redis://127.0.0.1:1"), host, identify=trusting)


@pytest.mark.parametrize("host", NO_ADDRESSES)
def test_only_addresses(host: str) -> None:
    with pytest.raises(InvalidInput, match="is not an address"):
        run(Engine("redis://127.0.0.1:1"), host)


@pytest.mark.parametrize("host", OUTSIDE[:2])
def test_others_may_connect_when_callers_prove_who_they_are(
    host: str, redis_server: EmbeddedServer
) -> None:
    engine = Engine(redis_server.url, durability="memory")
    try:
        run(engine, host, 0, on_ready=lambda address: os.kill(os.getpid(), signal.SIGTERM))
    except OSError as error:
        if ":" not in host:
            raise
        pytest.skip(f"no IPv6 here: {error}")


@pytest.mark.parametrize("port", [-1, 65_536, True, "80", None])
def test_ports(port: Any) -> None:
    with pytest.raises(InvalidInput, match="port"):
        run(Engine("redis://127.0.0.1:1"), "127.0.0.1", port)


@pytest.mark.parametrize("host", ["127.0.0.1", "127.9.9.9", "localhost", "::1"])
def test_serves_loopback_and_closes_the_engine(host: str, redis_server: EmbeddedServer) -> None:
    """In this process, whose signal handlers are as before afterwards."""
    handlers = [signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)]
    addresses: list[str] = []

    def ready(address: str) -> None:
        addresses.append(address)
        os.kill(os.getpid(), signal.SIGTERM)

    engine = Engine(redis_server.url, durability="memory")
    try:
        run(engine, host, 0, on_ready=ready)
    except OSError as error:
        if host == "::1":
            pytest.skip(f"no IPv6 here: {error}")
        raise
    (address,) = addresses
    assert address.startswith("http://[::1]:" if host == "::1" else "http://127.")
    assert not address.endswith(":0")
    assert [signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)] == handlers


def test_an_address_in_use(redis_server: EmbeddedServer) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(OSError, match="in use"):
            run(Engine(redis_server.url, durability="memory"), port=taken.getsockname()[1])


async def test_unix_socket(redis_server: EmbeddedServer, tmp_path: Path, sale: Sale) -> None:
    path = tmp_path / "s"
    async with process_on(redis_server.url, path=path) as intake:
        assert (await intake.get("/readyz")).http == 200
        assert (await intake.reserve(sale.id)).http == 201
        intake.signal(signal.SIGKILL)
        await intake.child.wait()
    # A crash leaves the socket behind, and the next start takes its place.
    async with process_on(redis_server.url, path=path) as intake:
        assert (await intake.reserve(sale.id)).code == "exists"
        intake.signal(signal.SIGINT)
        assert await intake.ended(60) == 0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_a_signal_under_load(
    redis_server: EmbeddedServer, sale: Sale, number: signal.Signals
) -> None:
    """Every 201 exists, and every request that was sent on an open connection has its answer; the
    last one of each says that it is, and whoever comes then is not let in."""
    created: list[str] = []
    last_words = 0

    async def buy(intake: Process, buyer: str) -> None:
        nonlocal last_words
        for key in range(100_000):
            try:
                answer = await intake.reserve(sale.id, buyer, f"{number}-{key}")
            except aiohttp.ClientConnectorError:
                return
            assert answer.http == 201, answer.body
            created.append(answer.json["order"]["id"])
            last_words += answer.headers.get("Connection") == "close"

    # It waits for those who have something to say, and not for the end of its patience.
    async with process_on(redis_server.url, drain_s=300) as intake:
        buyers = [asyncio.create_task(buy(intake, f"b{n}")) for n in range(64)]
        await until(lambda: len(created) > 300)
        intake.signal(number)
        assert await intake.ended(60) == 0
        await asyncio.gather(*buyers)
    assert last_words == len(buyers)
    found = await orders_of(redis_server, sale, created)
    assert all(order is not None for order in found)
    async with Engine(redis_server.url, durability="memory", sweep_ms=0) as engine:
        assert (await engine.snapshot(sale.id)).orders == len(created)


async def test_orders_under_way_get_their_answers(redis_server: EmbeddedServer, sale: Sale) -> None:
    """Redis hangs when the signal comes, so it comes while all of these wait."""
    async with process_on(redis_server.url) as intake:
        assert (await intake.reserve(sale.id, "first")).http == 201
        os.kill(redis_server.pid, signal.SIGSTOP)
        try:
            waiting = [asyncio.create_task(intake.reserve(sale.id, f"b{n}")) for n in range(100)]
            pid, port = intake.child.pid, int(intake.base.rpartition(":")[2])
            await until(lambda: connections_of(pid, port) == 100)
            intake.signal(signal.SIGTERM)
            await until_refused(intake.base)
            with pytest.raises(aiohttp.ClientConnectionError):
                await intake.reserve(sale.id, "too late")
            assert not any(task.done() for task in waiting)
        finally:
            os.kill(redis_server.pid, signal.SIGCONT)
        answers = await asyncio.gather(*waiting)
        assert [answer.http for answer in answers] == [201] * 100
        assert await intake.ended(60) == 0
    found = await orders_of(redis_server, sale, [answer.json["order"]["id"] for answer in answers])
    assert all(order is not None for order in found)


async def test_a_client_that_never_finishes_does_not_hold_the_end(
    redis_server: EmbeddedServer,
) -> None:
    async with process_on(redis_server.url, drain_s=0.5) as intake:
        port = int(intake.base.rpartition(":")[2])
        _, idle = await asyncio.open_connection("127.0.0.1", port)
        _, stuck = await asyncio.open_connection("127.0.0.1", port)
        stuck.write(
            b"POST /v1/sales/s/orders HTTP/1.1\r\nHost: x\r\nSeckill-Buyer: b\r\n"
            b"Idempotency-Key: k\r\nContent-Type: application/json\r\nContent-Length: 9\r\n\r\n{"
        )
        await until(lambda: connections_of(intake.child.pid, port) == 2)
        intake.signal(signal.SIGTERM)
        assert await intake.ended(60) == 0
        for writer in (idle, stuck):
            writer.close()


async def test_the_second_signal_ends_at_once(redis_server: EmbeddedServer, sale: Sale) -> None:
    async with process_on(redis_server.url) as intake:
        assert (await intake.reserve(sale.id, "first")).http == 201
        os.kill(redis_server.pid, signal.SIGSTOP)
        try:
            waiting = asyncio.create_task(intake.reserve(sale.id, "second"))
            # It goes the way of the first one, on the connection that was left.
            await until_read(intake.base)
            intake.signal(signal.SIGTERM)
            # Two signals that come at once are one.
            await until_refused(intake.base)
            assert intake.child.returncode is None
            intake.signal(signal.SIGTERM)
            assert await intake.ended(60) == -signal.SIGTERM
            with pytest.raises(aiohttp.ClientConnectionError):
                await waiting
        finally:
            os.kill(redis_server.pid, signal.SIGCONT)
