"""A Redis for each file of these tests, and an intake for each test."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator

import pytest

from seckill.embedded import EmbeddedServer
from tests.web.intake import Intake, intake_on


@pytest.fixture(scope="module")
def redis_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedServer]:
    with EmbeddedServer(tmp_path_factory.mktemp("redis"), appendfsync="no") as server:
        yield server


@pytest.fixture
async def intake(redis_server: EmbeddedServer) -> AsyncIterator[Intake]:
    async with intake_on(redis_server.url) as intake:
        yield intake
