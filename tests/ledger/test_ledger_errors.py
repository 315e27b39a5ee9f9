"""Each thing that can be wrong with a database has an error of ours, which tells nobody's data."""

from __future__ import annotations

import sys
import threading
from pathlib import Path

import pytest
from sqlalchemy import text

from seckill.errors import (
    InvalidInput,
    LedgerRefused,
    LedgerUnavailable,
    MissingExtra,
)
from seckill.ledger import Ledger
from seckill.ledger.database import RowRefused, shown_url
from seckill.ledger.rows import Known, Raw
from tests.databases import DatabaseServer
from tests.support import make_sale

ORDER = "00" + 22 * "a"
HELD = Raw(1, 5, ORDER, "held||h1------900000|0|buyer-1|room=1")

# What a database may refuse: the field that does not fit, and a word that must not be told.
UNFIT = {
    "a long buyer": HELD._replace(value=f"held||h1------900000|0|{'secret' * 20}|"),
    "a large number": HELD._replace(value=f"held||h1------{9 * 10**20}|0|secret|"),
    "many units": HELD._replace(value="held||h1------900000|0:99999999999|secret|"),
    "a long id": HELD._replace(subject="secret" * 20),
}


@pytest.mark.parametrize("what", UNFIT)
async def test_a_value_that_does_not_fit(database_url: str, what: str) -> None:
    if database_url.startswith("sqlite") and what != "a large number":
        return  # SQLite's columns have no limits.
    known = Known(make_sale(), 1, "run:1")
    async with Ledger(database_url) as ledger:
        await ledger.know(known)
        with pytest.raises(RowRefused) as caught:
            await ledger.write([(known, [UNFIT[what]])])
        assert await ledger.counts(known.sale.id) == (0, 0)
    assert "secret" not in str(caught.value)
    assert "900000000000" not in str(caught.value)
    assert "99999999999" not in str(caught.value)
    assert 0 < len(str(caught.value)) <= 300


async def test_a_server_that_would_cut_values(mariadb: DatabaseServer) -> None:
    """Many shops' MySQL are not strict: a value that does not fit is cut, with a warning."""
    known = Known(make_sale(), 1, "run:1")
    async with mariadb.database() as url, Ledger(url) as ledger:
        async with ledger.engine.begin() as connection:
            lax = await connection.scalar(text("SELECT @@GLOBAL.sql_mode"))
            await connection.execute(text("SET GLOBAL sql_mode = ''"))
        await ledger.aclose()
        try:
            await ledger.know(known)
            with pytest.raises(RowRefused, match="too long for column 'buyer'"):
                await ledger.write([(known, [UNFIT["a long buyer"]])])
        finally:
            async with ledger.engine.begin() as connection:
                await connection.execute(text("SET GLOBAL sql_mode = :mode"), {"mode": lax})


async def test_a_missing_table(database_url: str) -> None:
    known = Known(make_sale(), 1, "run:1")
    async with Ledger(database_url) as ledger:
        await ledger.know(known)
        async with ledger.engine.begin() as connection:
            await connection.execute(text("DROP TABLE seckill_orders"))
        with pytest.raises(LedgerRefused, match="seckill ledger migrate") as caught:
            await ledger.write([(known, [HELD])])
        # No event is to blame for it.
        assert not isinstance(caught.value, RowRefused)
        assert "buyer-1" not in str(caught.value)
        assert (await ledger.last(known.sale.id)) == (0, 0)


async def test_a_missing_column(database_url: str) -> None:
    known = Known(make_sale(), 1, "run:1")
    async with Ledger(database_url) as ledger:
        await ledger.know(known)
        async with ledger.engine.begin() as connection:
            await connection.execute(text("ALTER TABLE seckill_orders DROP COLUMN attrs"))
        with pytest.raises(LedgerRefused, match="seckill ledger migrate") as caught:
            await ledger.write([(known, [HELD])])
        assert not isinstance(caught.value, RowRefused)


async def refusal_of(url: str) -> str:
    with pytest.raises(LedgerRefused) as caught:
        await Ledger(url).start()
    assert not isinstance(caught.value, RowRefused)
    return str(caught.value)


async def test_a_server_that_does_not_let_us_in(database_server: DatabaseServer) -> None:
    async with database_server.database() as url:
        said = await refusal_of(url.replace(database_server.password, "wr0ng"))
        assert "the user and the password of ledger.url" in said
        assert "wr0ng" not in said
        said = await refusal_of(url.rpartition("/")[0] + "/nowhere")
        assert "nowhere" in said
        assert "make the database" in said
        assert database_server.password not in said


