"""The engine against its naive twin: random interleavings of every verb, on a real server.

A failure prints the steps that lead to it, shrunk, and a blob that reproduces it.
"""

from __future__ import annotations

import os
from time import monotonic

import pytest
from hypothesis import HealthCheck, settings
from hypothesis.stateful import run_state_machine_as_test

from tests.properties.machine import TwinMachine
from tests.properties.world import World

SOAK_SECONDS = int(os.environ.get("SECKILL_SOAK_SECONDS", "180"))
ROUND = 50

TWIN = settings(
    max_examples=100,
    stateful_step_count=30,
    deadline=None,
    print_blob=True,
    suppress_health_check=list(HealthCheck),
)


def machine_on(world: World) -> type[TwinMachine]:
    return type("EngineAndTwin", (TwinMachine,), {"world": world})


@pytest.mark.timeout(300)
def test_the_engine_does_what_its_twin_does(world: World) -> None:
    run_state_machine_as_test(machine_on(world), settings=TWIN)


@pytest.mark.soak
@pytest.mark.timeout(SOAK_SECONDS + 120)
def test_the_engine_does_what_its_twin_does_for_minutes(world: World) -> None:
    """Rounds of ever new examples, with longer lives, until the time is over."""
    began, rounds = monotonic(), 0
    soak = settings(TWIN, max_examples=ROUND, stateful_step_count=80, database=None)
    while monotonic() - began < SOAK_SECONDS:
        run_state_machine_as_test(machine_on(world), settings=soak)
        rounds += 1
        print(f"{rounds * ROUND} examples after {monotonic() - began:.0f} s, no violation")
