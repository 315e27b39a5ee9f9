"""The buyers' side of the counter: HTTP to the intake, and the books of what it answered.

Whatever an answer contradicts is written down as broken at once: a key with two acceptances, a
reused key that was accepted, an answer that no verb may give.
"""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from time import perf_counter, time
from typing import Final

import aiohttp
import jwt
import msgspec

from seckill.cli.demo_messages import ACCEPTED, LoadOrders, Mischief, Receipt
from seckill.status import Status

__all__ = ["Answer", "Shop"]

CONNECTIONS_MAX: Final = 240
TIMEOUT_S: Final = 15.0
TRIES_MAX: Final = 12
# Answers to reserve that a sale may well give; any other is a bug of the intake or of the demo.
_REFUSALS: Final = frozenset(
    status.name.lower() for status in Status if Status.CONFLICT <= status <= Status.INSUFFICIENT
) - {"fenced", "upgrade_needed", "stale_definition", "unknown_sale", "unknown_sku", "paused"}


class _Line(msgspec.Struct):
    sku: str
    quantity: int


class _Order(msgspec.Struct):
    id: str
    buyer: str
    state: str
    items: list[_Line]
    deadline_ms: int | None
    payments: tuple[str, ...]


class Answer(msgspec.Struct):
    """What the intake said. ``code`` is "" where no answer came at all."""

    code: str
    order: _Order | None = None


_GAVE_UP: Final = Answer("")
_answer: Final = msgspec.json.Decoder(Answer).decode
_order: Final = msgspec.json.Decoder(_Order).decode
_encode: Final = msgspec.json.Encoder().encode


