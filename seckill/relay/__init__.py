"""`seckill relay`: every event of every sale to the mall's endpoint, at least once, in order.

    Redis stream ─ group "webhook" ─▶ Delivery (one a sale, while it holds the sale's lease)
                                        ├── a courier for each order with something to deliver
                                        │      └── Turns ── Post ──▶ the mall's endpoint
                                        └── Journal: lease, progress, acknowledgements, dead letters

- An event of an order is sent when every earlier one of that order was answered 2xx, and never
  while one of them is a dead letter. Orders do not wait for each other; the events of the sale
  itself are one more line beside those of the orders. This needs no lease: whoever sends an event
  has an answer for the one before, be it its own or one that was written down.
- The lease keeps a second relay from sending everything a second time. It is taken over when it
  has run out, and every write is done only while it is ours.
- What was delivered is written down in the order in which it was delivered. So after a crash an
  order's events may come again, but then from the first unrecorded one on and in order.
- Memory is bounded: see ``READ_AHEAD`` in delivery.py and ``in_flight``.
"""

from __future__ import annotations

from seckill.relay.endpoint import Endpoint
from seckill.relay.pace import Pace
from seckill.relay.relay import Relay, Tally

__all__ = ["Endpoint", "Pace", "Relay", "Tally"]
