"""The servers of the benchmark `durability`: one for each promise, and a replica where one is asked
for. Each is what docs/redis.md and docs/operations.md tell a merchant to set up.
"""

from __future__ import annotations

import asyncio
import socket
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory
from time import monotonic, sleep
from typing import Any, Final

from benchmarks.machine import cpu_seconds
from benchmarks.plan import Plan
from benchmarks.report import Row
from benchmarks.servers import Server, directory
from benchmarks.workload import Wire, check_sale
from seckill.embedded import EmbeddedServer, ServerBinary
from seckill.engine import Engine
from seckill.errors import EmbeddedError, InvalidInput, UnsuitableServer
from seckill.keys import shard_keys
from seckill.sale import Sale

__all__ = ["MODES", "Site", "sites"]

MODES: Final = ("memory", "aof", "replicas:1")
# Nothing may rewrite an AOF in the middle of a measurement.
_USUAL: Final = {"auto-aof-rewrite-percentage": "0"}
_HOST: Final = "127.0.0.1"
_PORT_TRIES: Final = 5
_PATIENCE_S: Final = 60.0


class Site:
    """A server that keeps one promise. ``replica`` has what it has, where there is one."""

    def __init__(
        self,
        mode: str,
        server: EmbeddedServer,
        replica: EmbeddedServer | None,
        runner: asyncio.Runner,
        stack: ExitStack,
    ) -> None:
        # An engine that does not know this promise says so; the type would say it first.
        self.mode: Any = mode
        self.url = server.url
        self._server = server
        self._replica = replica
        self._runner = runner
        self._wire = stack.enter_context(Wire(server))

    def open(self, sale: Sale) -> None:
        """Creates and opens a sale."""
        self._runner.run(self._open(sale))

    async def _open(self, sale: Sale) -> None:
        async with Engine(self.url, durability=self.mode, sweep_ms=0, timeout_ms=60_000) as engine:
            assert (await engine.create(sale)).ok
            assert (await engine.open(sale.id)).ok

    def orders(self, sale: str) -> int:
        """How many orders stand in the books."""
        return int(self._wire.call("HLEN", shard_keys(sale)[3]))

    def cpu_seconds(self) -> tuple[float, float]:
        """What the server and its replica have cost so far."""
        replica_s = cpu_seconds(self._replica.pid) if self._replica else 0.0
        return cpu_seconds(self._server.pid), replica_s

    def check(self, benchmark: str, server: str, sale: str) -> Row:
        """Whether this sale has kept every promise, and its replica has every order of it."""
        row = self._runner.run(check_sale(benchmark, server, self.url, self.mode, sale))
        if self._replica is not None:
            self._check_replica(sale)
        return row

    def _check_replica(self, sale: str) -> None:
        assert self._replica is not None
        give_up_s = monotonic() + _PATIENCE_S
        with Wire(self._replica) as copy:
            # Those that nobody waited for, because the load had ended, may come a moment later.
            while (count := int(copy.call("HLEN", shard_keys(sale)[3]))) != self.orders(sale):
                assert monotonic() < give_up_s, f"the replica has {count} orders of {sale}"
                sleep(0.02)

    def flush(self) -> None:
        """Makes room."""
        self._wire.call("FLUSHALL", "SYNC")


def sites(
    plan: Plan, server: Server, runner: asyncio.Runner, stack: ExitStack
) -> tuple[dict[str, Site], dict[str, str]]:
    """The sites by what they promise, and why a promise can't be had here."""
    found: dict[str, Site] = {}
    skipped: dict[str, str] = {}
    for mode in MODES:
        plan.say(f"durability: {server.name}, starting {mode}")
        try:
            if mode == "replicas:1":
                master = _master(server, stack)
                replica = _replica(server, master, stack)
            else:
                fsync = "always" if mode == "aof" else "no"
                config = {"appendonly": "yes" if mode == "aof" else "no"}
                master, replica = _started(server, stack, config, fsync), None
            site = Site(mode, master, replica, runner, stack)
            runner.run(_try(site))
        except (EmbeddedError, InvalidInput, UnsuitableServer) as error:
            skipped[mode] = f"skipped: {str(error).splitlines()[0]}"
        else:
            found[mode] = site
    assert "memory" in found, skipped
    return found, skipped


async def _try(site: Site) -> None:
    """Raises what an engine has against this server."""
    async with Engine(site.url, durability=site.mode, sweep_ms=0):
        pass


def _master(server: Server, stack: ExitStack) -> EmbeddedServer:
    """A server that a replica can reach: on a port, beside its socket. Raises EmbeddedError."""
    for tries in range(_PORT_TRIES):
        with socket.socket() as free:
            free.bind((_HOST, 0))
            port = str(free.getsockname()[1])
        config = {"bind": _HOST, "port": port, "appendonly": "yes", "min-replicas-to-write": "1"}
        config["repl-diskless-sync-delay"] = "0"
        try:
            return _started(server, stack, config, "everysec")
        except EmbeddedError:
            # Somebody may have taken the port in between.
            if tries == _PORT_TRIES - 1:
                raise
    raise AssertionError("unreachable")


def _replica(server: Server, master: EmbeddedServer, stack: ExitStack) -> EmbeddedServer:
    """A replica that has all that its master has."""
    with Wire(master) as wire:
        _, port = wire.call("CONFIG", "GET", "port")
    config = {"replicaof": f"{_HOST} {port.decode()}", "appendonly": "yes"}
    replica = _started(server, stack, config, "everysec")
    give_up_s = monotonic() + _PATIENCE_S
    with Wire(replica) as wire:
        while b"master_link_status:up" not in wire.call("INFO", "replication"):
            assert monotonic() < give_up_s, "the replica did not join"
            sleep(0.02)
    return replica


def _started(
    server: Server, stack: ExitStack, config: dict[str, str], fsync: str
) -> EmbeddedServer:
    folder = stack.enter_context(TemporaryDirectory(prefix="seckill-bench-", dir=directory()))
    embedded = EmbeddedServer(Path(folder), appendfsync=fsync, config=_USUAL | config)
    embedded.binary = ServerBinary(server.path, "benchmark")
    return stack.enter_context(embedded)
