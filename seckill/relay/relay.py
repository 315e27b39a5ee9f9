"""The relay: the consumer group ``webhook``, whose events are posted to the mall's endpoint."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from seckill.consumer import LEASE_MS, Answer, Pace, Runner, Tally
from seckill.engine import Engine
from seckill.relay.endpoint import Endpoint, Post
from seckill.sale import Sale
from seckill.stream import Event
from seckill.webhook import event_body, event_id

__all__ = ["GROUP", "Relay"]

GROUP: Final = "webhook"
_DAMAGED: Final = Answer(False, "it is damaged, or of a newer version", gone=True)


class Relay(Runner):
    """Delivers the events of all sales, or of ``sales``, to one endpoint. See ``Runner``."""

    def __init__(
        self,
        engine: Engine,
        endpoint: Endpoint,
        *,
        sales: Sequence[str] = (),
        once: bool = False,
        after_trim: bool = False,
        pace: Pace | None = None,
        lease_ms: int = LEASE_MS,
    ) -> None:
        self._post = Post(endpoint)
        super().__init__(
            engine,
            GROUP,
            self._attempt,
            sales=sales,
            once=once,
            in_flight=endpoint.in_flight,
            give_up_s=endpoint.give_up_s,
            after_trim=after_trim,
            pace=pace,
            lease_ms=lease_ms,
        )

    async def run(self) -> Tally:
        """Delivers; raises what ``Runner.run`` raises, and MissingExtra."""
        async with self._post:
            return await super().run()

    async def _attempt(self, sale: Sale, event: Event) -> Answer:
        try:
            body = event_body(sale, event)
        except (LookupError, ValueError):
            return _DAMAGED
        return await self._post.send(event_id(event), body)
