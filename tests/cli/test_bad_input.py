"""What a user gets wrong: one clear line on stderr, nothing on stdout, and the right exit code."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from seckill.embedded import EmbeddedServer
from tests.cli.conftest import Seckill, run_seckill

SaleFile = Callable[..., tuple[str, Path]]


def test_missing_file(seckill: Seckill) -> None:
    done = seckill("sale", "create", "no[bold]where.toml")
    assert (done.code, done.out) == (2, "")
    assert done.err == "seckill: no[bold]where.toml: file: does not exist; check the path\n"


def test_broken_file(seckill: Seckill, sale_file: SaleFile) -> None:
    _, path = sale_file()
    path.write_text(path.read_text("utf-8").replace("total = 20\n", "total = -1\n"), "utf-8")
    done = seckill("sale", "create", str(path))
    assert done.code == 2
    assert re.search(r"\.toml:\d+: items\[0\]\.total: -1 is out of range", done.err)


@pytest.mark.parametrize(
    "args",
    [
        ("sale", "show", "nope"),
        ("stock", "show", "nope"),
        ("stock", "add", "nope", "a", "1", "--key", "k"),
        ("order", "show", "nope", "00" + "a" * 22),
        ("order", "release", "nope", "00" + "a" * 22),
        ("sale", "open", "nope"),
        ("sale", "pause", "nope"),
        ("sale", "resume", "nope"),
        ("sale", "close", "nope"),
        ("inspect", "nope"),
        ("verify", "nope"),
    ],
)
def test_unknown_sale(seckill: Seckill, args: tuple[str, ...]) -> None:
    done = seckill(*args)
    assert (done.code, done.out) == (1, "")
    assert "no sale 'nope'" in done.err or "no such sale" in done.err
    assert "seckill sale list" in done.err
    assert done.err.count("\n") == 1


def test_bad_sale_id(seckill: Seckill) -> None:
    done = seckill("sale", "show", "[red]晚8点")
    assert done.code == 2
    assert "sale: '[red]晚8点' holds '['" in done.err


@pytest.mark.parametrize(
    ("args", "code", "text"),
    [
        ((), 2, "give --redis URL or --embedded DIR"),
        (("--redis", "127.0.0.1:6379"), 2, "'127.0.0.1:6379' is not a Redis URL"),
        (("--redis", "redis://[bold]"), 2, "url"),
        (("--redis", "redis://127.0.0.1:1", "--embedded", "d"), 2, "give one of the two"),
        (("--redis", "redis://127.0.0.1:1"), 1, "no Redis answers there"),
        (("--embedded", "/proc/nowhere"), 2, "--embedded: /proc/nowhere does not exist"),
        (("--embedded", "/proc"), 2, "--embedded: /proc holds no server's data"),
        (("--redis", "redis://127.0.0.1:1", "--durability", "maybe"), 2, "maybe"),
    ],
)
def test_server_that_is_none(tmp_path: Path, args: tuple[str, ...], code: int, text: str) -> None:
    done = run_seckill("sale", "list", *args, cwd=tmp_path)
    assert (done.code, done.out) == (code, "")
    assert text in done.err


def test_unsuitable_server(server: EmbeddedServer, tmp_path: Path) -> None:
    # The session's server does not wait for its disk, and by default a command demands that.
    done = run_seckill("sale", "list", "--redis", server.url, cwd=tmp_path)
    assert (done.code, done.out) == (1, "")
    assert "appendfsync is 'no'" in done.err
    assert '--durability): "replicas:N" if' in done.err


def test_commands_ask_what_the_intake_asks(server: EmbeddedServer, tmp_path: Path) -> None:
    setting = {"SECKILL_REDIS": server.url, "SECKILL_REDIS__DURABILITY": "memory"}
    assert run_seckill("sale", "list", cwd=tmp_path, **setting).code == 0
    done = run_seckill("sale", "list", "--durability", "aof", cwd=tmp_path, **setting)
    assert "appendfsync is 'no'" in done.err
    done = run_seckill(
        "sale", "list", cwd=tmp_path, **(setting | {"SECKILL_REDIS__DURABILITY": "x"})
    )
    assert (done.code, "durability: 'x' is unknown" in done.err) == (2, True)


def test_only_a_first_sale_makes_a_data_directory(sale_file: SaleFile, tmp_path: Path) -> None:
    wrong = run_seckill("sale", "list", cwd=tmp_path, SECKILL_DATA="data")
    assert (wrong.code, wrong.out) == (2, "")
    assert f"SECKILL_DATA: {tmp_path / 'data'} does not exist, and no server runs" in wrong.err
    assert "seckill serve or seckill sale create" in wrong.err
    assert not (tmp_path / "data").exists()
    _, path = sale_file()
    unusable = run_seckill("sale", "create", str(path), "--embedded", "/proc/no", cwd=tmp_path)
    assert unusable.code == 1
    assert "/proc/no cannot be used as a data directory" in unusable.err


def test_environment_and_options(sale_file: SaleFile, tmp_path: Path) -> None:
    data = str(tmp_path / "data")
    sale, path = sale_file()
    assert run_seckill("sale", "create", str(path), cwd=tmp_path, SECKILL_DATA=data).code == 0
    # An option beats the environment.
    here = run_seckill(
        "sale", "list", "--embedded", data, cwd=tmp_path, SECKILL_REDIS="redis://x:1"
    )
    assert (here.code, sale in here.out) == (0, True)


@pytest.mark.parametrize("args", [("sale", "sell"), ("order", "show", "s"), ("--nope",)])
def test_usage(seckill: Seckill, args: tuple[str, ...]) -> None:
    done = seckill(*args)
    assert (done.code, done.out) == (2, "")
    assert "Usage: seckill" in done.err


def test_version_and_help(tmp_path: Path) -> None:
    version = run_seckill("--version", cwd=tmp_path)
    assert version.code == 0
    assert re.fullmatch(r"seckill \d+\.\d+\.\d+\S*\n", version.out)
    shown = run_seckill("--help", cwd=tmp_path)
    assert shown.code == 0
    for command in ("demo", "inspect", "order", "sale", "serve", "stock", "verify"):
        assert command in shown.out
        assert run_seckill(command, "--help", cwd=tmp_path).code == 0


@pytest.mark.parametrize("module", ["typer", "rich"])
@pytest.mark.parametrize("args", [[], ["--help"], ["sale", "list"]])
def test_missing_extra(module: str, args: list[str]) -> None:
    code = (
        f"import sys; sys.modules[{module!r}] = None; sys.argv[1:] = {args!r}\n"
        "from seckill.cli import main; sys.exit(main())"
    )
    done = subprocess.run(
        [sys.executable, "-P", "-c", code], capture_output=True, text=True, timeout=60
    )
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == (
        f"seckill: '{module}' is not installed; install the extra: pip install 'seckill[cli]'\n"
    )


@pytest.mark.parametrize("module", ["typer", "aiohttp", "seckill.cli.app", "seckill.embedded"])
def test_ctrl_c_while_it_is_loading(module: str) -> None:
    code = (
        "import sys\n"
        "class Impatient:\n"
        "    def find_spec(self, name, *_):\n"
        f"        if name == {module!r}: raise KeyboardInterrupt\n"
        "sys.meta_path.insert(0, Impatient()); sys.argv[1:] = ['serve', '--redis', 'redis://x:1']\n"
        "from seckill.cli import main; sys.exit(main())"
    )
    done = subprocess.run(
        [sys.executable, "-P", "-c", code], capture_output=True, text=True, timeout=60
    )
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "seckill: interrupted\n")


@pytest.mark.parametrize("command", ["demo", "serve"])
def test_missing_server_extra(command: str) -> None:
    code = (
        "import sys, importlib.util as u; sys.modules['aiohttp'] = None\n"
        "find = u.find_spec\n"
        "u.find_spec = lambda name, *a: None if name == 'aiohttp' else find(name, *a)\n"
        f"sys.argv[1:] = [{command!r}]\n"
        "from seckill.cli import main; sys.exit(main())"
    )
    done = subprocess.run(
        [sys.executable, "-P", "-c", code], capture_output=True, text=True, timeout=60
    )
    assert (done.returncode, done.stdout) == (1, "")
    assert "pip install 'seckill[server]'" in done.stderr
    assert "Traceback" not in done.stderr
