"""``seckill groups`` as the person on duty has it."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest
import redis

from seckill.keys import group_keys, stream_key
from tests.cli.conftest import Seckill


@pytest.mark.slow
def test_list_and_drop(
    seckill: Seckill, sale_file: Callable[..., tuple[str, Path]], client: redis.Redis
) -> None:
    sale, path = sale_file()
    assert seckill("sale", "create", str(path), "--open").code == 0
    stream = stream_key(sale)
    for group in ("mall", "points"):
        client.xgroup_create(stream, group, id="0")
    client.xreadgroup("mall", "one", {stream: ">"}, count=1)
    listed = seckill("groups", "list", sale)
    assert re.search(r"mall +1 +1 +\d+ s +1 +yes +0\n", listed.out)
    assert re.search(r"points +2 +0 +\d+ s +0 +no +0\n", listed.out)
    rows = seckill("groups", "list", sale, "--json").data
    assert [(row["name"], row["unread"], row["active"]) for row in rows] == [
        ("mall", 1, True),
        ("points", 2, False),
    ]

    dropped = seckill("groups", "drop", sale, "points")
    assert dropped.code == 0
    assert (
        dropped.out == "✓ points is forgotten: 2 events unread, 0 entries pending, 0 dead letters\n"
    )
    busy = seckill("groups", "drop", sale, "mall")
    assert (busy.code, "GROUP: 'mall' is being read; stop its consumers" in busy.err) == (2, True)
    client.hset(group_keys(sale, "mall").dead, "1:sale", "x")
    forced = seckill("groups", "drop", sale, "mall", "--force", "--json")
    assert forced.data == {"group": "mall", "unread": 1, "pending": 1, "letters": 1}
    absent = seckill("groups", "drop", sale, "mall")
    assert (absent.code, "there are: none" in absent.err) == (2, True)
    assert client.xinfo_groups(stream) == []
    assert seckill("groups", "list", sale).out == "no groups: nobody reads this sale's events\n"
