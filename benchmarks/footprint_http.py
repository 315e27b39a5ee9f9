"""The second part of benchmarks/footprint.py: an intake with many connections, the bytes that go
over them, and what the requests of a payment cost it.
"""

from __future__ import annotations

import asyncio
import resource
from collections import deque
from collections.abc import Sequence
from contextlib import ExitStack
from hashlib import sha256
from itertools import islice
from secrets import token_hex
from time import time
from typing import Final
from urllib.parse import urlsplit

import msgspec

from benchmarks.clients import orders as order_requests
from benchmarks.machine import cpu_seconds, peak_bytes
from benchmarks.plan import Plan
from benchmarks.references.launch import Process, started
from benchmarks.references.start import start_of
from benchmarks.servers import durability_of
from benchmarks.workload import Wire, open_sale
from seckill.embedded import EmbeddedServer
from seckill.order import order_id

__all__ = ["Wired", "order_all", "user_tokens"]

CONNECTIONS: Final = 4_096
FEW_CONNECTIONS: Final = 64
OPENED_TOGETHER: Final = 64
ASKING: Final = 512
PAYMENT_ROUNDS: Final = 5
PAID_A_ROUND: Final = 1_000
PAYING: Final = 64
# What a process has open besides these connections.
FILES_BESIDES: Final = 256

_Connection = tuple[asyncio.StreamReader, asyncio.StreamWriter]


class Wired(msgspec.Struct, frozen=True):
    """Bytes of an order: its request and its answer as they were on the wire, and what Redis sent;
    the most that was resident in the worker; and its CPU seconds by request of a payment, in each
    round."""

    orders: int
    connections: int
    sent: float
    received: float
    redis_out: float
    worker_bytes: int
    payment_s: list[float]


def order_all(plan: Plan, embedded: EmbeddedServer, sale: str, orders: int) -> Wired:
    """Lets as many buyers order once each, of a sale that this opens, and some of them pay."""
    connections = _connections(FEW_CONNECTIONS if plan.quick else CONNECTIONS)
    secret, key, durability = token_hex(32), f"sk_{token_hex(32)}", durability_of("always")
    backend_hash = f"sha256:{sha256(key.encode()).hexdigest()}"
    told = start_of(embedded.url, durability, secret, backend_hash=backend_hash)
    with ExitStack() as stack:
        wire = stack.enter_context(Wire(embedded))
        runner = stack.enter_context(plan.runner())
        runner.run(open_sale(embedded.url, durability, sale))
        start = msgspec.json.encode(told).decode()
        process = stack.enter_context(started("references.intake_server", start))
        at = urlsplit(process.base)
        tokens = user_tokens(secret, orders)
        path = f"/v1/sales/{sale}/orders"
        requests = list(islice(order_requests(path, at.netloc, tokens), orders))
        wire.call("CONFIG", "RESETSTAT")
        received = runner.run(_order(process, connections, requests))
        # Before INFO itself is answered.
        redis_out = _bytes_out(wire)
        peak = peak_bytes(process.pid)
        rounds = 1 if plan.quick else PAYMENT_ROUNDS
        buyers = user_tokens(secret, min(orders, rounds * PAID_A_ROUND), jti="pays")
        payments = _payments(sale, at.netloc, buyers, key)
        payment_s = runner.run(_pay(process, payments, rounds))
    assert len(received) == orders, f"{len(received)} answers to {orders} orders"
    sent, answered = (sum(map(len, requests)) / orders, sum(received) / orders)
    return Wired(orders, connections, sent, answered, redis_out / orders, peak, payment_s)


