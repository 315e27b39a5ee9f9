"""The same evening, with the same crowd, under rules that differ in one number."""

from __future__ import annotations

from collections.abc import Iterator

import msgspec

from seckill.admission import build_admission
from seckill.errors import InvalidInput
from seckill.rehearse.model import Crowd, Habits, Rules
from seckill.rehearse.pace import Pacer
from seckill.rehearse.result import Rehearsal, rehearse

__all__ = ["Variant", "what_if"]

_PAY_THROUGH_FACTOR = 0.8


class Variant(msgspec.Struct, frozen=True, kw_only=True):
    """What is different, by its name and its value, and what became of the evening."""

    name: str
    value: float
    result: Rehearsal


def what_if(rules: Rules, crowd: Crowd, habits: Habits, pacer: Pacer) -> Iterator[Variant]:
    """Evenings at half and double the rate and token life, and with a fifth less of the orders
    paid: those that mean something in this mode. Raises RedisUnavailable."""
    names = {"open": (), "draw": ("token_life_ms",)}
    for name in names.get(rules.mode, ("rate_per_s", "token_life_ms")):
        for factor in (0.5, 2):
            value = round(getattr(rules, name) * factor)
            if _is_allowed(name, value):
                other = msgspec.structs.replace(rules, **{name: value})
                yield _variant(name, value, other, crowd, habits, pacer)
    pay_through = round(habits.pay_through * _PAY_THROUGH_FACTOR, 4)
    less = msgspec.structs.replace(habits, pay_through=pay_through)
    yield _variant("pay_through", pay_through, rules, crowd, less, pacer)


def _variant(
    name: str, value: float, rules: Rules, crowd: Crowd, habits: Habits, pacer: Pacer
) -> Variant:
    return Variant(name=name, value=value, result=rehearse(rules, crowd, habits, pacer)[0])


def _is_allowed(name: str, value: int) -> bool:
    try:
        build_admission({"mode": "queue", name: value})
    except InvalidInput:
        return False
    return True
