"""Every event of every sale to whoever wants it, at least once, in order for each order.

    Redis stream ─ a group ─▶ Delivery (one a sale, while this process holds the sale's lease)
                                ├── a courier for each order with something to hand over
                                │      └── Turns ── attempt ──▶ an async function, or an endpoint
                                └── Journal: lease, progress, acknowledgements, dead letters

``Consumer`` hands events to a function of the mall's, ``seckill.relay`` posts them to its endpoint;
``Runner`` is what both have in common.

- An event of an order is handed over when every earlier one of that order was taken, and never
  while one of them is a dead letter. Orders do not wait for each other; the events of the sale
  itself are one more line beside those of the orders. This needs no lease: whoever hands over an
  event has an answer for the one before, be it its own or one that was written down.
- The lease keeps a second process from handing over everything a second time. It is taken over
  when it has run out, and every write is done only while it is ours.
- What was taken is written down in the order in which it was taken. So after a crash an order's
  events may come again, but then from the first unrecorded one on and in order.
- Memory is bounded: see ``READ_AHEAD`` in delivery.py and ``in_flight``.
"""

from __future__ import annotations

from seckill.consumer.consumer import Consumer, Handle
from seckill.consumer.line import Answer, Tally
from seckill.consumer.pace import Pace
from seckill.consumer.runner import LEASE_MS, Runner

__all__ = ["LEASE_MS", "Answer", "Consumer", "Handle", "Pace", "Runner", "Tally"]