def _connections(wanted: int) -> int:
    """So many as this process, and those that it starts from now on, may have open."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = wanted + FILES_BESIDES
    if hard != resource.RLIM_INFINITY and hard < needed:
        needed = hard
    if soft != resource.RLIM_INFINITY and soft < needed:
        resource.setrlimit(resource.RLIMIT_NOFILE, (needed, hard))
    return needed - FILES_BESIDES


def user_tokens(secret: str, count: int, *, jti: str = "") -> list[str]:
    """A user token (JWT, HS256) of each of so many buyers, good for ten hours. With another ``jti``
    the same buyers have other ones."""
    import jwt

    claims = {"iat": int(time()), "exp": int(time()) + 36_000} | ({"jti": jti} if jti else {})
    return [
        jwt.encode({"sub": f"b{number:023}", **claims}, secret, algorithm="HS256")
        for number in range(count)
    ]


def _payments(sale: str, host: str, tokens: Sequence[str], key: str) -> list[tuple[bytes, bytes]]:
    """Two requests each: the first buyers of ``order_requests`` begin to pay with these tokens, and
    the backend confirms."""
    found = []
    for number, token in enumerate(tokens):
        order = order_id(sale, f"b{number:023}", f"k{number + 1}")
        path = f"/v1/sales/{sale}/orders/{order}"
        body = msgspec.json.encode({"payment": f"pay-{number}"})
        found.append(
            (
                _post(f"{path}/begin-payment", host, token, b""),
                _post(f"{path}/confirm", host, key, body),
            )
        )
    return found


def _post(path: str, host: str, bearer: str, body: bytes) -> bytes:
    kind = "Content-Type: application/json\r\n" if body else ""
    head = (
        f"POST {path} HTTP/1.1\r\nHost: {host}\r\nAuthorization: Bearer {bearer}\r\n"
        f"{kind}Content-Length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body


async def _order(process: Process, connections: int, requests: Sequence[bytes]) -> list[int]:
    """Sends these orders on so many connections in turn; the bytes of each answer."""
    idle = await _opened(process, connections)
    received = await _ask_all(idle, requests, 201)
    _close(idle)
    return received


async def _pay(
    process: Process, payments: Sequence[tuple[bytes, bytes]], rounds: int
) -> list[float]:
    """CPU seconds of the worker by request, in each round."""
    idle, found, size = await _opened(process, PAYING), [], len(payments) // rounds
    for first in range(0, rounds * size, size):
        begun, confirmed = zip(*payments[first : first + size], strict=True)
        before_s = cpu_seconds(process.pid)
        await _ask_all(idle, begun, 200)
        await _ask_all(idle, confirmed, 200)
        found.append((cpu_seconds(process.pid) - before_s) / (2 * size))
    _close(idle)
    return found


async def _opened(process: Process, connections: int) -> deque[_Connection]:
    at = urlsplit(process.base)
    idle: deque[_Connection] = deque()
    for first in range(0, connections, OPENED_TOGETHER):
        opening = range(first, min(first + OPENED_TOGETHER, connections))
        idle += await asyncio.gather(
            *(asyncio.open_connection(at.hostname, at.port) for _ in opening)
        )
    return idle


def _close(idle: deque[_Connection]) -> None:
    for _, writer in idle:
        writer.transport.abort()


async def _ask_all(idle: deque[_Connection], requests: Sequence[bytes], status: int) -> list[int]:
    """Sends these requests on connections in turn; the bytes of each answer."""
    todo = iter(requests)
    received: list[int] = []

    async def ask() -> None:
        for request in todo:
            connection = idle.popleft()
            received.append(await _ask(connection, request, status))
            idle.append(connection)

    # No more than there are connections, so that one is always idle.
    await asyncio.gather(*(ask() for _ in range(min(ASKING, len(idle)))))
    return received


async def _ask(connection: _Connection, request: bytes, status: int) -> int:
    """One request, which must be answered with this status; the bytes of its answer."""
    reader, writer = connection
    writer.write(request)
    head = await reader.readuntil(b"\r\n\r\n")
    length = int(head.lower().partition(b"\r\ncontent-length:")[2].partition(b"\r\n")[0])
    body = await reader.readexactly(length)
    assert head.startswith(b"HTTP/1.1 %d " % status), (head, body)
    return len(head) + len(body)


def _bytes_out(wire: Wire) -> int:
    """What Redis has sent since CONFIG RESETSTAT."""
    text: str = wire.call("INFO", "stats").decode()
    return int(text.partition("total_net_output_bytes:")[2].split()[0])
