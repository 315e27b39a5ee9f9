"""How an answer leaves. Most are the same few headers around a small body; such a plain one, on a
connection that is kept, is written in one piece instead of being put together header by header.
That saves a sixth of what a request costs. Anything else (HEAD, HTTP/1.0, ``Connection: close``,
a header that somebody added, a mall's own hooks) goes aiohttp's way and says the same.
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
        headers = _headers(media).copy()
        if location:
            headers["Location"] = location
        super().__init__(body=body, status=http, headers=headers)
        self.code = code
        self._media = media
        self._location = location
        self._bytes = body
        self._untouched = _version(self)
        self._to: BaseRequest | None = None

    @property
    def keep_alive(self) -> bool | None:
        """Whether the connection is kept, as aiohttp asks."""
        return True if self._to is not None else super().keep_alive

    async def prepare(self, request: BaseRequest) -> AbstractStreamWriter | None:
        """Decides how to leave; aiohttp calls write_eof next."""
        if (
            _version(self) == self._untouched
            and request.version == HttpVersion11
            and request.keep_alive
            and super().keep_alive is not False
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
        body = self._bytes
        where = f"Location: {self._location}\r\n" if self._location else ""
        head = f"{_head(self.status, self._media)}{where}Content-Length: {len(body)}\r\n{_date()}"
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
    return isinstance(request, web.Request) and any(
        app.on_response_prepare for app in request.match_info.apps
    )
