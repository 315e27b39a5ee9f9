"""Redis dies and comes back: the intake says so, and goes on by itself."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from seckill.embedded import EmbeddedServer
from tests.databases import free_port
from tests.web.intake import intake_on


@pytest.fixture
def server(tmp_path: Path) -> Iterator[EmbeddedServer]:
    """On a TCP port, because a restarted server has its unix socket somewhere else."""
    port = free_port()
    config = {"port": str(port), "bind": "127.0.0.1"}
    with EmbeddedServer(tmp_path, appendfsync="always", config=config) as server:
        server.url = f"redis://127.0.0.1:{port}"
        yield server


async def test_redis_killed_and_restarted(server: EmbeddedServer) -> None:
    async with intake_on(server.url, timeout_ms=2_000) as intake:
        sale = await intake.open_sale()
        order = (await intake.reserve(sale.id)).json["order"]["id"]
        path = f"/v1/sales/{sale.id}/orders/{order}"
        server.kill()
        async with asyncio.timeout(40):
            away = await asyncio.gather(
                intake.get("/readyz"),
                intake.get("/v1/sales"),
                intake.get(f"/v1/sales/{sale.id}"),
                intake.get("/v1/time"),
                intake.get(path),
                intake.post(f"{path}/begin-payment", buyer="b1"),
                intake.post(f"{path}/confirm", {"payment": "wx-1"}),
                intake.reserve(sale.id, "b2"),
            )
        for answer in away:
            assert answer.http == 503, answer.body
            assert answer.code in ("unavailable", "outcome_unknown")
            assert answer.is_problem(503, answer.code)
        assert (await intake.get("/healthz")).http == 200

        server.start()
        async with asyncio.timeout(30):
            while (await intake.get("/readyz")).http != 200:  # noqa: ASYNC110
                await asyncio.sleep(0.05)
        assert (await intake.reserve(sale.id)).code == "exists"
        assert (await intake.reserve(sale.id, "b2")).http in (200, 201)
        assert (await intake.post(f"{path}/confirm", {"payment": "wx-1"})).code == "done"


async def test_redis_that_hangs(server: EmbeddedServer) -> None:
    """A stopped process keeps its sockets, so nothing fails by itself."""
    async with intake_on(server.url, timeout_ms=1_000) as intake:
        sale = await intake.open_sale()
        assert (await intake.reserve(sale.id, "b0")).http == 201
        os.kill(server.pid, signal.SIGSTOP)
        try:
            async with asyncio.timeout(40):
                assert (await intake.get("/readyz")).http == 503
                assert (await intake.reserve(sale.id)).is_problem(503, "outcome_unknown")
        finally:
            os.kill(server.pid, signal.SIGCONT)
        # How soon a process that was stopped is itself again is up to the machine.
        async with asyncio.timeout(30):
            while (answer := await intake.reserve(sale.id)).http == 503:  # noqa: ASYNC110
                await asyncio.sleep(0.05)
        assert answer.http in (200, 201)
        assert (await intake.engine.snapshot(sale.id)).orders == 2


async def test_overload_is_said_at_once(server: EmbeddedServer) -> None:
    async with intake_on(server.url, timeout_ms=60_000, lane_depth=5) as intake:
        sale = await intake.open_sale({"a": 1_000})
        assert (await intake.reserve(sale.id, "b0")).http == 201
        os.kill(server.pid, signal.SIGSTOP)
        try:
            tasks = [
                asyncio.create_task(intake.reserve(sale.id, f"b{n}")) for n in range(1, 1_000, 10)
            ]
            # Those who are let in wait for Redis; nobody else waits for anything.
            async with asyncio.timeout(40):
                while len(done := [task for task in tasks if task.done()]) <= 50:  # noqa: ASYNC110
                    await asyncio.sleep(0.02)
            assert all(task.result().is_problem(503, "overloaded") for task in done)
        finally:
            os.kill(server.pid, signal.SIGCONT)
        answers = await asyncio.gather(*tasks)
        held = [answer for answer in answers if answer.http == 201]
        refused = [answer for answer in answers if answer.http == 503]
        assert len(held) + len(refused) == len(answers)
        assert all(answer.is_problem(503, "overloaded") for answer in refused)
        assert (await intake.engine.snapshot(sale.id)).orders == len(held) + 1
