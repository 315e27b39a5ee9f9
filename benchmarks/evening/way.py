"""The ways to the intake: a buyer's phone, and the mall's backend."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Final, Protocol

import gevent
import msgspec
from locust.contrib.fasthttp import FastHttpSession

from .clock import Clock
from .promises import Answer, Notes, Wish

__all__ = ["HttpWay", "Way", "asking", "insist", "order_lines", "outcome"]

# A buyer who is told "not now" so often gives up.
TRIES: Final = 15
_LONG_S: Final = 3_600
_ROUTES: Final = {
    "page": ("GET", "/v1/sales/{sale}"),
    "time": ("GET", "/v1/time"),
    "join": ("POST", "/v1/sales/{sale}/tickets"),
    "place": ("GET", "/v1/sales/{sale}/tickets/me"),
    "buy": ("POST", "/v1/sales/{sale}/orders"),
    "begin": ("POST", "/v1/sales/{sale}/orders/{order}/begin-payment"),
    "release": ("POST", "/v1/sales/{sale}/orders/{order}/release"),
    "confirm": ("POST", "/v1/sales/{sale}/orders/{order}/confirm"),
    "result": ("GET", "/v1/sales/{sale}/orders/{order}"),
}
_ENCODE: Final = msgspec.json.Encoder().encode


class Way(Protocol):
    """How a buyer asks. ``etag``, ``ticket``, ``wish`` and ``payment`` go with the verbs that need
    them; ``order`` is an order's id."""

    def ask(
        self,
        verb: str,
        *,
        order: str = "",
        wish: Wish | None = None,
        ticket: str = "",
        payment: str = "",
        etag: str = "",
    ) -> Answer: ...


class HttpWay:
    """One request for each verb, with one proof."""

    def __init__(
        self, session: FastHttpSession, host: str, sale: str, proof: str, notes: Notes
    ) -> None:
        self._session = session
        self._host = host
        self._sale = sale
        # Nothing is compressed anyway, and a client that asked for it would only look.
        self._headers = {"Authorization": f"Bearer {proof}", "Accept-Encoding": "identity"}
        self.notes = notes

    def ask(
        self,
        verb: str,
        *,
        order: str = "",
        wish: Wish | None = None,
        ticket: str = "",
        payment: str = "",
        etag: str = "",
    ) -> Answer:
        """Asks once. The statistics have a line for each verb and each answer to it."""
        method, path = _ROUTES[verb]
        headers, body = dict(self._headers), ""
        if etag:
            headers["If-None-Match"] = etag
        if ticket:
            headers["Seckill-Ticket"] = ticket
        if wish is not None:
            headers["Idempotency-Key"] = wish.key
            body = _ENCODE(order_lines(wish)).decode()
        elif payment:
            body = _ENCODE({"payment": payment}).decode()
        if body:
            headers["Content-Type"] = "application/json"
        url = self._host + path.format(sale=self._sale, order=order)
        with (
            asking(self.notes) as sent_ms,
            self._session.request(
                method, url, data=body or None, headers=headers, catch_response=True
            ) as got,
        ):
            answer = _read(verb, got, sent_ms)
            got.request_meta["name"] = outcome(answer)
            # What it means is decided here; for locust every answer is one, and none as well: it
            # is asked again.
            got.success()
        self.notes.judge(answer)
        return answer


@contextmanager
def asking(notes: Notes) -> Iterator[float]:
    """Around one question; gives when it was sent. Whoever asks after the end waits for ever."""
    while notes.closed:
        gevent.sleep(_LONG_S)
    notes.in_flight += 1
    try:
        yield Clock.local_ms()
    finally:
        notes.in_flight -= 1


def order_lines(wish: Wish) -> dict[str, Any]:
    """What an order says in its body."""
    items = [{"sku": sku, "quantity": count} for sku, count in wish.items.items()]
    return {"items": items, **({"token": wish.token} if wish.token else {})}


def outcome(answer: Answer) -> str:
    """What the statistics call an answer."""
    return f"{answer.verb}: {answer.code or answer.status or 'no answer'}"


def insist(ask: Callable[[], Answer], gave_up: Callable[[str], None]) -> Answer:
    """Repeats the identical request while the answer is "not now", or missing."""
    answer = ask()
    for _ in range(TRIES):
        if not answer.later:
            return answer
        gevent.sleep((answer.retry_after_s or 1.0) * random.uniform(1.0, 1.3))
        answer = ask()
    if answer.status == 0:
        gave_up(answer.verb)
    return answer


def _read(verb: str, got: Any, sent_ms: float) -> Answer:
    got_ms = Clock.local_ms()
    status = got.status_code or 0
    headers = got.headers if status else {}
    body: Any = {}
    if status and got.content:
        try:
            body = msgspec.json.decode(got.content)
        except msgspec.DecodeError:
            body = {}
    if not isinstance(body, dict):
        body = {}
    after = headers.get("retry-after", "")
    return Answer(
        verb,
        status,
        str(body.get("code", "")),
        body,
        sent_ms,
        got_ms,
        float(after) if str(after).isdigit() else None,
        headers.get("etag", "") or "",
    )
