"""How an answer leaves. Most are the same few headers around a small body; such a plain one, on a
connection that is kept, is written in one piece instead of being put together header by header.
That saves 15 % of the instructions of an order request. Anything else (HEAD, HTTP/1.0,
``Connection: close``, a header that somebody added, a mall's own hooks) goes aiohttp's way and says
the same.
"""

from __future__ import annotations

from functools import cache
from http import HTTPStatus
from typing import Final

from aiohttp import ClientConnectionResetError, HttpVersion11, web
from aiohttp.abc import AbstractStreamWriter
from aiohttp.helpers import rfc822_formatted_time
from aiohttp.web_request import BaseRequest
from multidict import CIMultiDict, getversion

__all__ = ["JSON", "PROBLEM", "Plain", "Reply"]

JSON: Final = "application/json"
PROBLEM: Final = "application/problem+json"


class Reply(web.Response):
    """An answer that knows its stable code."""

    code = "ok"


class Plain(Reply):
    """A whole answer, which no cache may keep."""

    def __init__(
        self,
        body: bytes,
        http: int = 200,
        code: str = "ok",
        *,
        media: str = JSON,
        location: str = "",
    ) -> None:
        super().__init__(body=body, status=http, headers=_headers(media))
        self.code = code
        if location:
            self.headers["Location"] = location
        self._parts = (http, media, location, body)
        self._untouched = _version(self)
        self._to: BaseRequest | None = None
        self._closing = False

    @property
    def keep_alive(self) -> bool | None:
        """Whether the connection is kept, as aiohttp asks."""
        return True if self._to is not None else super().keep_alive

    def force_close(self) -> None:
        """Ends the connection with this answer."""
        self._closing = True
        super().force_close()

    async def prepare(self, request: BaseRequest) -> AbstractStreamWriter | None:
        """Decides how to leave; aiohttp calls write_eof next."""
        if (
            _version(self) == self._untouched
            and request.version == HttpVersion11
            and request.keep_alive
            and not self._closing
            and request.method != "HEAD"
            and not self._cookies
            and not _hooks(request)
        ):
            self._to = request
            return request.writer
        return await super().prepare(request)

    async def write_eof(self, data: bytes = b"") -> None:
        """Sends it, or what is left of it."""
        if self._to is None:
            await super().write_eof(data)
            return
        transport = self._to.transport
        if transport is None or transport.is_closing():
            raise ClientConnectionResetError("Cannot write to closing transport")
        http, media, location, body = self._parts
        where = f"Location: {location}\r\n" if location else ""
        head = f"{_head(http, media)}{where}Content-Length: {len(body)}\r\n{_date()}"
        transport.write(head.encode() + body)
        # A client that does not read must not be answered without end.
        await self._to.writer.drain()


@cache
def _headers(media: str) -> CIMultiDict[str]:
    return CIMultiDict({"Content-Type": media, "Cache-Control": "no-store", "Server": "seckill"})


@cache
def _head(http: int, media: str) -> str:
    lines = [f"HTTP/1.1 {http} {HTTPStatus(http).phrase}"]
    lines += [f"{name}: {value}" for name, value in _headers(media).items()]
    return "\r\n".join(lines) + "\r\n"


def _date() -> str:
    """The last line, and the empty one after it."""
    return f"Date: {rfc822_formatted_time()}\r\n\r\n"


def _version(response: web.Response) -> int:
    """Changes with every change of the headers."""
    return getversion(response.headers)  # type: ignore[arg-type]


def _hooks(request: BaseRequest) -> bool:
    # One that took the short cut (see short_cut.py) belongs to no application but ours.
    if not isinstance(request, web.Request) or request._match_info is None:
        return False
    for app in request.match_info.apps:  # noqa: SIM110 - a generator costs more than the loop
        if app.on_response_prepare:
            return True
    return False
