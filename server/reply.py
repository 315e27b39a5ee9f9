"""How an answer leaves. Most are the same few headers around a small body; such a plain one, on a
connection that is kept, is written in one piece instead of being put together header by header,
and no part of it that belongs to aiohttp is ever made. Anything else (HEAD, HTTP/1.0,
``Connection: close``, a header that somebody added, a mall's own hooks) goes aiohttp's way and says
the same.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from http import HTTPStatus
from typing import Any, Final

from aiohttp import ClientConnectionResetError, HttpVersion11, web
from aiohttp.abc import AbstractStreamWriter
from aiohttp.compression_utils import MAX_SYNC_CHUNK_SIZE
from aiohttp.helpers import rfc822_formatted_time
from aiohttp.web_request import BaseRequest
from multidict import CIMultiDict

__all__ = ["JSON", "PROBLEM", "Plain", "Reply"]

JSON: Final = "application/json"
PROBLEM: Final = "application/problem+json"

_PHRASES: Final = {status.value: status.phrase for status in HTTPStatus}


class Reply(web.Response):
    """An answer that knows its stable code. ``is_bare`` says that it has no header of its own but
    those that are known of it, as a plain one can tell without making them."""

    code = "ok"
    is_bare = False


class Plain(Reply):
    """A whole answer, which no cache may keep.

    web.Response.__init__ is never run: what it makes is made when somebody asks for it.
    tests/web/test_reply.py fails when that becomes more than is here.
    """

    # aiohttp asks every response for this.
    __http_exception__ = False

    _zlib_executor_size = MAX_SYNC_CHUNK_SIZE
    _zlib_executor = None

    def __init__(
        self,
        body: bytes,
        http: int = 200,
        code: str = "ok",
        *,
        media: str = JSON,
        location: str = "",
        retry_after_s: int = 0,
    ) -> None:
        self.code = code
        self._status = http
        self._reason = _PHRASES[http]
        self._body = body
        self._media = media
        self._location = location
        self._retry_after_s = retry_after_s
        self._made: CIMultiDict[str] | None = None
        self._to: BaseRequest | None = None

    @property
    def is_bare(self) -> bool:  # type: ignore[override]
        """Whether nobody has asked for its headers."""
        return self._made is None

    @property
    def _headers(self) -> CIMultiDict[str]:  # type: ignore[override]
        if self._made is None:
            self._made = CIMultiDict(_headers(self._media))
            if self._location:
                self._made["Location"] = self._location
            if self._retry_after_s:
                self._made["Retry-After"] = str(self._retry_after_s)
        return self._made

    @property
    def _state(self) -> dict[Any, Any]:  # type: ignore[override]
        return vars(self).setdefault("_kept", {})  # type: ignore[no-any-return]

    @property
    def keep_alive(self) -> bool | None:
        """Whether the connection is kept, as aiohttp asks."""
        return True if self._to is not None else super().keep_alive

    async def prepare(self, request: BaseRequest) -> AbstractStreamWriter | None:
        """Decides how to leave; aiohttp calls write_eof next."""
        if (
            # Whatever somebody does to an aiohttp response leaves something in it.
            len(vars(self)) == _ATTRIBUTES
            and self._made is None
            and request.version == HttpVersion11
            and request.keep_alive
            and request.method != "HEAD"
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
        transport.write(self.wire())
        # A client that does not read must not be answered without end.
        await self._to.writer.drain()

    def wire(self, *, closing: bool = False) -> bytes:
        """All of it as HTTP/1.1 has it; ``closing`` says that it ends its connection."""
        body: bytes = self._body  # type: ignore[assignment]  # For nobody has touched it.
        if self._made is not None:
            head = _lines(self._status, self._reason, self._made)
        else:
            head = _head(self._status, self._reason, self._media)
            if self._location:
                head += f"Location: {self._location}\r\n"
            if self._retry_after_s:
                head += f"Retry-After: {self._retry_after_s}\r\n"
        if closing:
            head += "Connection: close\r\n"
        now = rfc822_formatted_time()
        return f"{head}Content-Length: {len(body)}\r\nDate: {now}\r\n\r\n".encode() + body


@cache
def _headers(media: str) -> dict[str, str]:
    return {"Content-Type": media, "Cache-Control": "no-store", "Server": "seckill"}


@cache
def _head(http: int, reason: str | None, media: str) -> str:
    return _lines(http, reason, _headers(media))


def _lines(http: int, reason: str | None, headers: Mapping[str, str]) -> str:
    lines = [f"HTTP/1.1 {http} {reason or ''}"]
    lines += [f"{name}: {value}" for name, value in headers.items()]
    return "\r\n".join(lines) + "\r\n"


_ATTRIBUTES: Final = len(vars(Plain(b"")))


def _hooks(request: BaseRequest) -> bool:
    if not isinstance(request, web.Request):
        return False
    for app in request.match_info.apps:  # noqa: SIM110 - a generator costs more than the loop
        if app.on_response_prepare:
            return True
    return False
