"""What one running intake is made of, as its handlers find it: ``request.app[INTAKE]``."""

from __future__ import annotations

from collections.abc import Callable
from ipaddress import IPv6Network
from math import ceil
from time import monotonic
from typing import TYPE_CHECKING, Final

from aiohttp import web

from seckill.engine import Engine

from .address import Addresses
from .caller import Caller, Identify
from .clock import Clock
from .gate import Gate
from .limits import Limiter
from .metrics import Metrics
from .pages import Pages
from .problems import RATE_LIMITED, Problem
from .settings import Settings

if TYPE_CHECKING:
    from .hot_route import HotRoute

__all__ = ["INTAKE", "Intake", "too_often"]


class Intake:
    """The parts of one application, made by app.py. ``in_flight`` counts requests under way."""

    def __init__(
        self,
        engine: Engine,
        settings: Settings,
        *,
        known: Callable[[str], Caller | None],
        recognized: Callable[[str], Caller | None],
        identify: Identify,
        gate: Gate | None,
        metrics: Metrics,
    ) -> None:
        limits = settings.limits
        self.engine = engine
        self.settings = settings
        self.known = known
        self.recognized = recognized
        self.identify = identify
        self.gate = gate
        self.metrics = metrics
        self.clock = Clock(engine)
        self.pages = Pages(engine)
        self.addresses = Addresses(settings.server.trusted_proxies)
        self.buyers = (
            Limiter(limits.buyer_per_s, limits.buyer_burst) if limits.buyer_per_s else None
        )
        self.clients = (
            Limiter(limits.address_per_s, limits.address_burst) if limits.address_per_s else None
        )
        self.read_timeout_s = settings.server.read_timeout_s
        self.max_in_flight = settings.server.max_in_flight
        self.in_flight = 0
        # See hot_route.py.
        self.hot_route: HotRoute | None = None

    def take_client(self, request: web.Request) -> None:
        """Raises Problem when this address asks too often."""
        if self.clients is not None:
            wait_s = self.clients.take(network_of(self.addresses.of(request)), monotonic())
            if wait_s:
                raise too_often(wait_s)


def network_of(address: str) -> str:
    """What counts as one client: an IPv4 address, or the /64 that an IPv6 client has for itself."""
    if ":" not in address:
        return address
    return str(IPv6Network((address.partition("%")[0], 64), strict=False))


def too_often(wait_s: float) -> Problem:
    """What is said to somebody who may ask again in ``wait_s`` seconds."""
    return Problem(RATE_LIMITED, retry_after_s=max(1, ceil(wait_s)))


INTAKE: Final = web.AppKey("intake", Intake)
