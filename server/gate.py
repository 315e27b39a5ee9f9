"""Placeholder of the lead, so that the tree can be imported: its owner replaces the whole file."""

from __future__ import annotations

from typing import Protocol

import msgspec

from .problems import Problem

__all__ = ["Entry", "Gate", "ask"]


class Entry(msgspec.Struct, frozen=True):
    """Who wants to order."""

    sale: str
    buyer: str
    key: str
    tier: str
    address: str
    proof: str


class Gate(Protocol):
    """Asked before admission."""

    async def admit(self, entry: Entry) -> Problem | None:
        """None lets the buyer in."""


async def ask(gate: Gate, entry: Entry) -> None:
    """Raises the gate's Problem."""
    problem = await gate.admit(entry)
    if problem is not None:
        raise problem
