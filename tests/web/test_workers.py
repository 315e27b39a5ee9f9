"""``seckill serve`` with several workers, under load: what a crash, an end and new settings do.

What is promised to a client that keeps its connections:

- an order that was answered 201 exists, and a key has one accepted outcome, whatever happens;
- SIGHUP fails no request; SIGTERM none on a connection that is open: the last answer on each says
  ``Connection: close``, and nobody new is let in;
- a SIGKILL of a worker cuts the connections of that worker only.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import textwrap
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from hashlib import sha256
from pathlib import Path

import aiohttp
import pytest

from seckill.embedded import EmbeddedServer
from seckill.engine import Engine
from seckill.sale import Sale
from seckill.verify import verify
from tests.children import child
from tests.support import make_sale
from tests.web.processes import (
    ROOT,
    Serve,
    connections_of,
    is_alive,
    serve,
    until,
    until_read,
    until_refused,
    workers_of,
)

BUYERS = 48


@pytest.fixture
async def sale(redis_server: EmbeddedServer) -> Sale:
    return await open_sale(redis_server.url)


async def open_sale(url: str) -> Sale:
    sale = make_sale({"a": 1_000_000})
    async with Engine(url, durability="memory", sweep_ms=0) as engine:
        assert (await engine.create(sale)).ok
        assert (await engine.open(sale.id)).ok
    return sale


class Load:
    """Buyers who order one thing after another and ask again, blindly, whatever was left open."""

    def __init__(self, intake: Serve, sale: Sale) -> None:
        self.intake = intake
        self.sale = sale
        # Buyer and key to order id, and the errors that their connections met.
        self.accepted: dict[tuple[str, str], str] = {}
        self.errors: Counter[str] = Counter()
        self.answers = 0
        self.stopping = False
        self._buyers = [asyncio.create_task(self._shop(f"b{n}")) for n in range(BUYERS)]

    async def _shop(self, buyer: str) -> None:
        number = 0
        while not self.stopping:
            number += 1
            if not await self._order(buyer, f"k{number}"):
                return

    async def _order(self, buyer: str, key: str) -> bool:
        while True:
            try:
                answer = await self.intake.reserve(self.sale.id, buyer, key)
            except aiohttp.ClientConnectorError:
                return False  # Nobody listens any more.
            except aiohttp.ClientError as error:
                self.errors[type(error).__name__] += 1
                continue
            self.answers += 1
            assert answer.http in (200, 201), answer.body
            order = answer.json["order"]["id"]
            assert self.accepted.setdefault((buyer, key), order) == order
            return True

    async def wait_for(self, answers: int) -> None:
        """Until there are so many more answers."""
        goal = self.answers + answers
        await until(lambda: self.answers >= goal)

    async def finish(self) -> None:
        self.stopping = True
        async with asyncio.timeout(60):
            await asyncio.gather(*self._buyers)

    async def check(self, url: str) -> None:
        """What was accepted is there, and nothing else is."""
        async with Engine(url, durability="memory", sweep_ms=0) as engine:
            assert (await engine.snapshot(self.sale.id)).orders == len(self.accepted)
            for (buyer, key), order in list(self.accepted.items())[::20]:
                outcome = await engine.reserve(self.sale.id, buyer, key, {"a": 1})
                assert outcome.order is not None
                assert (outcome.status.name, outcome.order.id) == ("EXISTS", order)
            verdict = await verify(engine, self.sale.id)
        assert verdict.violations == ()


@asynccontextmanager
async def two_workers(redis_server: EmbeddedServer, *more: str) -> AsyncIterator[Serve]:
    options = ("--redis", redis_server.url, "--durability", "memory", "--workers", "2")
    async with serve(*options, *(more or ("--dev",))) as intake:
        assert "2 workers" in intake.said
        yield intake


async def until_workers(parent: int, but: set[int]) -> set[int]:
    """The two workers, once none of these is among them."""
    await until(lambda: len(now := workers_of(parent)) == 2 and not now & but)
    return workers_of(parent)


def pid_of_server(data: Path) -> int:
    return int((data / "server.lock").read_text().split()[1])


def lead(entrance: Path, url: str) -> None:
    entrance.unlink(missing_ok=True)
    entrance.symlink_to(url.removeprefix("unix://"))


async def stderr_of(intake: Serve) -> str:
    async with asyncio.timeout(60):
        _, stderr = await intake.child.communicate()
    return stderr.decode()


async def until_said(intake: Serve, words: str) -> str:
    """What is said on stderr from now on, up to the line with these words."""
    assert intake.child.stderr is not None
    said = ""
    async with asyncio.timeout(60):
        while words not in said:
            line = (await intake.child.stderr.readline()).decode()
            assert line, said
            said += line
    return said


async def test_a_worker_is_killed_under_load(redis_server: EmbeddedServer, sale: Sale) -> None:
    async with two_workers(redis_server) as intake:
        parent = intake.child.pid
        load = Load(intake, sale)
        await load.wait_for(500)
        port = int(intake.base.rpartition(":")[2])
        survivor, victim = sorted(workers_of(parent), key=lambda pid: connections_of(pid, port))
        cut = connections_of(victim, port)
        os.kill(victim, signal.SIGKILL)
        await load.wait_for(500)
        now = await until_workers(parent, {victim})
        await load.wait_for(200)
        await load.finish()
        assert survivor in now
        # The victim's connections, once each, and no other's.
        assert 0 < sum(load.errors.values()) <= cut
        await load.check(redis_server.url)
        intake.signal(signal.SIGTERM)
        assert f"Worker (pid:{victim}) was sent SIGKILL" in await stderr_of(intake)
        assert intake.child.returncode == 0


async def test_sigterm_under_load(redis_server: EmbeddedServer, sale: Sale) -> None:
    async with two_workers(redis_server) as intake:
        load = Load(intake, sale)
        await load.wait_for(500)
        intake.signal(signal.SIGTERM)
        assert await intake.ended(60) == 0
        await load.finish()
        assert load.errors == {}
        await load.check(redis_server.url)


CONFIG = """
[server]
workers = 2
[redis]
url = "{url}"
durability = "memory"
[[keys]]
name = "backend"
hash = "sha256:{digest}"
scopes = ["backend"]
"""


def write_config(path: Path, url: str, *keys: str) -> None:
    digests = [sha256(key.encode()).hexdigest() for key in keys]
    first, *others = digests
    text = CONFIG.format(url=url, digest=first)
    for number, digest in enumerate(others):
        text += f'[[keys]]\nname = "k{number}"\nhash = "sha256:{digest}"\nscopes = ["backend"]\n'
    path.write_text(text)


async def asked_with(intake: Serve, key: str, sale: Sale) -> int:
    headers = {"Authorization": f"Bearer {key}", "Connection": "close"}
    return (
        await intake.call("GET", f"/v1/sales/{sale.id}/orders/{'0' * 24}", headers=headers)
    ).http


async def test_a_key_is_replaced_under_load(
    redis_server: EmbeddedServer, sale: Sale, tmp_path: Path
) -> None:
    """The new one is added, then the old one taken away, and no request fails."""
    config, old, new = tmp_path / "seckill.toml", "sk_" + "o" * 40, "sk_" + "n" * 40
    write_config(config, redis_server.url, old)
    async with serve("--config", str(config), key=old) as intake:
        parent = intake.child.pid
        first = workers_of(parent)
        load = Load(intake, sale)
        await load.wait_for(500)
        assert await asked_with(intake, new, sale) == 401
        write_config(config, redis_server.url, old, new)
        intake.signal(signal.SIGHUP)
        second = await until_workers(parent, first)
        await load.wait_for(500)
        assert await asked_with(intake, new, sale) == 404
        await load.finish()
        assert load.errors == {}
        # Not under load: whoever still used the old one would now be refused.
        write_config(config, redis_server.url, new)
        intake.signal(signal.SIGHUP)
        await until_workers(parent, second)
        assert await asked_with(intake, old, sale) == 401
        assert await asked_with(intake, new, sale) == 404
        await load.check(redis_server.url)
        intake.signal(signal.SIGTERM)
        assert (await stderr_of(intake)).count("settings read again, for 2 new workers") == 2


@pytest.mark.slow
async def test_bad_settings_change_nothing(
    redis_server: EmbeddedServer, sale: Sale, tmp_path: Path
) -> None:
    config, key = tmp_path / "seckill.toml", "sk_" + "o" * 40
    write_config(config, redis_server.url, key)
    async with serve("--config", str(config), key=key) as intake:
        workers, said = workers_of(intake.child.pid), ""
        for text in (
            "[server]\nworkerz = 3\ndrain_s = 0\n",
            "",
            config.read_text().replace(redis_server.url, "redis://127.0.0.1:1"),
        ):
            config.write_text(text)
            intake.signal(signal.SIGHUP)
            said += await until_said(intake, "SIGHUP changes nothing: ")
        assert workers_of(intake.child.pid) == workers
        assert await asked_with(intake, key, sale) == 404
        intake.signal(signal.SIGTERM)
        said += await stderr_of(intake)
    assert said.count("SIGHUP changes nothing: ") == 3
    assert f"{config}: server.workerz: is no setting; did you mean server.workers?" in said
    assert f"{config}: server.drain_s: 0 is refused; write above 0 to 300" in said
    assert "nobody could prove who they are" in said
    assert "no Redis answers there" in said
    assert "Traceback" not in said


async def test_an_embedded_server_outlives_its_workers(tmp_path: Path) -> None:
    """It hangs when the signal comes, so the answers can only come after it."""
    async with serve("--embedded", str(tmp_path), "--workers", "2", "--dev") as intake:
        sale = await open_sale(intake.url)
        assert (await intake.reserve(sale.id, "first")).http == 201
        server = pid_of_server(tmp_path)
        os.kill(server, signal.SIGSTOP)
        waiting = [asyncio.create_task(intake.reserve(sale.id, f"b{n}")) for n in range(50)]
        port = int(intake.base.rpartition(":")[2])
        await until(
            lambda: sum(connections_of(pid, port) for pid in workers_of(intake.child.pid)) == 50
        )
        intake.signal(signal.SIGTERM)
        await until_refused(intake.base)
        assert not any(task.done() for task in waiting)
        os.kill(server, signal.SIGCONT)
        answers = await asyncio.gather(*waiting)
        assert [answer.http for answer in answers] == [201] * 50
        assert await intake.ended(60) == 0
    assert not is_alive(server)
    with EmbeddedServer(tmp_path) as again:
        async with Engine(again.url, sweep_ms=0) as engine:
            assert (await engine.snapshot(sale.id)).orders == 51


@pytest.mark.slow
async def test_the_parent_is_killed(tmp_path: Path) -> None:
    async with serve("--embedded", str(tmp_path), "--workers", "2", "--dev") as intake:
        workers = workers_of(intake.child.pid)
        server = pid_of_server(tmp_path)
        intake.signal(signal.SIGKILL)
        await until(lambda: not any(map(is_alive, (*workers, server))))
        await intake.child.communicate()


async def test_the_second_signal_ends_at_once(redis_server: EmbeddedServer, sale: Sale) -> None:
    async with two_workers(redis_server) as intake:
        assert (await intake.reserve(sale.id, "first")).http == 201
        workers = workers_of(intake.child.pid)
        os.kill(redis_server.pid, signal.SIGSTOP)
        try:
            waiting = asyncio.create_task(intake.reserve(sale.id, "second"))
            # It goes the way of the first one, on the connection that was left.
            await until_read(intake.base)
            intake.signal(signal.SIGTERM)
            # Two signals that come at once are one.
            await until_refused(intake.base)
            assert intake.child.returncode is None
            intake.signal(signal.SIGTERM)
            assert await intake.ended(60) == -signal.SIGTERM
            with pytest.raises(aiohttp.ClientConnectionError):
                await waiting
            await until(lambda: not any(map(is_alive, workers)))
        finally:
            os.kill(redis_server.pid, signal.SIGCONT)


@pytest.mark.slow
async def test_a_new_worker_waits_for_redis(tmp_path: Path) -> None:
    """A worker dies while Redis is away. The other still answers, and the new one comes later."""
    with EmbeddedServer(tmp_path, appendfsync="no") as server:
        # A path that stays the same over the restart, and short, as those of sockets must be.
        entrance = Path(f"/tmp/seckill-test-{os.getpid()}.sock")  # noqa: S108 - a link of our own
        lead(entrance, server.url)
        options = ("--redis", f"unix://{entrance}", "--durability", "memory", "--workers", "2")
        async with serve(*options, "--dev") as intake:
            parent = intake.child.pid
            victim, survivor = sorted(workers_of(parent))
            server.stop()
            os.kill(victim, signal.SIGKILL)
            now = await until_workers(parent, {victim})
            assert survivor in now
            headers = {"Connection": "close"}
            assert (await intake.call("GET", "/healthz", headers=headers)).http == 200
            await until_said(intake, "a new worker waits: no Redis answers there")
            assert workers_of(parent) == now
            server.start()
            lead(entrance, server.url)
            # Now only the new one can answer.
            os.kill(survivor, signal.SIGKILL)
            assert (await intake.call("GET", "/readyz", headers=headers)).http == 200
            intake.signal(signal.SIGTERM)
            await stderr_of(intake)
        leave(entrance)


def leave(entrance: Path) -> None:
    entrance.unlink()


async def start_fails(url: str, body: str) -> tuple[int, str]:
    """Serves with two workers whose application is made by ``body``."""
    program = f"""
