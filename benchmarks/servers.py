"""The servers under test: every one found on this machine, each in a fresh directory."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final, Literal

import msgspec

from seckill.embedded import EmbeddedServer, ServerBinary, find_server
from seckill.errors import EmbeddedError
from seckill.redis import Durability

__all__ = ["Fsync", "Server", "directory", "durability_of", "find_servers", "running"]

Fsync = Literal["always", "off"]

# Nothing may rewrite the AOF in the middle of a measurement, and `scale` asks DEBUG whether a hash
# is being rehashed. Both are the same for everybody who is compared.
_CONFIG: Final = {"auto-aof-rewrite-percentage": "0", "enable-debug-command": "local"}


class Server(msgspec.Struct, frozen=True):
    """A server program, under the name that its ``--version`` gives."""

    name: str
    path: str


def find_servers() -> list[Server]:
    """The server that the engine would choose, then Debian's and whatever else is on PATH."""
    paths = []
    with suppress(EmbeddedError):
        paths.append(find_server().path)
    for name in ("redis-server", "valkey-server"):
        found = shutil.which(name, path="/usr/bin:/usr/local/bin") or shutil.which(name)
        if found:
            paths.append(found)
    servers: dict[str, Server] = {}
    for path in paths:
        asked = subprocess.run([path, "--version"], capture_output=True, text=True, check=True)
        text = asked.stdout
        version = re.search(r"v=([0-9.]+)", text)
        kind = "Valkey" if "valkey" in text.lower() else "Redis"
        name = f"{kind} {version[1] if version else '?'}"
        servers.setdefault(name, Server(name, path))
    return list(servers.values())


@contextmanager
def running(server: Server, fsync: Fsync) -> Iterator[EmbeddedServer]:
    """This server on a unix socket with an empty data set, gone afterwards."""
    config = dict(_CONFIG)
    if fsync == "off":
        config["appendonly"] = "no"
    with TemporaryDirectory(prefix="seckill-bench-", dir=directory()) as data_dir:
        embedded = EmbeddedServer(data_dir, config=config)
        embedded.binary = ServerBinary(server.path, "benchmark")
        with embedded:
            yield embedded


def durability_of(fsync: Fsync) -> Durability:
    """What an engine is told about such a server."""
    return "aof" if fsync == "always" else "memory"


def directory() -> Path:
    """Where the data sets live: a disk, for an AOF in memory would flatter everybody."""
    return Path("/var/tmp")  # noqa: S108 (only the parent of a TemporaryDirectory)
