"""A fresh sale for each test, driven script by script."""

from __future__ import annotations

import pytest
import redis

from tests.lua.core import Core


@pytest.fixture
def core(client: redis.Redis) -> Core:
    """A sale that does not exist yet."""
    return Core(client)
