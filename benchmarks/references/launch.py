"""Builds and starts the servers that are compared.

Those in other languages are built in a folder of the caller's, with the toolchains of this machine;
Missing says in a word why one can't be. Nothing that a build makes or brings is kept.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import msgspec

__all__ = ["Built", "Missing", "Process", "build_fastify", "build_go", "launched", "started"]

START_S: Final = 20
# The first build of Go's standard library takes a while.
BUILD_S: Final = 300
# Of crypto.hash.
NODE_MIN: Final = (20, 12)

_HERE: Final = Path(__file__).parent
_NPM: Final = (
    *("npm", "install", "--no-package-lock", "--no-audit", "--no-fund", "--ignore-scripts"),
    *("--prefer-offline", "--fetch-retries=1", "--fetch-retry-mintimeout=1000"),
    *("--fetch-timeout=20000", "--loglevel=error"),
)


class Missing(Exception):
    """Why a reference can't be built here, in a few words."""


class Process(msgspec.Struct, frozen=True):
    """A server under test."""

    base: str
    pid: int


class Built(msgspec.Struct, frozen=True):
    """How to start a reference, and what it is made of."""

    command: tuple[str, ...]
    versions: str
    environment: dict[str, str] = {}


def build_fastify(folder: Path) -> Built:
    """Installs Fastify and ioredis. Raises Missing."""
    node, npm = shutil.which("node"), shutil.which("npm")
    if node is None or npm is None:
        raise Missing("no node" if node is None else "no npm")
    version = _first_line([node, "--version"])
    if tuple(int(part) for part in re.findall(r"\d+", version)[:2]) < NODE_MIN:
        raise Missing(f"node {version} is too old")
    at = folder / "fastify"
    shutil.copytree(_HERE / "fastify", at)
    _build([npm, *_NPM[1:]], at, "npm could not install")
    wanted = json.loads((at / "package.json").read_text())["dependencies"]
    packages = ", ".join(f"{name} {number}" for name, number in wanted.items())
    environment = {"NODE_ENV": "production"}
    return Built((node, str(at / "server.js")), f"node {version}, {packages}", environment)


def build_go(folder: Path) -> Built:
    """Compiles the reference in Go. Raises Missing."""
    go = shutil.which("go")
    if go is None:
        raise Missing("no go")
    at = folder / "go"
    shutil.copytree(_HERE / "go", at)
    _build([go, "build", "-o", "reference", "."], at, "go could not build")
    version = _first_line([go, "env", "GOVERSION"])
    return Built((str(at / "reference"),), f"{version}, GOMAXPROCS=1", {"GOMAXPROCS": "1"})


def _build(command: Sequence[str], at: Path, failed: str) -> None:
    try:
        done = subprocess.run(
            command, cwd=at, capture_output=True, text=True, timeout=BUILD_S, check=False
        )
    except subprocess.TimeoutExpired:
        raise Missing(f"{failed}: no end in {BUILD_S} s") from None
    if done.returncode:
        # The last line of a long story is as a rule a path of this machine.
        lines = (done.stderr or done.stdout).strip().splitlines() or ["no word"]
        raise Missing(f"{failed}: {lines[0][:100]}")


def _first_line(command: Sequence[str]) -> str:
    asked = subprocess.run(command, capture_output=True, text=True, timeout=30, check=True)
    return asked.stdout.strip().splitlines()[0]


@contextmanager
def started(module: str, start: str) -> Iterator[Process]:
    """A server that is a module of benchmarks/, once it takes requests."""
    with launched(Built((sys.executable, "-m", f"benchmarks.{module}"), ""), start) as process:
        yield process


@contextmanager
def launched(built: Built, start: str) -> Iterator[Process]:
    """A server, once it takes requests; ended afterwards. ``start`` is a Start as JSON."""
    command = [*built.command, start]
    environment = os.environ | built.environment
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as process:
        try:
            assert process.stdout is not None
            base = process.stdout.readline().strip()
            assert base.startswith("http://"), f"{built.command[-1]} did not start: {base}"
            yield Process(base, process.pid)
        finally:
            process.terminate()
            try:
                process.wait(timeout=START_S)
            except subprocess.TimeoutExpired:
                process.kill()
