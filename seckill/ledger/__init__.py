"""The ledger: every accepted order in the mall's SQL database. Needs the extra ``ledger``."""

from __future__ import annotations

from seckill.ledger.ledger import Ledger

__all__ = ["Ledger"]
