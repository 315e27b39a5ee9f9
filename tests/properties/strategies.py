"""What the state machine draws from: a small world, so that things meet."""

from __future__ import annotations

from hypothesis import strategies as st
from hypothesis.stateful import precondition

STEP_MS = 60_000
HALF_MS = STEP_MS // 2
HOLD_MS = 3 * HALF_MS
PAY_MS = 5 * HALF_MS
ENDS_MS = 41 * HALF_MS
PRICES_FEN = {"a": 9_900, "b": 100, "c": 0}

SKUS = tuple(PRICES_FEN)
BUYERS = ("ann", "bob", "eve")
KEYS = tuple(f"k{i}" for i in range(10))

carts = st.dictionaries(st.sampled_from(SKUS), st.integers(1, 2), min_size=1, max_size=2)
buyers = st.sampled_from(BUYERS)
keys = st.sampled_from(KEYS)
attrs = st.sampled_from(["", "", "room=1", "a|b|"])
wishes = st.tuples(buyers, keys, carts, attrs)

Wish = tuple[str, str, dict[str, int], str]
"""An order: buyer, key, cart and attrs."""

Place = tuple[str, int]
"""Which order a rule is about: the state it should be in, and the how many-th of those."""

NOWHERE = 7


def places(*states: str) -> st.SearchStrategy[Place]:
    """Mostly orders for which the rule has something to do, sometimes any, sometimes none."""
    return st.tuples(st.sampled_from([*states, *states, ""]), st.integers(0, NOWHERE))


some_orders = precondition(lambda self: self.twin.orders)
some_expired = precondition(
    lambda self: any(order.state == "expired" for order in self.twin.orders.values())
)

# What verify can't know of a sale whose time a test has moved: its definition keeps the old window,
# and its deadlines count from the old origin.
MOOT = frozenset({"deadline", "window"})
