"""The mall's endpoint, and one attempt to deliver one event to it."""

from __future__ import annotations

import asyncio
import os
import time
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Final, Self
from urllib.parse import urlsplit

import msgspec

from seckill.consumer import Answer
from seckill.errors import InvalidInput, MissingExtra
from seckill.webhook import EVENT_HEADER, SIGNATURE_HEADER, sign

if TYPE_CHECKING:
    import aiohttp

__all__ = ["Endpoint", "Post"]

SECRET_BYTES_MIN: Final = 32
BODY_BYTES_MAX: Final = 65_536
BODY_S: Final = 1.0
GONE: Final = 410


class Endpoint(msgspec.Struct, frozen=True, kw_only=True):
    """Where deliveries go. ``secrets`` all sign; ``timeout_s`` is for one attempt, ``give_up_s``
    for an event, from its first failure on; ``in_flight`` bounds the attempts at once.

    Raises InvalidInput.
    """

    url: str
    secrets: tuple[bytes, ...]
    timeout_s: float = 10.0
    give_up_s: float = 86_400.0
    in_flight: int = 32

    def __post_init__(self) -> None:
        remedy = "write http://host/path or, better, https://host/path"
        if not self.url:
            raise InvalidInput("webhook.url", "is not set", remedy)
        try:
            parts = urlsplit(self.url)
            fits = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
        except ValueError:
            fits = False
        # The text may carry a password or a key, so it is not repeated.
        if not fits or not self.url.isascii() or not self.url.isprintable() or " " in self.url:
            raise InvalidInput("webhook.url", "is not an HTTP address", remedy)
        if not self.secrets:
            raise InvalidInput(
                "webhook.secrets", "is empty", "give at least one secret of 32 random bytes or more"
            )
        if any(len(secret) < SECRET_BYTES_MIN for secret in self.secrets):
            raise InvalidInput(
                "webhook.secrets",
                f"has one of fewer than {SECRET_BYTES_MIN} bytes",
                "make one with `openssl rand -hex 32`",
            )

    @property
    def name(self) -> str:
        """Scheme and host, for logs: the rest of the URL may carry a key."""
        parts = urlsplit(self.url)
        port = "" if parts.port is None else f":{parts.port}"
        return f"{parts.scheme}://{parts.hostname}{port}"


class Post:
    """Sends. Used as an async context manager.

    Every delivery has a connection of its own. On a kept one an answer that comes twice, or late,
    would be taken for the answer to the next event, and that event would be lost.
    """

    def __init__(self, endpoint: Endpoint) -> None:
        self._endpoint = endpoint
        self._session: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> Self:
        try:
            import aiohttp
        except ModuleNotFoundError:
            raise MissingExtra("server", "aiohttp") from None
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=self._endpoint.in_flight, force_close=True),
            cookie_jar=aiohttp.DummyCookieJar(),
            timeout=aiohttp.ClientTimeout(total=self._endpoint.timeout_s),
            auto_decompress=False,
            headers={
                "Accept-Encoding": "identity",
                "Content-Type": "application/json",
                "User-Agent": "seckill-relay",
            },
        )
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._session is not None:
            await self._session.close()

    async def send(self, event: str, body: bytes) -> Answer:
        """One attempt. It never raises for what the other side or the network does."""
        import aiohttp

        assert self._session is not None  # noqa: S101 - a bug of ours
        headers = {
            EVENT_HEADER: event,
            # Signed at each attempt: a receiver refuses what was signed minutes ago.
            SIGNATURE_HEADER: sign(body, self._endpoint.secrets, int(time.time())),
        }
        try:
            async with self._session.post(
                self._endpoint.url, data=body, headers=headers, allow_redirects=False
            ) as response:
                await _read_some(response)
                return _answer(response.status, response.headers.get("Retry-After", ""))
        except (aiohttp.ClientError, OSError, ValueError) as error:
            return Answer(False, _cause(error, self._endpoint.timeout_s), answered=False)


async def _read_some(response: aiohttp.ClientResponse) -> None:
    """Reads an ordinary body, so that its writer is not cut off. What it says does not matter: the
    status has decided, so neither a broken nor an endless body may."""
    import aiohttp

    try:
        async with asyncio.timeout(BODY_S):
            size = 0
            while size <= BODY_BYTES_MAX and (part := await response.content.readany()):
                size += len(part)
    except (aiohttp.ClientError, OSError, ValueError):
        pass


def _answer(status: int, retry_after: str) -> Answer:
    if 200 <= status < 300:
        return Answer(True)
    return Answer(False, f"HTTP {status}", _seconds(retry_after), status == GONE)


def _seconds(retry_after: str) -> float:
    """Retry-After in seconds, be it a number or a date; 0 when it is neither."""
    text = retry_after.strip()
    if text.isascii() and text.isdigit():
        return float(text[:9])
    try:
        return max(0.0, parsedate_to_datetime(text).timestamp() - time.time())
    except (TypeError, ValueError, OverflowError):
        return 0.0


def _cause(error: Exception, timeout_s: float) -> str:
    import aiohttp

    match error:
        case TimeoutError():
            return f"no answer within {timeout_s:g} s"
        case aiohttp.ClientConnectorDNSError():
            return "its name is not found"
        case aiohttp.ClientConnectorCertificateError() | aiohttp.ClientSSLError():
            return "its certificate or TLS is refused"
        case aiohttp.ClientConnectorError():
            reason = os.strerror(error.errno) if error.errno else "no connection"
            return f"cannot connect: {reason.lower()}"
        case aiohttp.ServerDisconnectedError():
            return "closed without an answer"
        case aiohttp.ClientResponseError():
            return "its answer is not HTTP"
        case OSError():
            return "the connection broke"
    return "its answer cannot be used"