import sys
from seckill.errors import InvalidInput, SeckillError
from seckill.server import worker, workers
from seckill.server.dev import Dev
from seckill.server.settings import Redis, Server, Settings

def create_app(engine, settings):
{textwrap.indent(textwrap.dedent(body), "    ")}

worker.create_app = create_app
settings = Settings(
    server=Server(port=0, workers=2), redis=Redis(url=sys.argv[1], durability="memory")
)
try:
    workers.serve(lambda: Dev.new().added_to(settings), lambda running: None)
except SeckillError as error:
    sys.stderr.write(f"seckill: {{error}}\\n")
    sys.exit(1)
"""
    command = (sys.executable, "-c", program, url)
    async with (
        child(*command, cwd=ROOT, stderr=asyncio.subprocess.PIPE) as parent,
        asyncio.timeout(60),
    ):
        _, stderr = await parent.communicate()
    assert parent.returncode is not None
    return parent.returncode, stderr.decode()


async def test_a_worker_that_cannot_start_ends_the_whole(redis_server: EmbeddedServer) -> None:
    refused = 'raise InvalidInput("users.key_files", "is no key", "name another")'
    assert await start_fails(redis_server.url, refused) == (
        1,
        "seckill: users.key_files: is no key; name another\n",
    )
    code, said = await start_fails(redis_server.url, "return 1 // 0")
    assert code == 1
    assert said.startswith("seckill: a bug, please report it: ZeroDivisionError(")
    assert said.count("\n") == 1
