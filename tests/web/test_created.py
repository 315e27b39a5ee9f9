"""The pieces say what the whole document says."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from seckill.calls import Calls
from seckill.order import Wish
from seckill.server import created as module
from seckill.server.created import CARTS_MAX, CREATED, created
from seckill.server.orders import told
from seckill.shard import Shard, ShardOptions
from tests.support import make_sale

# All that a buyer's id may hold, quotes and backslashes among it.
OPAQUE = [chr(code) for code in range(0x21, 0x7F) if chr(code) not in ",|"]


def shard_of(*skus: str) -> Shard:
    options = ShardOptions(timeout_ms=1_000, depth_max=1, batch_max=1, lease_ms=0)
    return Shard(make_sale(dict.fromkeys(skus, 10)), 0, Calls(timeout_ms=1_000), options)


def both(shard: Shard, buyer: str, items: dict[str, int], deadline_ms: int, path: str) -> None:
    order = "00a1b2c3d4e5f60718293a4b"
    outcome = shard.outcome(order, buyer, items, (CREATED, deadline_ms))
    assert outcome is not None
    whole = told(outcome, Wish(buyer, "key", items), (), path)
    cut = created(shard, order, buyer, items, deadline_ms, path)
    assert (cut.status, cut.code, cut.body) == (whole.status, whole.code, whole.body)
    assert dict(cut.headers) == dict(whole.headers)


SHARD = shard_of("a", "b", "tea-1")


@given(
    st.text(OPAQUE, min_size=1, max_size=64),
    st.dictionaries(st.sampled_from(["a", "b", "tea-1"]), st.integers(1, 10_000), min_size=1),
    st.integers(1, 10**14),
    st.sampled_from(["", "/v1/sales/s/orders", "/mall/v1/sales/s/orders"]),
)
def test_it_says_what_the_whole_says(
    buyer: str, items: dict[str, int], deadline_ms: int, path: str
) -> None:
    both(SHARD, buyer, items, deadline_ms, path)
    both(SHARD, buyer, items, deadline_ms, path)


def test_the_order_of_a_cart_is_kept() -> None:
    shard = shard_of("a", "b")
    for items in ({"a": 1, "b": 2}, {"b": 2, "a": 1}, {"a": 1}, {"a": 2}):
        both(shard, "ann", items, 1, "")


def test_carts_are_not_kept_without_end(monkeypatch: pytest.MonkeyPatch) -> None:
    shard, made = shard_of("a"), []
    pieces = module._pieces
    monkeypatch.setattr(module, "_pieces", lambda *asked: made.append(asked) or pieces(*asked))
    for quantity in (*range(1, CARTS_MAX + 2), CARTS_MAX + 1, 1):
        both(shard, "ann", {"a": quantity}, 1, "")
    assert len(made) == CARTS_MAX + 2
    assert len(shard.kept["created"]) == 2