class Shop:
    """One sale behind one intake. ``decided_s`` holds the seconds of every answered order request,
    in order; ``refused`` counts their refusals, ``retried`` what had to be asked again."""

    def __init__(self, session: aiohttp.ClientSession, orders: LoadOrders) -> None:
        self._session = session
        self._host, self._port = orders.host, orders.port
        self._path = f"/v1/sales/{orders.sale}/orders"
        self._url = f"http://{orders.host}:{orders.port}{self._path}"
        self.receipts: dict[tuple[str, str], Receipt] = {}
        self.refused: Counter[str] = Counter()
        self.retried: Counter[str] = Counter()
        self.mischief = Mischief()
        self.broken: list[tuple[str, str]] = []
        self.hung_up: set[str] = set()
        self.unanswered = 0
        self.decided_s: list[float] = []
        self.requests = 0
        self._proofs = orders.proofs
        self._logins: dict[str, str] = {}

    async def reserve(self, buyer: str, key: str, items: dict[str, int]) -> str:
        """Asks for units and books the answer, whose code is returned. Asks until there is one."""
        answer = await self._ask("", buyer, _body(items), key=key)
        if answer.code in ACCEPTED and answer.order is not None:
            self._book(buyer, key, items, answer.code, answer.order)
        elif answer.code in _REFUSALS:
            self.refused[answer.code] += 1
        elif answer is _GAVE_UP:
            self.unanswered += 1
        else:
            self.broken.append(("unexpected answer", f"{answer.code} to {buyer}, key {key}"))
        return answer.code

    async def repeat(self, receipt: Receipt) -> None:
        """Sends an accepted wish once more, which must find the order."""
        self.mischief.repeats += 1
        code = await self.reserve(receipt.buyer, receipt.key, receipt.items)
        if code not in ("exists", ""):
            self.broken.append(
                ("forgotten key", f"{code} to a repeat of {receipt.buyer}, key {receipt.key}")
            )

    async def reuse(self, receipt: Receipt, items: dict[str, int]) -> None:
        """Sends another wish under the key of an accepted one, which must be a conflict."""
        self.mischief.reused_keys += 1
        code = await self.reserve(receipt.buyer, receipt.key, items)
        if code not in ("conflict", ""):
            self.broken.append(
                ("reused key", f"{code} to another wish of {receipt.buyer}, key {receipt.key}")
            )

    async def abort(self, buyer: str, key: str, items: dict[str, int]) -> None:
        """Sends an order and hangs up without reading the answer."""
        body = _body(items)
        head = (
            f"POST {self._path} HTTP/1.1\r\nHost: {self._host}\r\n"
            f"Authorization: {self._proof(buyer)}\r\nIdempotency-Key: {key}\r\n"
            f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
        )
        try:
            _, writer = await asyncio.open_connection(self._host, self._port)
        except OSError:
            self.retried["connect"] += 1
            return
        self.requests += 1
        self.hung_up.add(buyer)
        writer.write(head.encode() + body)
        # Sometimes before it is read, sometimes while it is decided, sometimes after.
        await asyncio.sleep(random.choice((0, 0.001, 0.005)))
        writer.transport.abort()

    async def begin_payment(self, receipt: Receipt) -> str:
        """The buyer opens the cashier."""
        return (await self._ask(f"/{receipt.order}/begin-payment", receipt.buyer)).code

    async def release(self, receipt: Receipt) -> str:
        """The buyer gives the order up."""
        return (await self._ask(f"/{receipt.order}/release", receipt.buyer)).code

    async def confirm(self, receipt: Receipt, payment: str) -> str:
        """The payment provider tells the mall's backend that money has arrived."""
        return (
            await self._ask(f"/{receipt.order}/confirm", "", _encode({"payment": payment}))
        ).code

    async def look(self, receipt: Receipt) -> _Order | None:
        """The order as its buyer sees it, None when the intake does not know it."""
        answer = await self._ask(f"/{receipt.order}", receipt.buyer, verb="GET")
        return answer.order

    def _proof(self, buyer: str) -> str:
        if not buyer:
            return f"Bearer {self._proofs.key}"
        login = self._logins.get(buyer)
        if login is None:
            login = self._logins[buyer] = f"Bearer {_user_token(buyer, self._proofs.secret)}"
        return login

    def _book(self, buyer: str, key: str, items: dict[str, int], code: str, order: _Order) -> None:
        receipt = self.receipts.get((buyer, key))
        if receipt is None:
            receipt = Receipt(order.id, buyer, key, items, deadline_ms=order.deadline_ms or 0)
            self.receipts[buyer, key] = receipt
        if code == "created":
            receipt.created += 1
        else:
            receipt.repeated += 1
        told = {line.sku: line.quantity for line in order.items}
        if receipt.created > 1:
            self.broken.append(("accepted twice", f"order {order.id}: {buyer}, key {key}"))
        if (order.id, order.buyer, told) != (receipt.order, buyer, receipt.items):
            self.broken.append(("another order", f"{order.id} for {receipt.order} of {buyer}"))

    async def _ask(
        self,
        path: str,
        buyer: str,
        body: bytes = b"",
        *,
        verb: str = "POST",
        key: str = "",
    ) -> Answer:
        """Asks as a buyer, or as the mall's backend if there is none, until there is an answer."""
        headers = {"Authorization": self._proof(buyer)}
        if key:
            headers["Idempotency-Key"] = key
        if body:
            headers["Content-Type"] = "application/json"
        for attempt in range(TRIES_MAX):
            if attempt:
                await asyncio.sleep(random.uniform(0.2, 0.6) * min(attempt, 4))
            self.requests += 1
            began_s = perf_counter()
            try:
                async with self._session.request(
                    verb, self._url + path, data=body, headers=headers
                ) as response:
                    text = await response.read()
            except (aiohttp.ClientError, TimeoutError, OSError) as error:
                self.retried[type(error).__name__] += 1
                self.hung_up.add(buyer)
                continue
            if verb == "GET" and response.status == 200:
                return Answer("ok", _order(text))
            answer = _answer(text)
            if response.status == 503:
                self.retried[answer.code] += 1
                self.hung_up.add(buyer)
                continue
            if key:
                self.decided_s.append(perf_counter() - began_s)
            return answer
        return _GAVE_UP


def _user_token(buyer: str, secret: str) -> str:
    """What the mall gives a buyer at login, good for an hour."""
    return jwt.encode({"sub": buyer, "exp": int(time()) + 3_600}, secret)


def _body(items: dict[str, int]) -> bytes:
    return _encode(
        {"items": [{"sku": sku, "quantity": quantity} for sku, quantity in items.items()]}
    )
