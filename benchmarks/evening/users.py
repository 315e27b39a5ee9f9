"""The users of locust: buyers by HTTP, and buyers by the socket."""

from __future__ import annotations

import random
from typing import Any, Final

import gevent
from locust import FastHttpUser, task

from .buyer import Buyer
from .promises import UNDOCUMENTED
from .run import Run
from .shop import Shop
from .socket_way import SocketWay
from .way import HttpWay, Way

__all__ = ["NoAnswer", "PhoneBuyer", "live"]

_LONG_S: Final = 3_600


class NoAnswer(Exception):
    """A request that got no answer, however often it was repeated."""


class PhoneBuyer(FastHttpUser):
    """One buyer for one evening, whose mini-program speaks HTTP, or uses the socket for all but the
    page (``--sockets`` says how many do). Stays, silent, when it is over: locust would put another
    one in the place of one who leaves."""

    # Two: the second click.
    concurrency = 2
    network_timeout = 30.0
    connection_timeout = 30.0

    def __init__(self, environment: Any) -> None:
        run: Run = environment.evening
        self._shop = run.shop
        self._over = False
        # Without a shop the run is about to end, and has said why.
        self.host = run.shop.options.host if run.shop else "http://127.0.0.1"
        super().__init__(environment)

    @task
    def evening(self) -> None:
        """The one task of this user."""
        shop = self._shop
        if shop is not None and not self._over:
            self._over = True
            options, name = shop.options, shop.buyer()
            proof = shop.token_of(name)
            phone = HttpWay(self.client, options.host, options.sale, proof, shop.notes)
            if random.random() < options.sockets:
                report = self.environment.events.request.fire
                with SocketWay(phone, options.host, options.sale, proof, report) as socket:
                    live(self.environment, shop, name, socket, mall(self.client, shop))
            else:
                live(self.environment, shop, name, phone, mall(self.client, shop))
            self.client.client.clientpool.close()
        gevent.sleep(_LONG_S)


def mall(session: Any, shop: Shop) -> HttpWay:
    """The way of the mall's backend."""
    options = shop.options
    return HttpWay(session, options.mall, options.sale, options.api_key, shop.notes)


def live(environment: Any, shop: Shop, name: str, way: Way, backend: Way) -> None:
    """One evening, and how it ended."""

    def gave_up(verb: str) -> None:
        # A failure like any other: nothing was promised about networks.
        environment.events.request.fire(
            request_type="GAVE UP",
            name=f"{verb}: no answer, many times",
            response_time=0,
            response_length=0,
            exception=NoAnswer(f"{verb} got no answer"),
        )

    shop.notes.begun += 1
    try:
        ended = Buyer(name, shop, way, backend, gave_up).evening()
    except KeyError as error:
        shop.notes.broke(UNDOCUMENTED, f"an answer to {name} has no {error}")
        ended = "an answer was not as documented"
    shop.notes.evenings[ended] += 1