async def test_a_user_who_may_not_write(postgres: DatabaseServer) -> None:
    """Tables that are up to date need no right to change them."""
    async with postgres.database() as url, Ledger(url) as ledger:
        who = f"reader_{url.rpartition('/')[2]}"
        async with ledger.engine.begin() as connection:
            await connection.execute(text(f"CREATE USER {who} PASSWORD 'pw-1'"))
            grant = f"GRANT SELECT ON ALL TABLES IN SCHEMA public TO {who}"
            await connection.execute(text(grant))
        user = url.partition("://")[2].partition("@")[0]
        try:
            async with Ledger(url.replace(user, f"{who}:pw-1")) as reader:
                with pytest.raises(LedgerRefused, match="the right to write") as caught:
                    await reader.know(Known(make_sale(), 1, "run:1"))
                assert "pw-1" not in str(caught.value)
                assert await reader.sales() == []
        finally:
            async with ledger.engine.begin() as connection:
                await connection.execute(text(f"DROP OWNED BY {who}"))
                await connection.execute(text(f"DROP USER {who}"))


async def test_a_server_that_is_away(database_server: DatabaseServer) -> None:
    known = Known(make_sale(), 1, "run:1")
    async with database_server.database() as url, Ledger(url) as ledger:
        await ledger.know(known)
        database_server.stop(kill=True)
        for work in (ledger.start, ledger.sales, lambda: ledger.write([(known, [HELD])])):
            with pytest.raises(LedgerUnavailable, match="does the database run") as caught:
                await work()
            assert database_server.password not in str(caught.value)
        database_server.start()
        # The very same connections do again.
        await ledger.write([(known, [HELD])])
        assert await ledger.counts(known.sale.id) == (1, 1)


async def test_a_server_that_was_restarted_meanwhile(database_server: DatabaseServer) -> None:
    """Nobody is told of connections that were cut while nobody used them."""
    async with database_server.database() as url, Ledger(url) as ledger:
        assert await ledger.sales() == []
        database_server.stop(kill=True)
        database_server.start()
        assert await ledger.sales() == []


async def test_sqlite_where_nobody_may_write(tmp_path: Path) -> None:
    path = tmp_path / "ledger.db"
    async with Ledger(f"sqlite:///{path}") as ledger:
        await ledger.know(Known(make_sale(), 1, "run:1"))
    reader = Ledger(f"sqlite:///file:{path}?mode=ro&uri=true")
    async with reader:
        assert len(await reader.sales()) == 1
        with pytest.raises(LedgerRefused, match="the right to write"):
            await reader.know(Known(make_sale(), 1, "run:1"))
    threads = set(threading.enumerate())
    with pytest.raises(LedgerUnavailable, match="is there such a folder"):
        await Ledger(f"sqlite:///{tmp_path}/nowhere/ledger.db").start()
    assert set(threading.enumerate()) <= threads
    with pytest.raises(InvalidInput, match="is a folder; name a file in it"):
        Ledger(f"sqlite:///{tmp_path}")


@pytest.mark.parametrize("scheme", ["sqlite", "postgresql", "mysql", "mariadb"])
def test_a_missing_driver(scheme: str, monkeypatch: pytest.MonkeyPatch) -> None:
    module = {"sqlite": "aiosqlite", "postgresql": "asyncpg"}.get(scheme, "asyncmy")
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(MissingExtra, match=rf"{module}.* pip install 'seckill\[") as caught:
        Ledger(f"{scheme}://user:hush@host/name")
    assert "hush" not in str(caught.value)


@pytest.mark.parametrize(
    ("url", "problem"),
    [
        ("", "is not a URL"),
        ("ledger.db", "is not a URL"),
        ("postgresql://u:hush@h:port/x", "is not a URL"),
        ("postgresql://u:hush@[::1/x", "is not a URL"),
        ("oracle://u:hush@h/x", "'oracle' is no database"),
        ("postgresql+psycopg2://u:hush@h/x", "is no database"),
        ("sqlite://", "names no file"),
        ("postgresql://u:hush@h", "names no file and no database"),
        ("mysql://u:hush@h/", "names no file and no database"),
        ("postgresql://u:hush@h/x?connect_timeout=hush", "'connect_timeout' can't be set"),
        ("mysql://u:hush@h/x?local_infile=1", "'local_infile' can't be set"),
    ],
)
def test_a_bad_url(url: str, problem: str) -> None:
    with pytest.raises(InvalidInput, match=problem) as caught:
        Ledger(url)
    assert (caught.value.field, bool(caught.value.remedy)) == ("ledger.url", True)
    assert "hush" not in str(caught.value)


def test_a_shown_url_has_no_password() -> None:
    assert shown_url("postgresql://u:hush@h/x") == "postgresql+asyncpg://u:***@h/x"


async def test_a_url_with_options(postgres: DatabaseServer) -> None:
    async with postgres.database() as url, Ledger(f"{url}?sslmode=prefer") as ledger:
        assert await ledger.sales() == []
