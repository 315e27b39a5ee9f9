"""A sale's queue against its naive twin: random interleavings on a real server.

A failure prints the steps that lead to it, shrunk, and a blob that reproduces it.
"""

from __future__ import annotations

from collections.abc import Iterator
from time import monotonic

import pytest
import redis
from hypothesis import HealthCheck, Phase, settings
from hypothesis.stateful import run_state_machine_as_test

from seckill import scripts
from tests.properties.mutations import Mutation, apply
from tests.properties.queue_machine import QueueMachine
from tests.properties.queue_mutations import MUTATIONS
from tests.properties.test_engine_twin import ROUND, SOAK_SECONDS

TWIN = settings(
    max_examples=100,
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
@pytest.mark.parametrize("mutated", MUTATIONS, indirect=True, ids=lambda mutation: mutation.name)
def test_the_twin_notices(mutated: Mutation, client: redis.Redis) -> None:
    with pytest.raises(AssertionError):
        run_state_machine_as_test(machine_on(client), settings=FIND)
