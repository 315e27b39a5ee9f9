"""Processes that have imported other people's packages when they begin.

Each of the hundreds of commands that the tests run would spend most of its time on importing the
same packages. A nursery has imported them once and forks: what it hands out is a process of its own
with an environment, a working directory and streams of its own, which then runs ``seckill.cli`` as
``python -P -m`` does. Our own modules are imported by each command itself, so an import that is
missing or too many is seen as before.
"""

from __future__ import annotations

import atexit
import json
import os
import selectors
import signal
import socket
import subprocess
import sys
import time
from functools import cache
from pathlib import Path

__all__ = ["run_forked"]

# Large ones that look at no environment when they are imported.
PACKAGES = (
    "aiohttp.web",
    "aiosqlite",
    "cryptography.hazmat.primitives.serialization",
    "hiredis",
    "jwt",
    "msgspec",
    "pydantic_settings",
    "redis.asyncio",
    "rich.console",
    "rich.live",
    "rich.markup",
    "rich.progress",
    "rich.table",
    "sqlalchemy.ext.asyncio",
    "typer",
)

# Forks a keeper for each request, which forks the command, and tells its pid and its end.
_PROGRAM = """
import gc, importlib, json, os, runpy, signal, socket, sys, time
for name in sys.argv[1:]:
    try:
        importlib.import_module(name)
    except ImportError:
        pass
gc.freeze()
signal.signal(signal.SIGCHLD, signal.SIG_IGN)
door = socket.socket(fileno=0)
while True:
    said, (*fds,), _, _ = socket.recv_fds(door, 1 << 20, 3)
    if not said:
        sys.exit()
    if os.fork() == 0:
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        pid = os.fork()
        if pid == 0:
            break
        for fd in fds[:2]:
            os.close(fd)
        os.write(fds[2], b"%d\\n" % pid)
        status = os.waitpid(pid, 0)[1]
        os.write(fds[2], b"%d\\n" % os.waitstatus_to_exitcode(status))
        os._exit(0)
    for fd in fds:
        os.close(fd)
door.detach()
os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
os.dup2(fds[0], 1)
os.dup2(fds[1], 2)
os.closerange(3, 1024)
for fd, name in ((1, "stdout"), (2, "stderr")):
    old = getattr(sys, name)
    new = open(fd, "w", encoding=old.encoding, errors=old.errors, closefd=False)
    setattr(sys, name, new)
    setattr(sys, f"__{name}__", new)
wish = json.loads(said)
os.chdir(wish["cwd"])
os.environ.clear()
os.environ.update(wish["env"])
time.tzset()
sys.argv[:] = ["seckill.cli", *wish["args"]]
runpy.run_module("seckill.cli", run_name="__main__", alter_sys=True)
"""


def run_forked(
    *args: str, cwd: Path, env: dict[str, str], timeout: float
) -> subprocess.CompletedProcess[str]:
    """What ``subprocess.run`` gives for ``python -P -m seckill.cli``; ``env`` is the whole
    environment. Raises TimeoutExpired, as that does."""
    (out, out_end), (err, err_end), (told, told_end) = os.pipe(), os.pipe(), os.pipe()
    wish = json.dumps({"args": args, "cwd": str(cwd), "env": env}).encode()
    try:
        socket.send_fds(_nursery(), [wish], [out_end, err_end, told_end])
    finally:
        for fd in (out_end, err_end, told_end):
            os.close(fd)
    heard = _read_all({out: b"", err: b"", told: b""}, time.monotonic() + timeout)
    for fd in (out, err, told):
        os.close(fd)
    pid, *code = heard[told].split()
    if not code:
        os.kill(int(pid), signal.SIGKILL)
        raise subprocess.TimeoutExpired(args, timeout, heard[out], heard[err])
    stdout, stderr = heard[out].decode(), heard[err].decode()
    return subprocess.CompletedProcess(args, int(code[0]), stdout, stderr)


def _read_all(heard: dict[int, bytes], until_s: float) -> dict[int, bytes]:
    """All that is written to these pipes until every one is closed, or the time is over."""
    with selectors.DefaultSelector() as selector:
        for fd in heard:
            selector.register(fd, selectors.EVENT_READ)
        while selector.get_map() and (left_s := until_s - time.monotonic()) > 0:
            for key, _ in selector.select(left_s):
                data = os.read(key.fd, 65_536)
                heard[key.fd] += data
                if not data:
                    selector.unregister(key.fd)
    return heard


@cache
def _nursery() -> socket.socket:
    """The door of this process's nursery, which ends when that is closed."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    clean = {name: value for name, value in os.environ.items() if not name.startswith("SECKILL_")}
    child = subprocess.Popen(
        [sys.executable, "-P", "-c", _PROGRAM, *PACKAGES], stdin=theirs, env=clean
    )
    theirs.close()

    def end() -> None:
        ours.close()
        child.wait()

    atexit.register(end)
    return ours
