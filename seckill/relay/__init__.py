"""`seckill relay`: every event of every sale to the mall's endpoint. What it has in common with
other consumers, which is nearly all, is in ``seckill.consumer``; here is the HTTP."""

from __future__ import annotations

from seckill.consumer import Pace, Tally
from seckill.relay.endpoint import Endpoint
from seckill.relay.relay import GROUP, Relay

__all__ = ["GROUP", "Endpoint", "Pace", "Relay", "Tally"]
