"""The end of a run: what all load processes were told, added up and compared with the intake."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from typing import Any

from .promises import LOST, NOT_ASKED, OVERSOLD, SUMS, UNPAID, WENT_BACK, Account, Span

__all__ = ["Broken", "added", "compared", "most_at_once", "oversold", "still_there"]

Broken = list[tuple[str, str]]
"""What was promised, and how it was broken."""


def added(accounts: Iterable[Account]) -> Account:
    """One account of all."""
    total = Account([], [], {}, {}, [], {})
    counts: dict[str, Counter[str]] = defaultdict(Counter)
    for account in accounts:
        total.spans += account.spans
        total.orders += account.orders
        total.examples += account.examples
        total.begun += account.begun
        total.answers += account.answers
        for name in ("confirmed", "broken", "evenings"):
            counts[name].update(getattr(account, name))
    total.confirmed, total.broken = dict(counts["confirmed"]), dict(counts["broken"])
    total.evenings = dict(counts["evenings"])
    return total


def most_at_once(spans: Iterable[Span]) -> dict[str, int]:
    """By SKU, the most units that were surely somebody's at one moment."""
    steps: dict[str, list[tuple[float, int]]] = defaultdict(list)
    for sku, units, since_ms, until_ms in spans:
        steps[sku].append((since_ms, units))
        if until_ms is not None:
            steps[sku].append((until_ms, -units))
    most = {}
    for sku, moves in steps.items():
        now = top = 0
        for _, units in sorted(moves):
            now += units
            top = max(top, now)
        most[sku] = top
    return most


def oversold(spans: Iterable[Span], totals: Mapping[str, int]) -> Broken:
    """Whether more was acknowledged at one moment than there is."""
    return [
        (OVERSOLD, f"{units} of {sku} were somebody's at one moment, of {totals.get(sku, 0)}")
        for sku, units in most_at_once(spans).items()
        if units > totals.get(sku, 0)
    ]


def totals_of(report: Mapping[str, Any]) -> dict[str, int]:
    """Units of each SKU, as the merchant's report has them."""
    return {item["sku"]: item["total"] for item in report["items"]}


def compared(report: Mapping[str, Any], confirmed: Mapping[str, int], orders: int) -> Broken:
    """What clients were told against the merchant's report. Others may have bought as well."""
    found: Broken = []
    for item in report["items"]:
        parts = item["available"] + item["held"] + item["confirmed"]
        if parts != item["total"] or min(item["available"], item["held"]) < 0:
            found.append((SUMS, f"{item['sku']}: {parts} units of {item['total']}"))
        told = confirmed.get(item["sku"], 0)
        if told > item["confirmed"]:
            found.append((SUMS, f"{item['sku']}: {told} paid, {item['confirmed']} in the report"))
    if orders > report["orders"]:
        found.append((SUMS, f"{orders} orders acknowledged, {report['orders']} in the report"))
    return found


def still_there(
    known: tuple[str, str, int], status: int, order: Mapping[str, Any] | None
) -> Broken:
    """A last look at an acknowledged order, by the mall."""
    order_id, state, version = known
    if status == 404:
        return [(LOST, f"order {order_id}, {state} when last seen")]
    if order is None:
        return []
    if order.get("id") != order_id:
        return [(NOT_ASKED, f"a look at {order_id} showed another order")]
    if order["version"] < version:
        return [(WENT_BACK, f"order {order_id}: {version}, then {order['version']}")]
    if state == "confirmed" and order["state"] not in ("confirmed", "refunded"):
        return [(UNPAID, f"order {order_id} is {order['state']}")]
    return []
