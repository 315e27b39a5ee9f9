"""Real database servers for the tests of the ledger: private, throwaway, ended with us.

    PostgresServer   a PostgreSQL cluster of its own
    MariadbServer    a MariaDB of its own

Each owns a folder under /tmp and a port of 127.0.0.1, which stay the same over restarts. They wait
for their disk as in production, so what was committed must be there after ``stop(kill=True)``. They
speak Shanghai's time, and MariaDB its own default character set (latin1), because shops' servers
do: a table or query that relies on UTC or UTF-8 without asking for it shows here.
"""

from __future__ import annotations

import contextlib
import os
import pwd
import random
import secrets
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, Self

import pytest

__all__ = ["DatabaseServer", "MariadbServer", "PostgresServer", "free_port"]

POSTGRES_BIN_ENV = "SECKILL_TEST_POSTGRES_BIN"
USER = "seckill"
READY_SECONDS = 60.0
STOP_SECONDS = 60.0
POLL_SECONDS = 0.02

# Ends the server and removes its folder when we are gone, however we went: then `read` meets the
# end of the pipe that only we hold. After a stop in good order it gets a line instead.
_WATCHER = 'read -r _ || { kill -s KILL "$1"; sleep 1; rm -rf "$2"; }'


class DatabaseServer(ABC):
    """One server process on a folder of its own; ``password`` is new for every server.

    ``pid`` and ``url`` are meant for a server that runs. Use it as a context manager: its end
    removes the folder.
    """

    name: str
    scheme: str
    # Who runs it when we are root: the first of these that the machine knows.
    accounts: tuple[str, ...]

    def __init__(self) -> None:
        self.password = secrets.token_hex(8)
        self.folder = Path(tempfile.mkdtemp(prefix=f"seckill-{self.name}-", dir="/tmp"))
        self.data_dir = self.folder / "data"
        self.log = self.folder / "server.log"
        self.port = free_port()
        self._process: subprocess.Popen[bytes] | None = None
        self._watcher: subprocess.Popen[bytes] | None = None
        self._databases = 0
        self._as_user: dict[str, Any] = {}
        if os.geteuid() == 0:
            # Both refuse to work for root.
            account = _account(self.accounts)
            os.chown(self.folder, account.pw_uid, account.pw_gid)
            self._as_user = {
                "user": account.pw_uid,
                "group": account.pw_gid,
                "extra_groups": [],
            }

    def __enter__(self) -> Self:
        try:
            self._initialise()
            self.start()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.stop(kill=True)
        shutil.rmtree(self.folder)

    @property
    def pid(self) -> int:
        assert self._process is not None, f"{self.name} is not running"
        return self._process.pid

    def url(self, database: str) -> str:
        """The URL of one database, as a user writes it."""
        return f"{self.scheme}://{USER}:{self.password}@127.0.0.1:{self.port}/{database}"

    def start(self) -> None:
        """Starts the server, on the data it had, and waits until it serves. Does nothing while it
        runs. Synchronous, as ``stop`` is."""
        if self._process is not None:
            if self._process.poll() is None:
                return
            self.stop()
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                self._command(),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=self.folder,
                # Ctrl-C ends the tests, and they end the server.
                start_new_session=True,
                **self._as_user,
            )
        self._watcher = subprocess.Popen(
            ["/bin/sh", "-c", _WATCHER, "watcher", str(self._process.pid), str(self.folder)],
            stdin=subprocess.PIPE,
            start_new_session=True,
        )
        deadline = time.monotonic() + READY_SECONDS
        while not self._ready():
            assert self._process.poll() is None, f"{self.name} has ended:\n{self.tail()}"
            assert time.monotonic() < deadline, f"{self.name} is not ready:\n{self.tail()}"
            time.sleep(POLL_SECONDS)

    def stop(self, *, kill: bool = False) -> None:
        """Ends the server, in good order or by SIGKILL; its data and its port stay. Does nothing
        when it does not run."""
        process, self._process = self._process, None
        watcher, self._watcher = self._watcher, None
        if watcher is not None:
            # First of all: once the server is gone, its pid may be anybody's.
            watcher.communicate(b"done\n")
        if process is None:
            return
        children = _children(process.pid)
        process.send_signal(signal.SIGKILL if kill else self._stop_signal)
        try:
            process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            raise
        _await_end(children)

    @contextlib.asynccontextmanager
    async def database(self) -> AsyncIterator[str]:
        """The URL of a new, empty database, which is dropped in the end. Starts the server if an
        earlier test left it killed."""
        self.start()
        self._databases += 1
        database = f"test_{self._databases}"
        await self._execute(f"CREATE DATABASE {database}")
        try:
            yield self.url(database)
        finally:
            self.start()
            await self._drop(database)

    _stop_signal: signal.Signals = signal.SIGTERM

    @abstractmethod
    def _initialise(self) -> None:
        """Makes the data directory and the user."""

    @abstractmethod
    def _command(self) -> list[str]:
        """What starts the server in the foreground."""

    @abstractmethod
    def _ready(self) -> bool:
        """Whether the server that was just started accepts connections."""

    @abstractmethod
    async def _execute(self, sql: str) -> None:
        """Executes one statement outside of any of the tests' databases."""

    @abstractmethod
    async def _drop(self, database: str) -> None:
        """Drops the database, even if a connection to it was left open."""

    def _run(self, *command: str | Path) -> None:
        done = subprocess.run(
            command,
            cwd=self.folder,
            env=os.environ | {"HOME": str(self.folder), "LC_ALL": "C"},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
            **self._as_user,
        )
        assert done.returncode == 0, f"{done.args} failed:\n{done.stdout}\n{done.stderr}"

    def tail(self) -> str:
        """The last lines of its log."""
        return "\n".join(self.log.read_text("utf-8", "replace").splitlines()[-20:])


