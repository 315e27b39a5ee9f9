"""A sale's queue against its naive twin: random interleavings on a real server.

A failure prints the steps that lead to it, shrunk, and a blob that reproduces it.
"""

from __future__ import annotations

from collections.abc import Iterator
from time import monotonic

import pytest
import redis
from hypothesis import HealthCheck, Phase, seed, settings
from hypothesis.stateful import run_state_machine_as_test

from seckill import scripts
from tests.properties.mutations import Mutation, apply
from tests.properties.queue_machine import QueueMachine
from tests.properties.queue_mutations import MUTATIONS
from tests.properties.test_engine_twin import ROUND, SOAK_SECONDS

TWIN = settings(
    max_examples=50,
    stateful_step_count=40,
    deadline=None,
    print_blob=True,
    suppress_health_check=list(HealthCheck),
)
# Found, not shrunk, and every time in the same place: these runs prove the twin, not the scripts.
FIND = settings(
    TWIN,
    max_examples=1_500,
    derandomize=True,
    database=None,
    phases=[Phase.generate],
    report_multiple_bugs=False,
)
# Where a search begins that is a short one. With another Hypothesis it is longer, and no less good.
SEEDS = {
    "a buyer comes many times": 5,
    "joining again gives a second place": 1,
    "looking renews a token's life": 8,
    "no bound of overbooking": 13,
    "the line stands still": 7,
    "uses are not counted": 2,
    "whoever is called may stand in line again": 2,
}


def machine_on(client: redis.Redis) -> type[QueueMachine]:
    return type("QueueAndTwin", (QueueMachine,), {"client": client})


@pytest.mark.timeout(300)
def test_the_queue_does_what_its_twin_does(client: redis.Redis) -> None:
    run_state_machine_as_test(machine_on(client), settings=TWIN)


@pytest.mark.soak
@pytest.mark.timeout(SOAK_SECONDS + 120)
def test_the_queue_does_what_its_twin_does_for_minutes(client: redis.Redis) -> None:
    """Rounds of ever new examples, with longer lives, until the time is over."""
    began, rounds = monotonic(), 0
    soak = settings(TWIN, max_examples=ROUND, stateful_step_count=100, database=None)
    while monotonic() - began < SOAK_SECONDS:
        run_state_machine_as_test(machine_on(client), settings=soak)
        rounds += 1
        print(f"{rounds * ROUND} examples after {monotonic() - began:.0f} s, no violation")


@pytest.fixture
def mutated(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Mutation]:
    mutation: Mutation = request.param
    apply(mutation, monkeypatch)
    yield mutation
    scripts.script.cache_clear()


@pytest.mark.slow
@pytest.mark.once
@pytest.mark.parametrize("mutated", MUTATIONS, indirect=True, ids=lambda mutation: mutation.name)
def test_the_twin_notices(mutated: Mutation, client: redis.Redis) -> None:
    machine = machine_on(client)
    if mutated.name in SEEDS:
        machine = seed(SEEDS[mutated.name])(machine)
    with pytest.raises(AssertionError):
        run_state_machine_as_test(machine, settings=FIND)
