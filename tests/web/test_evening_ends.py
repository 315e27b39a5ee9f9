"""Runs of the buyers' evening that are none: they must not look like a success."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from contextlib import AsyncExitStack
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr

from benchmarks.locust_run import _came, _plan
from seckill.embedded import EmbeddedServer
from seckill.engine import Engine
from seckill.server import create_app
from seckill.server.settings import ApiKey, Settings, Users
from tests.children import child
from tests.databases import free_port
from tests.support import make_item, make_sale
from tests.web.intake import serving

ROOT = Path(__file__).parents[2]
KEY = f"sk_{'k' * 40}"
SECRET = "s" * 48
# Each worker ends as soon as the run begins: before its first buyer has come, and before it has
# ever reported to the master.
DYING = """
import os, signal
from benchmarks.locustfile import *
from locust import events
from locust.runners import WorkerRunner

@events.test_start.add_listener
def die(environment, **_):
    if isinstance(environment.runner, WorkerRunner):
        os.kill(os.getpid(), signal.SIGTERM)
"""


@pytest.mark.slow
async def test_a_run_whose_load_has_died(redis_server: EmbeddedServer, tmp_path: Path) -> None:
    file, port, summary = tmp_path / "dying.py", str(free_port()), tmp_path / "summary"
    file.write_text(DYING)
    digest = f"sha256:{sha256(KEY.encode()).hexdigest()}"
    key = ApiKey(name="mall", hash=digest, scopes=("backend", "admin"))
    settings = Settings(users=Users(secrets=(SecretStr(SECRET),)), keys=(key,))
    sale = make_sale(items=(make_item("mug", total=8),))
    async with Engine(redis_server.url, durability="memory", timeout_ms=30_000) as engine:
        assert (await engine.create(sale)).ok
        assert (await engine.open(sale.id)).ok
        async with serving(create_app(engine, settings)) as base:
            environment = {
                **os.environ,
                "PYTHONPATH": str(ROOT),
                "EVENING_SALE": sale.id,
                "EVENING_SUMMARY": str(summary),
                "EVENING_USER_SECRET": SECRET,
                "EVENING_API_KEY": KEY,
            }
            command = [sys.executable, "-m", "locust", "-f", str(file), "--loglevel", "WARNING"]
            at = ("127.0.0.1", "--master-bind-port", port, "--expect-workers", "1")
            leads = ("--headless", "--only-summary", "--users", "10", "--run-time", "5s")
            ways = (
                (*leads, "--host", base, "--master", "--master-bind-host", *at),
                ("--worker", "--master-host", "127.0.0.1", "--master-port", port),
            )
            options: dict[str, Any] = {
                "cwd": ROOT,
                "env": environment,
                "stdout": asyncio.subprocess.PIPE,
                "stderr": asyncio.subprocess.STDOUT,
            }
            async with AsyncExitStack() as stack:
                lead, _ = [
                    await stack.enter_async_context(child(*command, *way, **options))
                    for way in ways
                ]
                async with asyncio.timeout(200):
                    said, _ = await lead.communicate()
    assert lead.returncode == 1, said.decode()
    assert "gave no account: nothing is known" in said.decode()
    assert json.loads(summary.read_bytes())["answers"] == 0


async def test_a_wrong_user_secret_is_named_before_the_first_buyer(
    redis_server: EmbeddedServer, tmp_path: Path
) -> None:
    digest = f"sha256:{sha256(KEY.encode()).hexdigest()}"
    key = ApiKey(name="mall", hash=digest, scopes=("backend", "admin"))
    settings = Settings(users=Users(secrets=(SecretStr(SECRET),)), keys=(key,))
    sale = make_sale(items=(make_item("mug", total=8),))
    async with Engine(redis_server.url, durability="memory", timeout_ms=30_000) as engine:
        assert (await engine.create(sale)).ok
        assert (await engine.open(sale.id)).ok
        async with (
            serving(create_app(engine, settings)) as base,
            child(
                *(sys.executable, "-m", "locust", "-f", ROOT / "benchmarks/locustfile.py"),
                *("--headless", "--only-summary", "--users", "5", "--run-time", "5s"),
                *("--host", base, "--sale", sale.id),
                cwd=ROOT,
                env={**os.environ, "EVENING_USER_SECRET": "w" * 48, "EVENING_API_KEY": KEY},
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.STDOUT,
            ) as locust,
            asyncio.timeout(120),
        ):
            said, _ = await locust.communicate()
    assert locust.returncode == 2, said.decode()
    assert "the intake refuses tokens of --user-secret / EVENING_USER_SECRET" in said.decode()
    assert "give the secret of users.secrets" in said.decode()
    assert "broken promise" not in said.decode()


@pytest.mark.parametrize(
    ("ended", "code", "sentence"),
    [
        (None, 2, "without an account"),
        ({"begun": 0, "answers": 0}, 2, "nobody had an answer"),
        ({"begun": 200, "answers": 0}, 2, "nobody had an answer"),
        ({"begun": 150, "answers": 900}, 2, "only 150 of 200 buyers came"),
        ({"begun": 179, "answers": 900}, 2, "only 179 of 200 buyers came"),
        ({"begun": 180, "answers": 900}, 0, "only 180 of 200 buyers came"),
        ({"begun": 200, "answers": 900}, 0, ""),
    ],
)
def test_a_success_of_locust_is_looked_at(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    ended: dict[str, int] | None,
    code: int,
    sentence: str,
) -> None:
    summary = tmp_path / "summary"
    if ended is not None:
        summary.write_text(json.dumps(ended))
    assert _came(_plan(["--users", "200"]), summary) == code
    said = capsys.readouterr().err
    assert (sentence in said) if sentence else not said