class PostgresServer(DatabaseServer):
    """A PostgreSQL cluster with the binaries of SECKILL_TEST_POSTGRES_BIN, Debian's or PATH's."""

    name = "postgresql"
    scheme = "postgresql"
    accounts = ("postgres", "nobody")
    # SIGTERM would wait for every client to leave; this is the "fast" shutdown.
    _stop_signal = signal.SIGINT

    def __init__(self) -> None:
        self._bin = _postgres_bin()
        super().__init__()

    def _initialise(self) -> None:
        password_file = self.folder / "password"
        password_file.write_text(self.password)
        password_file.chmod(0o644)
        command: list[str | Path] = [self._bin / "initdb", "--pgdata", self.data_dir]
        command += ["--username", USER, "--pwfile", password_file, "--auth", "scram-sha-256"]
        command += ["--no-locale", "--encoding", "UTF8", "--no-sync"]
        self._run(*command)

    def _command(self) -> list[str]:
        settings = {
            "listen_addresses": "127.0.0.1",
            "unix_socket_directories": "",
            "timezone": "Asia/Shanghai",
            "max_connections": "50",
            "shared_buffers": "32MB",
        }
        command = [str(self._bin / "postgres"), "-D", str(self.data_dir), "-p", str(self.port)]
        for name, value in settings.items():
            command += ["-c", f"{name}={value}"]
        return command

    def _ready(self) -> bool:
        # The file of a killed predecessor may still lie there, so whose it is counts too.
        try:
            lines = (self.data_dir / "postmaster.pid").read_text("utf-8").splitlines()
        except FileNotFoundError:
            return False
        return len(lines) >= 8 and lines[0] == str(self.pid) and lines[7].strip() == "ready"

    async def _execute(self, sql: str) -> None:
        import asyncpg  # type: ignore[import-untyped]

        connection = await asyncpg.connect(self.url("postgres"))
        try:
            await connection.execute(sql)
        finally:
            await connection.close()

    async def _drop(self, database: str) -> None:
        await self._execute(f"DROP DATABASE {database} WITH (FORCE)")


