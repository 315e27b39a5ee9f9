"""Deliberate bugs in the scripts, for the checkers to find."""

from __future__ import annotations

from typing import NamedTuple

import pytest

from seckill import scripts


class Mutation(NamedTuple):
    """``old`` stands exactly once in each of ``verbs``, fragments included, and becomes ``new``."""

    name: str
    verbs: tuple[str, ...]
    old: str
    new: str
    seen_by_verify: bool = True


GIVERS = ("expire", "refund", "release")
LIMITERS = ("confirm", "reserve")
WRITERS = ("begin_payment", "confirm", "expire", "refund", "release")

MUTATIONS = (
    Mutation("no limit per order", LIMITERS, "if sale.limit_per_order > 0 and", "if false and"),
    Mutation("no limit per SKU", LIMITERS, "if limit > 0 and", "if false and"),
    Mutation("no limit per buyer", LIMITERS, "if sale.limit_per_buyer > 0 and", "if false and"),
    Mutation("no limit of lapses", ("reserve",), "if sale.max_lapsed > 0 and", "if false and"),
    Mutation("no stock check", ("reserve",), "if left < lines[i + 1] then", "if false then"),
    Mutation("no id check", ("reserve",), "known[i] or made[id]", "nil"),
    Mutation("no id check within a batch", ("reserve",), "known[i] or made[id]", "known[i]"),
    Mutation(
        "orders of a batch do not see each other",
        ("reserve",),
        "slot and purse_pairs[slot] or purses[i]",
        "purses[i]",
    ),
    Mutation(
        "a pause is ignored",
        ("reserve",),
        "or sale.state == 'paused' then return STATUS.PAUSED end",
        "or sale.state == 'paused' then return nil end",
    ),
    Mutation(
        "units are forgotten",
        GIVERS,
        "lines[i] .. ':' .. to, lines[i + 1])",
        "lines[i] .. ':' .. to, 0)",
    ),
    Mutation(
        "limits are forgotten",
        GIVERS,
        "(purse[lines[i]] or 0) - lines[i + 1]",
        "purse[lines[i]] or 0",
    ),
    Mutation("lapses are forgotten", GIVERS, "lapsed + lapses", "lapsed"),
    Mutation(
        "deadlines are ignored",
        ("expire",),
        "if deadline_ms > sale.now_ms then",
        "if false then",
        # Nor could it be: the tests travel in time, so deadlines and events have two clocks.
        seen_by_verify=False,
    ),
    Mutation(
        "late money needs no unit",
        ("confirm",),
        "if tonumber(s[1]) < lines[i + 1] then",
        "if false then",
    ),
    Mutation(
        "late money needs no limit",
        ("confirm",),
        "not limit_refusal(lines, units, purse, purse_units, sku_limits, sale)",
        "true",
    ),
    Mutation(
        "a payment is not recognised", ("confirm",), "if has_payment(order, payment) then",
        "if false then",
    ),
    Mutation("seq stands still", WRITERS, "sale.seq = sale.seq + 1", "sale.seq = sale.seq"),
    Mutation(
        "version stands still",
        WRITERS,
        "order.version = order.version + 1",
        "order.version = order.version",
    ),
    Mutation(
        "units are gone but the total stays",
        ("refund",),
        "lines[i] .. ':total', -lines[i + 1])",
        "lines[i] .. ':total', 0)",
    ),
    Mutation(
        "a paid order is released",
        ("release",),
        "if order.state ~= 'h' and order.state ~= 'p' then",
        "if false then",
    ),
    Mutation("an event is missing", ("reserve",), "if pending > 0 then", "if false then"),
    Mutation("settled too early", ("close", "release"), "or units_held() > 0 then", "then"),
)  # fmt: skip


def apply(mutation: Mutation, monkeypatch: pytest.MonkeyPatch) -> None:
    """From now on every engine that starts runs the mutated scripts."""
    original = scripts.expand

    def expand(name: str, root: object) -> str:
        text = original(name, root)  # type: ignore[arg-type]
        if name not in mutation.verbs:
            return text
        assert text.count(mutation.old) == 1, f"{name}.lua has changed: mutate it anew"
        changed = text.replace(mutation.old, mutation.new)
        assert changed != text
        return changed

    monkeypatch.setattr(scripts, "expand", expand)
    scripts.script.cache_clear()
    for verb in mutation.verbs:
        assert mutation.new in scripts.script(verb).source
