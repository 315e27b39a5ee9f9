"""The public keys that the mall publishes at a URL (JWKS, RFC 7517), kept up to date.

They are fetched when the intake starts, then every minute, and at once when a token names a key
that is not among them, but then at most once in ten seconds, or forged tokens would make the
intake a flood on the mall. A fetch that fails changes nothing.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Callable
from contextlib import suppress
from time import monotonic
from typing import Annotated, Final

import aiohttp
import msgspec
from msgspec import Meta

from .problems import BUSY, Problem
from .user_keys import Jwk, Key, checked_url, from_jwk

__all__ = ["Jwks"]

_log = logging.getLogger("seckill.server")

EVERY_S: float = 60.0
PAUSE_S: float = 10.0
FETCH_S: float = 5.0
BYTES_MAX: Final = 64 * 1024
KEYS_MAX: Final = 16
# Requests that wait for one fetch. Forged tokens must not fill the intake with waiting requests.
WAITING_MAX: Final = 200


class _Set(msgspec.Struct):
    keys: Annotated[list[msgspec.Raw], Meta(max_length=KEYS_MAX)]


class Jwks:
    """The keys at a URL. ``on_withdrawal`` is called when one of them is no longer published."""

    def __init__(self, url: str, on_withdrawal: Callable[[], None]) -> None:
        """Raises InvalidInput for a URL that keys must not come from."""
        self._url = checked_url(url)
        self._on_withdrawal = on_withdrawal
        self._published: dict[Jwk, Key] = {}
        self._reached = False
        self._fetching: asyncio.Task[None] | None = None
        self._waiting = 0
        self._not_before_s = 0.0
        self._refreshing: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Fetches the keys for the first time. That they can't be had is no reason not to start:
        the mall may be restarting as well."""
        await asyncio.shield(self._fetch())
        self._refreshing = asyncio.create_task(self._refresh())

    async def aclose(self) -> None:
        """Ends whatever is under way."""
        for task in (self._refreshing, self._fetching):
            if task is not None:
                task.cancel()
                with suppress(asyncio.CancelledError):
                    await task

    def fitting(self, algorithm: str, kid: str) -> list[Key]:
        """The keys that a token with this header may have been signed with."""
        return [key for key in self._published.values() if key.fits(algorithm, kid)]

    async def look_again(self) -> None:
        """Fetches the keys, unless that was done a moment ago, because a token names one that is
        not among them. Raises Problem when too many wait for it."""
        if self._fetching is None and monotonic() < self._not_before_s:
            return
        if self._waiting >= WAITING_MAX:
            raise Problem(BUSY)
        self._waiting += 1
        try:
            # Shielded, because others wait for the same fetch.
            await asyncio.shield(self._fetch())
        finally:
            self._waiting -= 1

    @property
    def reached(self) -> bool:
        """Whether the last fetch brought keys, so that one that is not here does not exist."""
        return self._reached

    async def _refresh(self) -> None:
        while True:
            every_s = EVERY_S if self._reached else PAUSE_S
            # Many workers that were started together should not ask together.
            await asyncio.sleep(every_s * random.uniform(0.9, 1.1))
            await asyncio.shield(self._fetch())

    def _fetch(self) -> asyncio.Task[None]:
        """The fetch that is under way, or a new one. It does not raise."""
        if self._fetching is None:
            self._not_before_s = monotonic() + PAUSE_S
            self._fetching = asyncio.create_task(self._fetched())
        return self._fetching

    async def _fetched(self) -> None:
        try:
            published = _keys_in(await self._download())
        except Exception as error:  # noqa: BLE001 - whatever the mall answers, sales go on
            self._reached = False
            _log.warning("the mall's keys cannot be fetched, the old ones stay: %s", _said(error))
        else:
            self._reached = True
            withdrawn = self._published.keys() - published.keys()
            self._published = published
            if withdrawn:
                self._on_withdrawal()
        finally:
            self._fetching = None

    async def _download(self) -> bytes:
        # A compressed answer could grow without bound on its way in, a redirect lead anywhere.
        async with (
            aiohttp.ClientSession(
                timeout=aiohttp.ClientTimeout(total=FETCH_S),
                headers={"Accept": "application/json", "Accept-Encoding": "identity"},
                auto_decompress=False,
            ) as session,
            session.get(self._url, allow_redirects=False) as response,
        ):
            if response.status != 200:
                raise ValueError(f"HTTP {response.status}")
            body = b""
            async for part in response.content.iter_any():
                body += part
                if len(body) > BYTES_MAX:
                    raise ValueError(f"more than {BYTES_MAX} bytes")
            return body


def _keys_in(body: bytes) -> dict[Jwk, Key]:
    """The keys of a set. Members of no use here are left out, as RFC 7517 says; a set in which
    nothing is left is taken for a mistake. Raises ValueError."""
    keys = {}
    for member in msgspec.json.decode(body, type=_Set).keys:
        with suppress(msgspec.ValidationError):
            jwk = msgspec.json.decode(member, type=Jwk)
            if key := from_jwk(jwk):
                keys[jwk] = key
    if not keys:
        raise ValueError("no key of use is among them")
    return keys


def _said(error: Exception) -> str:
    # A timeout has no text of its own.
    return str(error) or type(error).__name__
