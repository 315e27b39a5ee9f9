"""One real server process on a TCP port of 127.0.0.1, to be killed, stopped and started again.

    node = Node(tmp_path / "a", {"appendonly": "yes", "appendfsync": "always"})
    with node:
        node.kill()
        node.start()

No server outlives us, however we end. Each is started by a shell that leaves a watcher in the same
process group and becomes the server itself, so the process that we started is the server:

    this process ──pipe──▶ watcher ──kills the group when that ends──▶ server, rewrite of its AOF

(PR_SET_PDEATHSIG would fire when the *thread* that started the server ends.) All of the group hold
the other end of a second pipe, which ends when the last of them is gone: only then is a kill over.

A port is ours from the first start to the end of the ``with``, also while the server is down: we
keep a socket bound to it that does not listen, which the kernel gives away to nobody who asks for
some free port, and which does not keep a server from listening there (Linux).
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Self

import pytest
import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from seckill.embedded import find_server
from tests.faults.disk import Disk, can_watch_syncs

__all__ = ["HOST", "PATIENCE_S", "Node", "NodeFailed", "wait_until"]

HOST = "127.0.0.1"
# How long anything may take that waits for no timeout of the servers' own. A slow machine needs a
# fraction of it, and what never happens is told before pytest's own timeout (300 s).
PATIENCE_S = 60.0
POLL_S = 0.01
PORT_TRIES = 5
LOG_LINES = 15

_SH = """
exec 3<&0 </dev/null
(read -r word <&3; kill -s KILL -- "-$$") &
exec "$@" 3<&-
"""

# What every server gets; the sync of a new replica shall not wait for others to come.
_ALWAYS = {"bind": HOST, "protected-mode": "no", "daemonize": "no", "logfile": '"server.log"'}
_USUAL = {
    "save": '""',
    "auto-aof-rewrite-percentage": "0",
    "maxmemory-policy": "noeviction",
    "repl-diskless-sync-delay": "0",
    "repl-ping-replica-period": "1",
}


class NodeFailed(Exception):
    """A server did not come up or did not end; the text ends with the last lines of its log."""


class _PortTaken(NodeFailed):
    """Somebody else listens where a server of ours was to."""


def wait_until(
    condition: Callable[[], object], what: str, *, patience_s: float = PATIENCE_S
) -> None:
    """Asks until ``condition`` is true. A server that does not answer, or refuses, means not yet.

    Raises AssertionError when that takes longer than ``patience_s``, with ``what`` it was about.
    """
    deadline = time.monotonic() + patience_s
    last: object = None
    while True:
        try:
            last = condition()
        except (redis.RedisError, OSError) as error:
            last = error
        else:
            if last:
                return
        assert time.monotonic() < deadline, f"{what}: not within {patience_s:.0f} s; last: {last!r}"
        time.sleep(POLL_S)


def reserve_port() -> socket.socket:
    """A socket that keeps a port for a server of ours until it is closed, see the top."""
    kept = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    kept.bind((HOST, 0))
    # Only now: with the option set before, the kernel might pick a port that a sibling keeps.
    kept.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    return kept


class Node:
    """A server in ``folder``, with config directives in the words of its config file.

    ``config`` goes over what is usual here: no RDB file, no rewrite of the AOF by itself. With
    ``appendonly yes`` a kill also cuts the AOF back to what was synced, if ``watched`` (it needs a
    C compiler). The config file is written once: what the server or a sentinel writes into it
    stays over a restart, as in real life. ``port`` is known once the server was started.
    """

    def __init__(
        self, folder: Path, config: Mapping[str, str | int] | None = None, *, sentinel: bool = False
    ) -> None:
        if not sys.platform.startswith("linux"):
            pytest.skip("servers of our own on TCP ports need Linux")
        self.folder = folder
        self.name = folder.name
        given = {name: str(value) for name, value in (config or {}).items()}
        self._config = _ALWAYS | ({} if sentinel else _USUAL) | given
        self._sentinel = sentinel
        self._password = given.get("requirepass")
        self._kept: dict[str, socket.socket] = {}
        self._process: subprocess.Popen[bytes] | None = None
        folder.mkdir(parents=True)
        self._data = folder / "data"
        self._data.mkdir()
        self._log_start = 0
        self._disk: Disk | None = None
        if given.get("appendonly") == "yes" and can_watch_syncs():
            self._disk = Disk(self._data, beside=folder)
        self.paused = False

    def __repr__(self) -> str:
        return f"<{self.name}>"

    def __enter__(self) -> Self:
        try:
            self.start()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def watched(self) -> bool:
        """Whether ``kill`` takes away what was not synced."""
        return self._disk is not None

    @property
    def running(self) -> bool:
        """Whether the server is there; it may be paused."""
        return self._process is not None and self._process.poll() is None

    @property
    def answers(self) -> bool:
        """Whether it runs and is not paused."""
        return self.running and not self.paused

    @property
    def port(self) -> int:
        """Where it listens, and where it will listen again."""
        return _number(self._kept["port"])

    @property
    def bus_port(self) -> int:
        """Where a node of a cluster listens for the others."""
        return _number(self._kept["cluster-port"])

    @property
    def pid(self) -> int:
        """The server's process id; that of the last start, if it is down."""
        assert self._process is not None, f"{self} was not started"
        return self._process.pid

    @property
    def log(self) -> str:
        """All that this server has said, over all its starts."""
        path = self._data / "server.log"
        return path.read_text("utf-8", "replace") if path.exists() else ""

    def client(self, *, timeout_s: float = PATIENCE_S) -> redis.Redis:
        """A client that decodes, and retries nothing; to be closed by whoever asked for it."""
        return redis.Redis(
            HOST,
            self.port,
            password=self._password,
            decode_responses=True,
            protocol=2,
            socket_timeout=timeout_s,
            socket_connect_timeout=timeout_s,
            retry=Retry(NoBackoff(), 0),
        )

    def ask(self, *command: str | int, timeout_s: float = PATIENCE_S) -> Any:
        """What the server says to one command, over a connection of its own."""
        with self.client(timeout_s=timeout_s) as client:
            return client.execute_command(*command)

    def info(self, section: str) -> dict[str, Any]:
        """One section of what the server says of itself."""
        said: dict[str, Any] = self.ask("INFO", section)
        return said

    def follows(self, port: int) -> bool:
        """Whether it is a replica of who is reached at this port, has loaded what that has and is
        connected."""
        said = self.info("replication")
        names = ("role", "master_port", "master_link_status")
        return [said.get(name) for name in names] == ["slave", port, "up"]

    def start(self) -> None:
        """Starts the server and waits until it serves; it gets the port that it had before.

        Raises NodeFailed. The first start tries another port when somebody has taken this one.
        """
        assert not self.running, f"{self} is running"
        if self._process is not None:
            self._start_once()
            return
        for _ in range(PORT_TRIES):
            self._take_ports()
            with contextlib.suppress(_PortTaken):
                self._start_once()
                return
        raise self._failure(f"found the port taken {PORT_TRIES} times")

    def _start_once(self) -> None:
        self._launch()
        try:
            self._wait_until_ready()
        except BaseException:
            self._end()
            raise

    def stop(self) -> None:
        """SIGTERM, and waits for the orderly end, which a replica that lags puts off by up to
        ``shutdown-timeout`` (10 s)."""
        assert self._process is not None, f"{self} was not started"
        self._process.terminate()
        self.unpause()
        try:
            self._process.wait(PATIENCE_S)
        except subprocess.TimeoutExpired:
            raise self._failure("does not end at SIGTERM") from None
        self._end()

    def kill(self) -> int:
        """SIGKILL; returns how many bytes of the AOF were not synced and are gone."""
        assert self.running, f"{self} is not running"
        self._end()
        return self._disk.cut() if self._disk else 0

    def pause(self) -> None:
        """SIGSTOP: connections stay, and nobody is answered from when this returns."""
        assert self.running, f"{self} is not running"
        os.kill(self.pid, signal.SIGSTOP)
        os.waitid(os.P_PID, self.pid, os.WSTOPPED | os.WEXITED | os.WNOWAIT)
        self.paused = True

    def unpause(self) -> None:
        """SIGCONT: it goes on, with all that was sent to it meanwhile."""
        assert self._process is not None, f"{self} was not started"
        self._process.send_signal(signal.SIGCONT)
        self.paused = False

    def close(self) -> None:
        """Ends the server, whatever its state, and gives its ports back."""
        if self._process is not None:
            self._end()
        for kept in self._kept.values():
            kept.close()
        self._kept.clear()

    def _take_ports(self) -> None:
        names = ["port"]
        if self._config.get("cluster-enabled") == "yes":
            names.append("cluster-port")
        for name in names:
            if name in self._kept:
                self._kept.pop(name).close()
            self._kept[name] = reserve_port()
        lines = self._config | {name: str(_number(kept)) for name, kept in self._kept.items()}
        lines["dir"] = f'"{self._data}"'
        text = "".join(f"{name} {value}\n" for name, value in lines.items())
        (self.folder / "server.conf").write_text(text)

    def _launch(self) -> None:
        command = ["/bin/sh", "-c", _SH, "seckill-node", "env"]
        if self._disk is not None:
            self._disk.reset()
            command += [f"{name}={value}" for name, value in self._disk.environment.items()]
        command += [find_server().path, str(self.folder / "server.conf")]
        if self._sentinel:
            command.append("--sentinel")
        self._log_start = len(self.log)
        # What is wrong with its config it says on stderr, before it has a log.
        with (self._data / "server.log").open("ab") as log:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                cwd=self._data,
                start_new_session=True,
            )

    def _wait_until_ready(self) -> None:
        assert self._process is not None
        deadline = time.monotonic() + PATIENCE_S
        while True:
            if self._process.poll() is not None:
                said = self.log[self._log_start :]
                if "Address already in use" in said or "Failed listening" in said:
                    raise _PortTaken(f"{self} finds its port taken")
                raise self._failure("ended while starting")
            try:
                with self.client(timeout_s=1.0) as client:
                    answers = client.ping()
                    pid = client.info("server")["process_id"]
            except (redis.RedisError, OSError):
                # Not yet there, still loading, or a stranger with another password.
                answers = False
            if answers:
                if pid != self.pid:
                    raise _PortTaken(f"{self}: process {pid} answers on its port")
                break
            if time.monotonic() > deadline:
                raise self._failure("did not answer")
            time.sleep(POLL_S)
        if self._disk is not None:
            self._disk.note_found()
            assert self._disk.seen_syncs, "no sync was seen: is the server linked statically?"

    def _end(self) -> None:
        """SIGKILL for the server and all of its group; returns when the last of them is gone."""
        assert self._process is not None
        self._process.kill()
        try:
            # Closes the watcher's pipe, and reads the other to its end.
            self._process.communicate(timeout=PATIENCE_S)
        except subprocess.TimeoutExpired:
            raise self._failure("does not end at SIGKILL") from None
        self.paused = False

    def _failure(self, what: str) -> NodeFailed:
        tail = "\n".join(f"    {line}" for line in self.log.splitlines()[-LOG_LINES:])
        return NodeFailed(f"{self} {what}; its log ends with:\n{tail or '    (nothing)'}")


def _number(kept: socket.socket) -> int:
    port: int = kept.getsockname()[1]
    return port
