"""The name of the webhook's group, for whoever still asks here."""

from __future__ import annotations

from seckill.relay.relay import GROUP

__all__ = ["GROUP"]
