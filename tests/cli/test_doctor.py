"""``seckill doctor`` as a user has it; that each fault is found is in tests/integration."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest

from seckill.doctor import CHECKS
from tests.cli.conftest import Seckill, run_seckill

SaleFile = Callable[..., tuple[str, Path]]
GUIDE = Path(__file__).parents[2] / "docs" / "operations.md"


def test_a_sale_to_come_and_one_that_was_never_opened(
    seckill: Seckill, sale_file: SaleFile
) -> None:
    sale, path = sale_file("2099-01-01T20:00:00+08:00")
    seckill("sale", "create", str(path), "--open")
    done = seckill("doctor", sale)
    assert (done.code, done.err) == (0, "")
    assert "✓  sale" in done.out
    assert "it is open; it opens at 20:00:00, in " in done.out
    # What is asked of the server is "memory", and nobody reads the events: yellow, not red.
    assert re.search(rf"(?m)^! sale {sale}: nothing is red, [2-5] yellow$", done.out)
    assert "→ start your worker" in done.out
    assert seckill("doctor", sale, "--strict").code == 1
    sale, path = sale_file()
    seckill("sale", "create", str(path))
    done = seckill("doctor", sale)
    assert done.code == 1
    assert "✗  window" in done.out
    assert f"→ run `seckill sale open {sale}`" in done.out
    assert re.search(rf"(?m)^✗ sale {sale}: 1 red, [2-5] yellow$", done.out)


def test_json(seckill: Seckill, sale_file: SaleFile) -> None:
    sale, path = sale_file()
    seckill("sale", "create", str(path), "--open")
    done = seckill("doctor", sale, "--json")
    assert (done.code, done.data["ok"], done.data["level"]) == (0, True, "yellow")
    strict = seckill("doctor", sale, "--json", "--strict")
    assert (strict.code, strict.data["ok"]) == (1, False)
    checks = [finding["check"] for finding in done.data["findings"]]
    order = [check for group in CHECKS.values() for check in group]
    assert checks == [check for check in order if check in checks]
    # Without a settings file, only this process is checked of the intake.
    assert checks[-1] == "open-files"


def test_a_data_directory_whose_server_does_not_run(sale_file: SaleFile, tmp_path: Path) -> None:
    sale, path = sale_file("2099-01-01T20:00:00+08:00")
    at = ("--embedded", "data")
    assert run_seckill("sale", "create", str(path), "--open", *at, cwd=tmp_path).code == 0
    done = run_seckill("doctor", sale, *at, "--json", cwd=tmp_path)
    assert done.code == 0
    levels = {finding["check"]: finding["level"] for finding in done.data["findings"]}
    # A machine that runs tests is busy, which is not the matter here.
    turned = {check for check in levels if levels[check] != "green"}
    assert turned - {"latency", "fsync", "slow-log"} == {"groups"}
    assert "home" in levels


def test_settings_name_the_server(
    seckill: Seckill, sale_file: SaleFile, tmp_path: Path, server_url: str
) -> None:
    sale, path = sale_file("2099-01-01T20:00:00+08:00")
    seckill("sale", "create", str(path), "--open")
    config = tmp_path / "seckill.toml"
    config.write_text(f'[redis]\nurl = "{server_url}"\ndurability = "memory"\n', "utf-8")
    done = run_seckill("doctor", sale, "--config", str(config), "--json", cwd=tmp_path)
    levels = {finding["check"]: finding["level"] for finding in done.data["findings"]}
    assert (levels["sale"], levels["persistence"]) == ("green", "yellow")
    assert (levels["settings"], levels["secrets"]) == ("green", "red")


@pytest.mark.parametrize("named", ["option", "settings"])
def test_replicas_are_counted(
    sale_file: SaleFile, seckill: Seckill, tmp_path: Path, server_url: str, named: str
) -> None:
    sale, path = sale_file("2099-01-01T20:00:00+08:00")
    seckill("sale", "create", str(path), "--open")
    args = ["--redis", server_url, "--durability", "replicas:2"]
    if named == "settings":
        config = tmp_path / "seckill.toml"
        config.write_text(f'[redis]\nurl = "{server_url}"\ndurability = "replicas:2"\n', "utf-8")
        args = ["--config", str(config)]
    done = run_seckill("doctor", sale, *args, "--json", cwd=tmp_path)
    findings = {finding["check"]: finding for finding in done.data["findings"]}
    assert (done.code, findings["replicas"]["level"]) == (1, "red")
    assert findings["replicas"]["seen"] == "0 in step, and every order waits for 2"
    assert "appendfsync" not in str(findings["persistence"])


@pytest.fixture
def server_url(seckill: Seckill, server: object) -> str:
    return str(server.url)  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("args", "code", "text"),
    [
        (("doctor", "[red]晚8点"), 2, "sale: '[red]晚8点' holds '['"),
        (("doctor", "x", "--redis", "127.0.0.1:6379"), 2, "is not a Redis URL"),
        (("doctor", "x"), 2, "give --redis URL or --embedded DIR"),
        (
            ("doctor", "x", "--redis", "redis://127.0.0.1:1", "--durability", "replicas:0"),
            2,
            "'replicas:0' is unknown",
        ),
        (("doctor", "x", "--embedded", "/proc"), 2, "/proc holds no server's data"),
    ],
)
def test_bad_input(tmp_path: Path, args: tuple[str, ...], code: int, text: str) -> None:
    done = run_seckill(*args, cwd=tmp_path)
    assert (done.code, done.out) == (code, "")
    assert text in done.err


def test_a_server_that_is_away_and_settings_that_are_wrong(tmp_path: Path) -> None:
    config = tmp_path / "seckill.toml"
    config.write_text("[server]\nport = 99999\nworker = 2\n", "utf-8")
    args = ("doctor", "x", "--redis", "redis://u:pw@127.0.0.1:1", "--config", str(config))
    done = run_seckill(*args, cwd=tmp_path)
    assert (done.code, done.err) == (1, "")
    assert "✗  server" in done.out
    assert "redis://127.0.0.1:1 can't be examined" in done.out
    assert "server.port" in done.out
    assert "server.worker" in done.out
    assert "pw" not in done.out
    assert "✗ sale x: 2 red, 0 yellow\n" in done.out


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('[users]\nsecrets = ["file:gone"]\n', "users.secrets[0]"),
        ("[users\n", "is not TOML"),
    ],
)
def test_settings_with_errors_that_alone_name_the_server(
    tmp_path: Path, text: str, said: str
) -> None:
    config = tmp_path / "seckill.toml"
    config.write_text(f'[redis]\nurl = "redis://127.0.0.1:1"\n{text}', "utf-8")
    done = run_seckill("doctor", "x", "--config", str(config), "--json", cwd=tmp_path)
    assert (done.code, done.err) == (1, "")
    findings = {finding["check"]: finding for finding in done.data["findings"]}
    assert findings.keys() == {"server", "open-files", "settings"}
    assert (findings["settings"]["level"], findings["server"]["level"]) == ("red", "red")
    assert said in findings["settings"]["seen"]
    assert "not known" in findings["server"]["seen"]


def test_every_check_is_documented() -> None:
    """The guide's table of checks has a row for each, in the order of a report."""
    rows = re.findall(r"(?m)^\| `([a-z-]+)` \|", GUIDE.read_text("utf-8"))
    order = [check for group in CHECKS.values() for check in group]
    assert [name for name in rows if name in order] == order
