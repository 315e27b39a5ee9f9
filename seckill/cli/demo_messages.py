"""What the demo's processes tell each other: the load's orders, its progress and its books."""

from __future__ import annotations

import msgspec

__all__ = ["ACCEPTED", "Books", "LoadOrders", "Mischief", "Progress", "Proofs", "Receipt"]

ACCEPTED = ("created", "exists")
"""The codes with which the intake accepts an order, now or when it was asked before."""


class Proofs(msgspec.Struct, frozen=True):
    """What the demo's mall shares with its intake: the secret of the buyers' user tokens, and the
    API key of its backend. Made anew for each demo."""

    secret: str
    key: str


class LoadOrders(msgspec.Struct, frozen=True):
    """What the load process is to do. Times are Unix milliseconds, ``books`` is a file to write."""

    host: str
    port: int
    sale: str
    skus: tuple[str, ...]
    limits: tuple[int, ...]
    limit_per_order: int
    opens_ms: int
    buyers: int
    books: str
    proofs: Proofs


class Progress(msgspec.Struct, frozen=True, kw_only=True):
    """How far the load is, several times a second. ``p50_ms`` and ``p99_ms`` are of the last ones;
    ``waiting`` counts, by SKU, the buyers who keep asking; ``busy`` the orders not yet lived out;
    ``broken`` the promises that buyers saw broken.
    """

    at_s: float
    arrived: int
    requests: int
    decided: int
    accepted: int
    refused: dict[str, int]
    paid: int
    p50_ms: float
    p99_ms: float
    waiting: dict[str, int]
    busy: int
    broken: int
    arrivals_done: bool


class Receipt(msgspec.Struct):
    """One accepted order as its buyer knows it. ``created`` and ``repeated`` count the answers by
    their kind, ``states`` are those the order may end in, given all its buyer was told."""

    order: str
    buyer: str
    key: str
    items: dict[str, int]
    created: int = 0
    repeated: int = 0
    deadline_ms: int = 0
    states: tuple[str, ...] = ("expired",)
    paid: str = ""
    due_back: tuple[str, ...] = ()


class Mischief(msgspec.Struct):
    """How often buyers did what a shop must survive."""

    double_clicks: int = 0
    blind_retries: int = 0
    repeats: int = 0
    reused_keys: int = 0
    greedy: int = 0
    carts: int = 0
    early: int = 0
    paid_twice: int = 0
    paid_late: int = 0
    abandoned: int = 0
    released: int = 0


class Books(msgspec.Struct, frozen=True, kw_only=True):
    """Everything the buyers saw. ``refused`` counts answers by code; ``hung_up`` are the buyers of
    requests whose answer nobody read, so that they may have been carried out unseen; ``unanswered``
    counts wishes without any answer; ``probes`` is what a fresh buyer was told at the end, by SKU;
    ``broken`` is (rule, text)."""

    receipts: list[Receipt]
    refused: dict[str, int]
    mischief: Mischief
    broken: list[tuple[str, str]]
    hung_up: list[str]
    unanswered: int
    probes: dict[str, str]
    retried: dict[str, int]
    buyers: int
    requests: int
    decided: int
    seconds: float
    p50_ms: float
    p90_ms: float
    p99_ms: float
    max_ms: float