class MariadbServer(DatabaseServer):
    """A MariaDB with the binaries of PATH or Debian's places."""

    name = "mariadb"
    scheme = "mysql"
    accounts = ("mysql", "nobody")

    def __init__(self) -> None:
        self._server = _mariadb_program("mariadbd", "mysqld")
        self._installer = _mariadb_program("mariadb-install-db", "mysql_install_db")
        super().__init__()

    def _initialise(self) -> None:
        grants = self.folder / "grants.sql"
        grants.write_text(
            # The file is executed while the server still skips its grant tables.
            "FLUSH PRIVILEGES;\n"
            f"CREATE USER '{USER}'@'127.0.0.1' IDENTIFIED BY '{self.password}';\n"
            f"GRANT ALL ON *.* TO '{USER}'@'127.0.0.1';\n"
        )
        grants.chmod(0o644)
        command: list[str | Path] = [self._installer, "--no-defaults"]
        command += [f"--datadir={self.data_dir}", f"--extra-file={grants}"]
        # Two installers at once would use the same files of /tmp.
        command += [f"--tmpdir={self.folder}"]
        command += ["--skip-name-resolve", "--skip-test-db", *self._sizes()]
        self._run(*command)

    @staticmethod
    def _sizes() -> list[str]:
        # Not io_uring: a machine that gives it too little memory ends the server in mid-test.
        sizes = ["--innodb-log-file-size=16M", "--innodb-buffer-pool-size=32M"]
        return [*sizes, "--innodb-use-native-aio=0"]

    def _command(self) -> list[str]:
        command = [str(self._server), "--no-defaults", f"--datadir={self.data_dir}"]
        command += ["--bind-address=127.0.0.1", f"--port={self.port}"]
        command += [f"--socket={self.folder}/s.sock", f"--pid-file={self.folder}/server.pid"]
        command += ["--skip-name-resolve", "--default-time-zone=+08:00", "--max-connections=50"]
        # A KILL meant for a connection that just ended must not meet the next one in its thread.
        command += ["--thread-cache-size=0"]
        return command + self._sizes()

    def _ready(self) -> bool:
        # The port is open before the recovery has ended; the greeting comes after it.
        with contextlib.suppress(OSError):
            address = ("127.0.0.1", self.port)
            with socket.create_connection(address, timeout=READY_SECONDS) as connection:
                return bool(connection.recv(1))
        return False

    async def _execute(self, sql: str) -> None:
        import asyncmy

        connection = await asyncmy.connect(
            host="127.0.0.1", port=self.port, user=USER, password=self.password
        )
        async with connection, connection.cursor() as cursor:
            await cursor.execute(sql)

    async def _drop(self, database: str) -> None:
        # A transaction that a test left open would keep its tables locked. Whoever ends by itself
        # meanwhile is an unknown thread.
        others = f"db = '{database}' AND id <> CONNECTION_ID()"
        await self._execute(
            "BEGIN NOT ATOMIC DECLARE CONTINUE HANDLER FOR 1094 BEGIN END; "  # noqa: S608
            "FOR other IN (SELECT id FROM information_schema.processlist "
            f"WHERE {others}) DO KILL CONNECTION other.id; END FOR; END"
        )
        await self._execute(f"DROP DATABASE {database}")


def _postgres_bin() -> Path:
    named = os.environ.get(POSTGRES_BIN_ENV)
    if named:
        # Whoever names a folder wants that one, so it is an error if it does not serve.
        assert (Path(named) / "initdb").is_file(), f"{POSTGRES_BIN_ENV}={named}: no initdb there"
        return Path(named)
    # PATH comes second: Debian puts only clients there, and others the binary without its kin.
    debian = Path("/usr/lib/postgresql").glob("*/bin")
    versions = sorted(debian, key=lambda folder: _number(folder.parent.name), reverse=True)
    on_path = [Path(found).resolve().parent] if (found := shutil.which("postgres")) else []
    for folder in [*versions, *on_path]:
        if (folder / "initdb").is_file() and (folder / "postgres").is_file():
            return folder
    pytest.skip(
        "no PostgreSQL server: apt install postgresql, "
        f"or set {POSTGRES_BIN_ENV} to the folder of initdb and postgres"
    )


def _number(version: str) -> float:
    try:
        return float(version)
    except ValueError:
        return 0.0


def _mariadb_program(*names: str) -> Path:
    path = os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin", "/usr/bin"])
    for name in names:
        found = shutil.which(name, path=path)
        if found is not None:
            return Path(found)
    pytest.skip(f"no MariaDB server ({names[0]}): apt install mariadb-server")


def _account(names: tuple[str, ...]) -> pwd.struct_passwd:
    for name in names:
        with contextlib.suppress(KeyError):
            return pwd.getpwnam(name)
    pytest.skip(f"root needs one of the users {', '.join(names)} to run a database as")


def free_port() -> int:
    """A port that nobody listens on now, and that the kernel gives nobody by itself: the server
    must find it free again after a restart."""
    while True:
        port = random.randrange(20_000, 32_000)
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port


def _children(parent: int) -> list[int]:
    """The processes that PostgreSQL has for its clients and its chores; empty without /proc."""
    pids = [int(folder.name) for folder in Path("/proc").glob("[0-9]*")]
    return [pid for pid in pids if _state(pid)[1:] == [str(parent)]]


def _await_end(pids: list[int]) -> None:
    """They end by themselves when their parent has gone, but hold its shared memory until then, so
    that a new server would refuse to start."""
    deadline = time.monotonic() + STOP_SECONDS
    # A dead process is listed until somebody collects it (Z), which in a container takes seconds.
    while any(_state(pid)[:1] not in ([], ["Z"]) for pid in pids):
        assert time.monotonic() < deadline, f"processes {pids} of a stopped server live on"
        time.sleep(POLL_SECONDS)


def _state(pid: int) -> list[str]:
    """State and parent of a process; empty when there is none."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text("utf-8", "replace")
    except OSError:
        return []
    # The name, in brackets, may hold anything.
    return stat.rpartition(")")[2].split()[:2]
