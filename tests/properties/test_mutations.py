"""Break the scripts on purpose, once for each promise, and see each checker fail.

A checker that has never failed proves nothing. The twin must notice every mutation; verify, and the
naive story, must notice those that leave a trace in the history or in what Redis holds at its end.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, Phase, seed, settings
from hypothesis.stateful import run_state_machine_as_test

from seckill import order as orders
from seckill import scripts
from seckill.engine import Engine
from seckill.errors import ScriptFailed
from seckill.verify import verify
from tests.conftest import MakeEngine
from tests.properties.mutations import MUTATIONS, Mutation, apply
from tests.properties.story import check_story
from tests.properties.test_engine_twin import machine_on
from tests.properties.world import World
from tests.support import make_item, make_sale, travel

# Whether a checker notices depends on the scripts and on itself, and not on whose Redis runs them.
pytestmark = [pytest.mark.slow, pytest.mark.once, pytest.mark.timeout(400)]

# Found, not shrunk, and every time in the same place: these runs prove the checkers, not the code.
FIND = settings(
    max_examples=1_500,
    stateful_step_count=40,
    deadline=None,
    derandomize=True,
    database=None,
    phases=[Phase.generate],
    suppress_health_check=list(HealthCheck),
    report_multiple_bugs=False,
)


# Where a search begins that is a short one. With another Hypothesis it is longer, and no less good.
SEEDS = {
    "a paid order is released": 1,
    "a payment is not recognised": 2,
    "late money needs no limit": 18,
    "late money needs no unit": 1,
    "no limit per buyer": 1,
    "settled too early": 1,
    "units are gone but the total stays": 1,
}


@pytest.fixture
def mutated(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Mutation]:
    mutation: Mutation = request.param
    apply(mutation, monkeypatch)
    yield mutation
    scripts.script.cache_clear()


@pytest.mark.parametrize("mutated", MUTATIONS, indirect=True, ids=lambda mutation: mutation.name)
def test_the_twin_notices(mutated: Mutation, world: World) -> None:
    machine = machine_on(world)
    if mutated.name in SEEDS:
        machine = seed(SEEDS[mutated.name])(machine)
    with pytest.raises((AssertionError, ScriptFailed)):
        run_state_machine_as_test(machine, settings=FIND)


SEEN = [mutation for mutation in MUTATIONS if mutation.seen_by_verify]


@pytest.mark.parametrize("mutated", SEEN, indirect=True, ids=lambda mutation: mutation.name)
async def test_verify_notices(mutated: Mutation, make_engine: MakeEngine) -> None:
    engine = await make_engine()
    try:
        rules = await tell_a_story(engine)
    except ScriptFailed:
        return  # a script that fails loudly needs no checker
    assert rules


async def test_the_story_is_sound_when_the_scripts_are(make_engine: MakeEngine) -> None:
    assert await tell_a_story(await make_engine()) == set()


async def tell_a_story(engine: Engine) -> set[str]:
    """A sale in which everybody tries what they may not do, and the rules found broken."""
    sale = make_sale(
        items=(
            make_item("a", total=6, limit_per_buyer=2),
            make_item("b", total=2),
            make_item("c", total=100),
        ),
        limit_per_order=4,
        limit_per_buyer=5,
        max_lapsed=2,
    )
    await engine.create(sale)
    await engine.open(sale.id)

    async def reserve(buyer: str, key: str, **items: int) -> str:
        outcome = await engine.reserve(sale.id, buyer, key, items)
        return outcome.order.id if outcome.order else orders.order_id(sale.id, buyer, key)

    async def confirm(order: str, payment: str) -> None:
        await engine.confirm(sale.id, order, payment)

    # Limits, one after the other and in one batch.
    await reserve("ann", "k1", a=2)
    await reserve("ann", "k2", a=1)
    await asyncio.gather(*(reserve("bob", f"k{i}", a=1) for i in range(3)))
    await reserve("big", "k1", c=5)
    await reserve("sue", "k1", c=3)
    await reserve("sue", "k2", c=3)
    # One order twice, alone and in one batch.
    await reserve("ann", "k1", a=2)
    await asyncio.gather(reserve("eve", "k1", c=1), reserve("eve", "k1", c=1))
    # Lapses, what they forbid, and late money for a unit that has gone to somebody else.
    late = await reserve("lou", "k1", b=2)
    await reserve("lou", "k2", c=1)
    early = await reserve("tom", "k1", a=1)
    await travel(engine, sale.id, sale.hold_ms)
    await engine._expire(sale.id, 100)
    await reserve("lou", "k3", c=1)
    taker = await reserve("max", "k1", b=2)
    await reserve("max", "k2", b=1)
    await confirm(late, "p1")
    # Late money of a buyer who has bought again.
    await engine.release(sale.id, taker)
    await confirm(late, "p2")
    await reserve("tom", "k2", a=2)
    await confirm(early, "p1")
    # Money twice; a refund with its units and one without; a release of what is paid.
    paid = await reserve("pat", "k1", c=2)
    for payment in ("p1", "p1", "p2", "p2"):
        await confirm(paid, payment)
    await engine.release(sale.id, paid)
    await engine.refund(sale.id, paid, "r1", return_units=False, return_limit=True)
    await engine.release(sale.id, paid)
    again = await reserve("pat", "k2", c=2)
    await confirm(again, "p1")
    await engine.refund(sale.id, again, "r1", return_units=True, return_limit=True)
    # A pause, and a close with units held.
    await engine.pause(sale.id, "why")
    await reserve("zoe", "k1", c=1)
    await engine.resume(sale.id)
    last = await reserve("zoe", "k2", c=1)
    await reserve("zoe", "k3", c=1)
    await engine.close(sale.id)
    await engine.release(sale.id, last)

    verdict = await verify(engine, sale.id)
    # The story moves the sale's time, of which its events know nothing.
    rules = {violation.rule for violation in verdict.violations} - {"deadline"}
    # Whatever the naive story finds, verify finds too.
    story = [event async for event in engine.history(sale.id)]
    assert rules or list(check_story(sale, story)) == []
    return rules
