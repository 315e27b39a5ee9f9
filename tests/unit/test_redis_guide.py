"""docs/redis.md knows every form and every option of an address, and no other."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from seckill.address import read_address
from seckill.url_options import OPTIONS, SENTINEL_OPTIONS

GUIDE = (Path(__file__).parents[2] / "docs" / "redis.md").read_text("utf-8")
BLOCKS = re.findall(r"(?ms)^```\n(.*?)^```$", GUIDE)


def test_the_options_are_those_of_the_code() -> None:
    table = GUIDE.partition("| option | means |\n")[2].partition("\n\n")[0]
    told = {
        name for row in table.splitlines() for name in re.findall(r"`(\w+)`", row.split("|")[1])
    }
    assert told == OPTIONS | SENTINEL_OPTIONS


def forms() -> list[str]:
    """What stands in the guide as an address; where it leaves something out, with something."""
    found = [form for block in BLOCKS for form in re.findall(r"\S+://\S+", block)]
    words = {"[user:password@]": "u:p@", ":port": ":6379", "/db": "/0", ",…": ""}
    return [
        re.sub("|".join(map(re.escape, words)), lambda at: words[at[0]], form) for form in found
    ]


@pytest.mark.parametrize("form", [form for form in forms() if "…" not in form])
def test_every_form_is_understood(form: str, tmp_path: Path) -> None:
    password = tmp_path / "password"
    password.write_text("guarded\n", "utf-8")
    address = read_address(re.sub(r"password_file=\S+", f"password_file={password}", form))
    wanted = re.search(r"\+(sentinel|cluster)://", form)
    assert address.kind == (wanted[1] if wanted else "single")
    assert address.nodes


def test_the_guide_shows_each_kind() -> None:
    kinds = {re.match(r"[\w+]+", form)[0] for form in forms()}  # type: ignore[index]
    assert {"redis", "rediss", "unix"} <= kinds
    assert {"redis+sentinel", "rediss+sentinel", "redis+cluster", "rediss+cluster"} <= kinds
