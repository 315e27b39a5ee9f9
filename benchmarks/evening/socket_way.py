"""A buyer's way by the socket: one connection, opened before the rush; every verb a short message,
and any number of them under way at once."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from itertools import count
from typing import Any, Final, Self
from urllib.parse import urlsplit, urlunsplit

import gevent
import msgspec
import websocket
from gevent.event import AsyncResult
from gevent.lock import BoundedSemaphore

from .clock import Clock
from .promises import Answer, Wish
from .way import HttpWay, asking, order_lines, outcome

__all__ = ["SocketWay"]

_ANSWER_S: Final = 30.0
_OPS: Final = {
    "time": "time",
    "join": "join",
    "place": "place",
    "buy": "buy",
    "begin": "begin-payment",
    "release": "release",
    "result": "result",
}
_ENCODE: Final = msgspec.json.Encoder().encode
_GONE: Final = (OSError, websocket.WebSocketException)


class SocketWay:
    """``pages`` is the way to what no socket tells; ``report`` is locust's request event."""

    def __init__(
        self, pages: HttpWay, host: str, sale: str, proof: str, report: Callable[..., None]
    ) -> None:
        scheme, place, path, _, _ = urlsplit(host)
        scheme = {"http": "ws", "https": "wss"}[scheme]
        self._url = urlunsplit((scheme, place, f"{path}/v1/sales/{sale}/socket", "", ""))
        self._proof = proof
        self._pages = pages
        self._notes = pages.notes
        self._report = report
        self._ids = count(1)
        self._socket: websocket.WebSocket | None = None
        self._listening: gevent.Greenlet | None = None
        self._waiting: dict[int, AsyncResult] = {}
        self._opening = BoundedSemaphore()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._listening is not None:
            self._listening.kill()
        if self._socket is not None:
            with suppress(*_GONE):
                self._socket.close(timeout=1)

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
        """Asks once; a lost socket is opened anew. The statistics have a line for each answer."""
        if verb not in _OPS:
            return self._pages.ask(verb, etag=etag)
        message: dict[str, Any] = {"op": _OPS[verb]}
        if order:
            message["order"] = order
        if ticket:
            message["ticket"] = ticket
        if wish is not None:
            message |= {"key": wish.key, **order_lines(wish)}
        with asking(self._notes) as sent_ms:
            told = self._told(message)
            answer = _read(verb, told, sent_ms)
        self._report(
            request_type="WS",
            name=outcome(answer),
            response_time=answer.got_ms - sent_ms,
            response_length=0,
            exception=None,
        )
        self._notes.judge(answer)
        return answer

    def _told(self, message: dict[str, Any]) -> dict[str, Any] | None:
        """The answer to a message, None if there is none."""
        name = next(self._ids)
        waiting = self._waiting[name] = AsyncResult()
        try:
            with self._opening:
                socket = self._open()
            socket.send(_ENCODE({"id": name, **message}).decode())
            found: dict[str, Any] | None = waiting.get(timeout=_ANSWER_S)
        except websocket.WebSocketBadStatusException as refused:
            return _refused(refused)
        except (*_GONE, gevent.Timeout):
            return None
        else:
            return found
        finally:
            del self._waiting[name]

    def _open(self) -> websocket.WebSocket:
        if self._socket is None:
            socket = websocket.WebSocket()
            socket.connect(
                self._url,
                header=[f"Authorization: Bearer {self._proof}"],
                timeout=_ANSWER_S,
                suppress_origin=True,
            )
            # Whoever waits for a turn may hear nothing for long; pings are answered in `recv`.
            socket.settimeout(None)
            self._socket = socket
            self._listening = gevent.spawn(self._listen, socket)
        return self._socket

    def _listen(self, socket: websocket.WebSocket) -> None:
        with suppress(*_GONE, msgspec.MsgspecError):
            while text := socket.recv():
                told = msgspec.json.decode(text, type=dict)
                waiting = self._waiting.get(told.get("id", 0))
                if waiting is not None:
                    waiting.set(told)
        # Whatever was asked is asked again, on another socket.
        self._socket = None
        for waiting in list(self._waiting.values()):
            waiting.set(None)


def _refused(refused: websocket.WebSocketBadStatusException) -> dict[str, Any]:
    """A handshake that was answered by plain HTTP, as an answer on the socket would be."""
    body: Any = {}
    with suppress(msgspec.MsgspecError):
        body = msgspec.json.decode(refused.resp_body or b"{}")
    after = str((refused.resp_headers or {}).get("retry-after", ""))
    return {
        "status": refused.status_code,
        "body": body,
        "retry_after_s": int(after) if after.isdigit() else None,
    }


def _read(verb: str, told: dict[str, Any] | None, sent_ms: float) -> Answer:
    got_ms = Clock.local_ms()
    if told is None:
        return Answer(verb, 0, "", {}, sent_ms, got_ms)
    body = told.get("body")
    if not isinstance(body, dict):
        body = {}
    after_s = told.get("retry_after_s")
    code = str(body.get("code", ""))
    return Answer(verb, int(told["status"]), code, body, sent_ms, got_ms, after_s)
