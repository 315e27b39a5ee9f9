"""Sale files: the good ones load, and every bad one says which file, line, field and remedy."""

from __future__ import annotations

import contextlib
import os
import tomllib
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from seckill.errors import SaleFileError
from seckill.sale import Item
from seckill.salefile import _toml_lines, load_items_csv, load_sale

EXAMPLES = Path(__file__).parents[2] / "examples"

HEADER = "sku,title,price_fen,total,list_price_fen,list_price_basis,limit_per_buyer\n"
RICE = "rice-5kg,五常大米,4990,300,6990,近30天最低成交价,2\n"
TISSUE = "tissue,原木抽纸,2990,500,,,\n"
CSV = HEADER + RICE + TISSUE
ITEMS = (
    Item(
        sku="rice-5kg",
        title="五常大米",
        price_fen=4990,
        total=300,
        list_price_fen=6990,
        list_price_basis="近30天最低成交价",
        limit_per_buyer=2,
    ),
    Item(sku="tissue", title="原木抽纸", price_fen=2990, total=500),
)

TOML = """\
id = "evening"
title = "晚8点秒杀"
opens_at = 2026-11-28T20:00:00+08:00
ends_at = 2026-11-28T22:00:00+08:00
items = "items.csv"
"""
INLINE = """\
id = "evening"
title = "晚8点秒杀"
opens_at = 2026-11-28T20:00:00+08:00
ends_at = 2026-11-28T22:00:00+08:00

[[items]]
sku = "rice-5kg"
title = "五常大米"
price_fen = 4990
total = 300
list_price_fen = 6990
list_price_basis = "近30天最低成交价"
limit_per_buyer = 2

[[items]]
sku = "tissue"
title = "原木抽纸"
price_fen = 2990
total = 500
"""


def write(path: Path, content: str | bytes) -> Path:
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def refused(
    load: Any, path: Path, line: int | None, field: str, problem: str, remedy: str
) -> SaleFileError:
    with pytest.raises(SaleFileError) as caught:
        load(path)
    error = caught.value
    assert (error.file, error.line, error.field) == (str(path), line, field), error
    assert problem in error.problem
    assert remedy in error.remedy
    where = str(path) if line is None else f"{path}:{line}"
    assert str(error).startswith(f"{where}: {field}: ")
    assert error.__suppress_context__  # The message is the whole story on a terminal.
    return error


# Files that load


def test_the_example_is_a_believable_evening() -> None:
    sale = load_sale(EXAMPLES / "evening-sale.toml")
    assert sale.opens_at == datetime(2026, 11, 28, 12, tzinfo=UTC)
    assert len(sale.items) == 5
    assert sale.total_units == 1_000
    assert min(item.total for item in sale.items) <= 20
    assert {item.limit_per_buyer for item in sale.items} == {0, 1, 2}
    assert sale.items == load_items_csv(EXAMPLES / "evening-sale.csv")
    assert load_sale(str(EXAMPLES / "evening-sale.toml")) == sale


@pytest.mark.parametrize(
    "data",
    [
        CSV.encode(),
        CSV.encode("utf-8-sig"),
        CSV.encode("gbk"),
        CSV.encode("gb18030"),
        CSV.replace("\n", "\r\n").encode("gbk"),
        CSV.replace("\n", "\r").encode(),
        CSV.removesuffix("\n").encode(),
        (CSV + "\n\r\n,,,,,,\n  \n").encode(),
        CSV.replace(",", " , ").encode(),
        CSV.replace("五常大米", '  "五常大米"').encode(),
        CSV.replace("五常大米", '"五常大米\n"').encode(),
        CSV.replace("五常大米", "五常大米\u3000").encode(),
    ],
    ids=[
        "utf-8",
        "bom",
        "gbk",
        "gb18030",
        "gbk-crlf",
        "cr",
        "no-last-newline",
        "empty-lines-at-the-end",
        "blanks",
        "blanks-before-a-quote",
        "newline-in-quotes",
        "ideographic-space",
    ],
)
def test_csv_loads(tmp_path: Path, data: bytes) -> None:
    assert load_items_csv(write(tmp_path / "items.csv", data)) == ITEMS


def test_csv_columns_may_stand_in_any_order_and_optional_ones_be_absent(tmp_path: Path) -> None:
    path = write(tmp_path / "items.csv", "total,price_fen,title,sku\n500,2990,原木抽纸,tissue\n")
    assert load_items_csv(path) == ITEMS[1:]


def test_csv_takes_a_thousand_rows(tmp_path: Path) -> None:
    rows = "".join(f"sku-{n},甲,1,1\n" for n in range(1_000))
    assert (
        len(load_items_csv(write(tmp_path / "a.csv", f"sku,title,price_fen,total\n{rows}"))) == 1000
    )


def test_toml_with_a_csv_beside_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "sales"
    folder.mkdir()
    write(folder / "items.csv", CSV.encode("gbk"))
    path = write(folder / "sale.toml", TOML + "hold_ms = 1000\npay_ms = 604_800_000\n")
    sale = load_sale(path)
    assert sale.items == ITEMS
    assert (sale.hold_ms, sale.pay_ms) == (1_000, 604_800_000)
    # The path is relative to the TOML, wherever the command was started.
    monkeypatch.chdir(tmp_path)
    assert load_sale("sales/sale.toml") == sale


@pytest.mark.parametrize(
    "text",
    [INLINE, "\ufeff" + INLINE, INLINE.replace("\n", "\r\n")],
    ids=["plain", "bom", "crlf"],
)
def test_toml_with_items_inside(tmp_path: Path, text: str) -> None:
    assert load_sale(write(tmp_path / "sale.toml", text)).items == ITEMS


def test_toml_with_items_in_one_array(tmp_path: Path) -> None:
    inline = TOML.replace(
        '"items.csv"', '[\n  { sku = "a", title = "甲", price_fen = 1, total = 2 },\n]'
    )
    sale = load_sale(write(tmp_path / "sale.toml", inline))
    assert sale.items == (Item(sku="a", title="甲", price_fen=1, total=2),)


# Bad CSV files: content, line, field, problem, remedy


def row(**cells: str) -> str:
    """The header, a good first row, and on line 3 a row with these cells changed."""
    names = HEADER.strip().split(",")
    good = dict(zip(names, ["soap", "香皂", "990", "10", "", "", ""], strict=True))
    return HEADER + TISSUE + ",".join((good | cells).values()) + "\n"


BAD_CSV: dict[str, tuple[str | bytes, int | None, str, str, str]] = {
    "empty": (b"", None, "file", "is empty", "right file"),
    "only-bom": (b"\xef\xbb\xbf\r\n", None, "file", "is empty", "right file"),
    "only-commas": (",,,\n,,\n", 1, "sku", "not in the header", "sku, title, price_fen, total"),
    "only-header": (HEADER, 1, "items", "no row", "a row for each item"),
    "no-header": (RICE, 1, "rice-5kg", "not a column", "write one of sku, title"),
    "utf-16": (CSV.encode("utf-16"), 1, "file", "UTF-16", "save it as UTF-8 or GBK"),
    "nul": (CSV.encode().replace(b"500", b"5\x000"), 3, "file", "NUL byte", "save it as UTF-8"),
    "nul-cr": (b"a\rb\r\nc\nd\x00", 4, "file", "NUL byte", "save it as UTF-8"),
    "neither-utf8-nor-gbk": (
        CSV.encode("gbk").replace(b"2990", b"\xff\xff"),
        3,
        "file",
        "byte 0xFF is neither valid UTF-8 nor GBK",
        "save it as UTF-8 or GBK",
    ),
    # GB18030 would read this one without complaint, and sell nonsense titles.
    "utf8-with-one-character-cut": (
        CSV.encode().replace("抽".encode(), "抽".encode()[:2]),
        3,
        "file",
        "not valid UTF-8",
        "save it as UTF-8",
    ),
    "bom-and-then-gbk": (
        b"\xef\xbb\xbf" + CSV.encode("gbk"),
        2,
        "file",
        "not valid UTF-8",
        "save it as UTF-8",
    ),
    "mangled-before": (row(title="香\ufffd"), 3, "title", "U+FFFD", "plain text"),
    "semicolons": (CSV.replace(",", ";"), 1, "header", "not separated by commas", "commas"),
    "tabs": (CSV.replace(",", "\t"), 1, "header", "not separated by commas", "commas"),
    "empty-first-line": ("\n" + CSV, 1, "row", "is empty although rows", "delete the empty line"),
    "empty-line-between": (
        HEADER + RICE + "\n,,,\n" + TISSUE,
        3,
        "row",
        "is empty although rows",
        "delete the empty line",
    ),
    "unknown-column": (
        CSV.replace("price_fen,total", "prise_fen,total", 1),
        1,
        "prise_fen",
        "not a column",
        "did you mean price_fen?",
    ),
    "capital-column": (CSV.replace("sku", "SKU", 1), 1, "SKU", "not a column", "mean sku?"),
    "chinese-column": (
        CSV.replace("title", "标题", 1),
        1,
        "标题",
        "not a column",
        "write one of sku, title",
    ),
    "column-without-name": (
        CSV.replace("\n", ",\n"),
        1,
        "header",
        "column 8 has no name",
        "name the column or delete it",
    ),
    "column-twice": (
        "sku,title,price_fen,total,sku\na,甲,1,1,a\n",
        1,
        "sku",
        "is there twice",
        "delete one",
    ),
    "column-missing": (
        "sku,title,total\na,甲,1\n",
        1,
        "price_fen",
        "not in the header",
        "sku, title, price_fen, total",
    ),
    "row-too-short": (HEADER + "a,甲,1,1\n", 2, "row", "has 4 cells, not 7", "put quotes around"),
    "row-too-long": (CSV + TISSUE.replace("2990", "2,990"), 4, "row", "8 cells", "put quotes"),
    "quote-not-closed": (CSV + 'a,"甲,1,1,,,\n\n', 4, "csv", "not valid CSV", "close every quote"),
    "text-after-quote": (CSV + 'a,"甲"乙,1,1,,,\n', 4, "csv", "not valid CSV", "twice"),
    "cell-too-large": (row(title="x" * 200_000), 3, "csv", "field limit", "close every quote"),
    "empty-sku": (row(sku=""), 3, "sku", "is empty", "fill in the cell"),
    "blank-title": (row(title="  \u3000"), 3, "title", "is empty", "fill in the cell"),
    "empty-price": (row(price_fen=""), 3, "price_fen", "is empty", "fill in the cell"),
    "empty-total": (row(total=" "), 3, "total", "is empty", "fill in the cell"),
    "sku-with-space": (row(sku="so ap"), 3, "sku", "holds ' '", "0-9 A-Z"),
    "sku-turned-into-a-number": (row(sku="6.93E+12"), 3, "sku", "holds '+'", "0-9 A-Z"),
    "sku-twice": (CSV + RICE, 4, "sku", "'rice-5kg' is already on line 2", "use a SKU once"),
    "line-break-in-title": (row(title='"香\n皂"'), 3, "title", "U+000A", "one line"),
    "price-with-decimals": (row(price_fen="99.00"), 3, "price_fen", "'99.00'", "write 9900 "),
    "price-with-one-decimal": (row(price_fen="9.9"), 3, "price_fen", "'9.9'", "write 990 "),
    "price-with-sign": (row(price_fen="¥99"), 3, "price_fen", "'¥99'", "write 9900 "),
    "price-with-wide-sign": (row(price_fen="￥99.5"), 3, "price_fen", "'￥99.5'", "write 9950 "),
    "price-in-yuan": (row(price_fen="99元"), 3, "price_fen", "'99元'", "write 9900 "),
    "price-with-thousands": (
        row(price_fen='"1,299"'),
        3,
        "price_fen",
        "'1,299'",
        "prices are in fen: write 1299 (¥12.99), without the comma",
    ),
    "price-with-thousands-in-full-width": (
        row(price_fen="299，900"),
        3,
        "price_fen",
        "'299，900'",
        "prices are in fen: write 299900 (¥2,999.00), without the comma",
    ),
    "price-with-thousands-and-sign": (
        row(price_fen='"¥1,299"'),
        3,
        "price_fen",
        "'¥1,299'",
        "write 129900 for 1299.00 yuan",
    ),
    "price-with-three-decimals": (
        row(price_fen="9.999"),
        3,
        "price_fen",
        "'9.999'",
        "9900 for 99.00 yuan",
    ),
    "price-in-full-width-digits": (
        row(price_fen="９９００"),
        3,
        "price_fen",
        "'９９００'",
        "write 9900",
    ),
    "price-in-arabic-digits": (row(price_fen="\u0661"), 3, "price_fen", "whole", "9900 for"),
    "price-with-zeros-in-front": (row(price_fen="0990"), 3, "price_fen", "'0990'", "plain digits"),
    "price-with-underscore": (row(price_fen="9_900"), 3, "price_fen", "'9_900'", "plain digits"),
    "price-scientific": (row(price_fen="1E+05"), 3, "price_fen", "'1E+05'", "9900 for 99.00"),
    "price-negative": (row(price_fen="-1"), 3, "price_fen", "-1 is out of range", "0 to"),
    "price-huge": (row(price_fen="1" * 12), 3, "price_fen", "out of range", "10000000000"),
    "price-with-5000-digits": (row(price_fen="1" * 5_000), 3, "price_fen", "whole", "plain digits"),
    "price-above-list-price": (
        row(list_price_fen="989", list_price_basis="近30天最低成交价"),
        3,
        "list_price_fen",
        "989 is below price_fen 990",
        "at least the price",
    ),
    "list-price-without-basis": (
        row(list_price_fen="1990"),
        3,
        "list_price_basis",
        "is missing",
        "近30天最低成交价",
    ),
    "basis-without-list-price": (
        row(list_price_basis="原价"),
        3,
        "list_price_fen",
        "is missing",
        "in fen",
    ),
    "list-price-in-yuan": (
        row(list_price_fen="19.90", list_price_basis="原价"),
        3,
        "list_price_fen",
        "'19.90'",
        "write 1990 ",
    ),
    "total-with-thousands": (row(total='"1,000"'), 3, "total", "'1,000'", "write 1000"),
    "total-with-decimals": (row(total="10.0"), 3, "total", "'10.0'", "write 10"),
    "total-not-whole": (row(total="10.5"), 3, "total", "'10.5'", "a whole number"),
    "total-negative": (row(total="-10"), 3, "total", "-10 is out of range", "0 to 1000000000"),
    "total-huge": (row(total="9" * 30), 3, "total", "a huge number", "0 to 1000000000"),
    "total-a-word": (row(total="十"), 3, "total", "'十'", "a whole number"),
    "limit-negative": (row(limit_per_buyer="-1"), 3, "limit_per_buyer", "-1", "0 = no limit"),
    "limit-a-word": (row(limit_per_buyer="不限"), 3, "limit_per_buyer", "'不限'", "whole number"),
    "line-after-a-cell-of-three-lines": (
        HEADER + 'a,"\n甲\n",1,1,,,\n' + "b,乙,x,1,,,\n",
        5,
        "price_fen",
        "'x'",
        "whole fen",
    ),
    "line-of-a-row-of-three-lines": (
        HEADER + RICE + 'a,"\r\n甲\r\n",x,1,,,\n',
        3,
        "price_fen",
        "'x'",
        "whole fen",
    ),
    "too-many-rows": (
        HEADER + "".join(f"s{n},甲,1,1,,,\n" for n in range(1_001)),
        1_002,
        "items",
        "is row 1001",
        "at most 1000 rows",
    ),
    "too-large": (HEADER + "x" * (4 * 1024 * 1024), None, "file", "larger than 4 MiB", "1000"),
}


@pytest.mark.parametrize("name", BAD_CSV)
def test_bad_csv(tmp_path: Path, name: str) -> None:
    content, line, field, problem, remedy = BAD_CSV[name]
    path = write(tmp_path / "items.csv", content)
    refused(load_items_csv, path, line, field, problem, remedy)


@pytest.mark.parametrize("load", [load_items_csv, load_sale])
def test_what_is_not_a_file(tmp_path: Path, load: Any) -> None:
    refused(load, tmp_path / "missing", None, "file", "does not exist", "check the path")
    refused(load, tmp_path, None, "file", "is a directory", "name a file")
    refused(load, tmp_path / ("x" * 300), None, "file", "cannot be read", "check its path")
    refused(load, tmp_path / "a\0b", None, "file", "cannot be read", "check its path")
    os.mkfifo(tmp_path / "pipe")
    refused(load, tmp_path / "pipe", None, "file", "not a regular file", "name a file")
    refused(load, Path("/dev/zero"), None, "file", "not a regular file", "name a file")


def test_a_file_that_may_not_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # The tests may run as root, who may read every file.
    def refuse(*_: Any) -> None:
        raise PermissionError(13, "Permission denied")

    path = write(tmp_path / "items.csv", CSV)
    monkeypatch.setattr(Path, "open", refuse)
    refused(load_items_csv, path, None, "file", "Permission denied", "permissions")


# Bad TOML files: text, line, field, problem, remedy

NASTY = '''\
# price_fen = 1, and [[items]] in a comment
title = """
price_fen = 2
[[items]]
晚8点"""
'id' = "evening" # id = "x"
opens_at = 2026-11-28T20:00:00+08:00
"ends_at" = 2026-11-28T22:00:00+08:00
  [[ items ]]
  title = "[[items]] price_fen = 3 # no comment"
  sku = 'a'
price_fen=1
total   =   1

[["items"]] # the second
  price_fen = "7"
'''


def swap(text: str, old: str, new: str) -> str:
    assert old in text
    return text.replace(old, new)


BAD_TOML: dict[str, tuple[str | bytes, int | None, str, str, str]] = {
    "empty": ("", None, "file", "is empty", "right file"),
    "nul": (TOML.encode() + b"\0", 6, "file", "NUL byte", "save it as UTF-8"),
    "utf-16": (TOML.encode("utf-16"), 1, "file", "UTF-16", "save it as UTF-8"),
    "gbk": (TOML.encode("gbk"), 2, "file", "byte 0xCD is not valid", "save it as UTF-8"),
    "too-large": (TOML + "#" * 4 * 1024 * 1024, None, "file", "larger than 4 MiB", "1000"),
    "syntax": (swap(TOML, "title =", "title"), 2, "toml", "not valid TOML", "correct the syntax"),
    "syntax-at-the-end": (TOML + 'x = "', 6, "toml", "Unterminated string", "correct the syntax"),
    "no-such-day": (swap(TOML, "11-28T22", "11-31T22"), 4, "toml", "Invalid date", "correct"),
    "key-twice": (swap(TOML, "ends_at", "opens_at"), 4, "toml", "overwrite", "correct the syntax"),
    "full-width-quotes": (swap(TOML, '"evening"', "“evening”"), 1, "toml", "value", "correct"),
    "number-of-5000-digits": (
        f"{TOML}max_lapsed = {'9' * 5_000}\n",
        6,
        "toml",
        "thousands of digits",
        "a smaller number",
    ),
    "deep": ("x = " + "[" * 5_000, None, "toml", "nested too deeply", "plain keys"),
    "key-missing": (swap(TOML, 'id = "evening"\n', ""), None, "id", "is missing", "needs id"),
    "items-missing": (swap(TOML, 'items = "', 'title2 = "'), 5, "title2", "not a key", "title?"),
    "no-items": (swap(TOML, 'items = "items.csv"', ""), None, "items", "is missing", "items"),
    "unknown-key": (TOML + "hold = 900_000\n", 6, "hold", "not a key of a sale", "hold_ms?"),
    "unknown-key-far-off": (TOML + "x = 0.8\n", 6, "x", "not a key", "write one of id, title"),
    "unknown-table": (TOML + "[limits]\nper_order = 1\n", 6, "limits", "not a key", "limit_per"),
    "open-admission": (
        TOML + '[admission]\nmode = "open"\n',
        7,
        "admission.mode",
        "is what a sale without an admission is",
        "for an open sale remove [admission]",
    ),
    "admission-without-mode": (
        TOML + "[admission]\nrate_per_s = 5\n",
        6,
        "admission.mode",
        "is missing",
        "write queue, shuffle or draw",
    ),
    "dotted-key": (TOML + "limits.per_order = 1\n", 6, "limits", "not a key", "limit_per"),
    "local-time": (
        swap(TOML, "20:00:00+08:00", "20:00:00"),
        3,
        "opens_at",
        "no offset from UTC",
        "write 2026-11-28T20:00:00+08:00",
    ),
    "only-a-date": (
        swap(TOML, "2026-11-28T22:00:00+08:00", "2026-11-28"),
        4,
        "ends_at",
        "no time of day",
        "write 2026-11-28T20:00:00+08:00",
    ),
    "time-in-quotes": (
        swap(TOML, "2026-11-28T20:00:00+08:00", '"2026-11-28T20:00:00+08:00"'),
        3,
        "opens_at",
        "is not a time",
        "without quotes",
    ),
    "time-as-a-number": (
        swap(TOML, "2026-11-28T20:00:00+08:00", "1795867200000"),
        3,
        "opens_at",
        "is not a time",
        "write 2026-11-28T20:00:00+08:00",
    ),
    "ends-before-it-opens": (
        swap(TOML, "28T22", "27T22"),
        4,
        "ends_at",
        "is not after opens_at",
        "after opens_at",
    ),
    "year-1926": (swap(TOML, "2026-11-28T20", "1926-11-28T20"), 3, "opens_at", "range", "2000"),
    "bad-id": (swap(TOML, "evening", "evening sale"), 1, "id", "holds ' '", "0-9 A-Z"),
    "title-a-number": (swap(TOML, '"晚8点秒杀"', "8"), 2, "title", "is 8, not text", "text"),
    "title-a-float": (swap(TOML, '"晚8点秒杀"', "8.5"), 2, "title", "a decimal number", "text"),
    "hold-in-seconds": (TOML + "hold_ms = 900\n", 6, "hold_ms", "less than a second", "900000 is"),
    "pay-zero": (TOML + "\npay_ms = 0\n", 7, "pay_ms", "0 is out of range", "milliseconds"),
    "hold-too-long": (TOML + "hold_ms = 604800001\n", 6, "hold_ms", "out of range", "7 days"),
    "hold-as-text": (TOML + 'hold_ms = "15m"\n', 6, "hold_ms", "'15m'", "a whole number"),
    "hold-in-quotes": (TOML + 'hold_ms = "900000"\n', 6, "hold_ms", "'900000'", "write 900000"),
    "hold-with-decimals": (TOML + "hold_ms = 9e5\n", 6, "hold_ms", "'9e5'", "a whole number"),
    "limit-true": (TOML + "limit_per_order = true\n", 6, "limit_per_order", "is True", "0 = no"),
    "limit-nan": (TOML + "max_lapsed = nan\n", 6, "max_lapsed", "'nan'", "a whole number"),
    "lapsed-huge": (TOML + f"max_lapsed = {2**80}\n", 6, "max_lapsed", "a huge number", "0 to"),
    "items-a-number": (swap(TOML, '"items.csv"', "5"), 5, "items", "is 5, not a list", "list"),
    "items-empty": (swap(TOML, '"items.csv"', "[]"), 5, "items", "has 0 items", "1 to 1000"),
    "items-of-text": (swap(TOML, '"items.csv"', '["a"]'), 5, "items[0]", "not a table", "sku"),
    "items-single-brackets": (
        INLINE.split("\n\n[[items]]")[0] + '\n[items]\nsku = "a"\n',
        5,
        "items",
        "a single table",
        "write [[items]]",
    ),
    "csv-missing": (
        swap(TOML, "items.csv", "item.csv"),
        5,
        "items",
        "item.csv' does not exist",
        "check the path",
    ),
    "csv-is-a-directory": (swap(TOML, "items.csv", ""), 5, "items", "is a directory", "a file"),
    "csv-with-nul": (swap(TOML, "items.csv", "a\\u0000b"), 5, "items", "cannot be read", "path"),
    "inline-price-in-yuan": (
        swap(INLINE, "2990", "29.90"),
        18,
        "items[1].price_fen",
        "'29.90'",
        "write 2990 for 29.90 yuan",
    ),
    "inline-price-in-quotes": (
        swap(INLINE, "4990", '"¥49.90"'),
        9,
        "items[0].price_fen",
        "'¥49.90'",
        "write 4990 ",
    ),
    "inline-price-negative": (swap(INLINE, "2990", "-1"), 18, "items[1].price_fen", "-1", "0 to"),
    "inline-key-missing": (swap(INLINE, "total = 500\n", ""), 15, "items[1].total", "is", "needs"),
    "inline-unknown-key": (
        swap(INLINE, "total = 500", "stock = 500"),
        19,
        "items[1].stock",
        "is not a key of an item",
        "write one of sku",
    ),
    "inline-near-key": (
        swap(INLINE, "total = 500", "totel = 500"),
        19,
        "items[1].totel",
        "is not a key of an item",
        "did you mean total?",
    ),
    "inline-key-of-the-sale": (
        INLINE + "hold_ms = 900_000\n",
        20,
        "items[1].hold_ms",
        "belongs to the sale",
        "move it above the first [[items]]",
    ),
    "inline-list-price-alone": (
        swap(INLINE, 'list_price_basis = "近30天最低成交价"\n', ""),
        6,
        "items[0].list_price_basis",
        "is missing",
        "近30天最低成交价",
    ),
    "inline-sku-twice": (
        swap(INLINE, '"tissue"', '"rice-5kg"'),
        16,
        "items[1].sku",
        "already the SKU of items[0]",
        "a SKU of its own",
    ),
    "array-of-inline-tables": (
        swap(
            TOML,
            '"items.csv"',
            '[\n  { sku = "a", title = "甲}", price_fen = 1, total = 1 }, # {\n'
            '  { sku = "b", title = "乙",\n    price_fen = 1.5, total = 1 }]',
        ).replace(",\n", ", "),
        7,
        "items[1].price_fen",
        "'1.5'",
        "write 150 ",
    ),
    "nasty": (NASTY, 16, "items[1].price_fen", "'7'", "write 7"),
    "nasty-title": (swap(NASTY, '"7"', "7"), 15, "items[1].sku", "is missing", "an item needs"),
    "nasty-crlf": (NASTY.replace("\n", "\r\n"), 16, "items[1].price_fen", "'7'", "write 7"),
}


@pytest.mark.parametrize("name", BAD_TOML)
def test_bad_toml(tmp_path: Path, name: str) -> None:
    text, line, field, problem, remedy = BAD_TOML[name]
    write(tmp_path / "items.csv", CSV)
    path = write(tmp_path / "sale.toml", text)
    refused(load_sale, path, line, field, problem, remedy)


def test_a_fault_in_the_csv_names_the_csv(tmp_path: Path) -> None:
    csv = write(tmp_path / "items.csv", row(price_fen="¥99"))
    toml = write(tmp_path / "sale.toml", TOML)
    with pytest.raises(SaleFileError) as caught:
        load_sale(toml)
    assert (caught.value.file, caught.value.line) == (str(csv), 3)
    # A CSV without content has no line to show, so the TOML that names it is shown.
    write(csv, "")
    refused(load_sale, toml, 5, "items", "items.csv' is empty", "right file")


def test_lines_of_every_kind_of_key() -> None:
    text = NASTY + (
        "[items.extra.'deep key']\n"
        "a.b = [[1, 2], [3], { c = 1, d = { e = '''\n=\n''' } },\n\n { f = [], g = {} }]\n"
        "h = 2026-11-28T20:00:00.5+08:00\n"
        "[items.extra.x.x]\n"
        "[[other.items.items]]\n"
        'i = "\\" # ["\n'
    )
    tomllib.loads(text)
    assert _toml_lines(text) == {
        "title": 2,
        "id": 6,
        "opens_at": 7,
        "ends_at": 8,
        "items": 9,
        "items[0]": 9,
        "items[0].title": 10,
        "items[0].sku": 11,
        "items[0].price_fen": 12,
        "items[0].total": 13,
        "items[1]": 15,
        "items[1].price_fen": 16,
        "items[1].extra": 17,
        "items[1].extra.deep key": 17,
        "items[1].extra.deep key.a": 18,
        "items[1].extra.deep key.a.b": 18,
        "items[1].extra.deep key.a.b[2]": 18,
        "items[1].extra.deep key.a.b[2].c": 18,
        "items[1].extra.deep key.a.b[2].d": 18,
        "items[1].extra.deep key.a.b[2].d.e": 18,
        "items[1].extra.deep key.a.b[3]": 22,
        "items[1].extra.deep key.a.b[3].f": 22,
        "items[1].extra.deep key.a.b[3].g": 22,
        "items[1].extra.deep key.h": 23,
        "items[1].extra.x": 24,
        "items[1].extra.x.x": 24,
        "other": 25,
        "other.items": 25,
        "other.items.items": 25,
        "other.items.items[0]": 25,
        "other.items.items[0].i": 26,
    }


@settings(max_examples=200, deadline=None)
@given(
    source=st.sampled_from([CSV.encode(), CSV.encode("gbk"), INLINE.encode(), NASTY.encode()]),
    cuts=st.lists(
        st.tuples(st.integers(0, 600), st.integers(0, 3), st.binary(max_size=3)),
        min_size=1,
        max_size=3,
    ),
)
def test_a_damaged_file_loads_or_is_refused_in_one_way(
    tmp_path_factory: pytest.TempPathFactory,
    source: bytes,
    cuts: list[tuple[int, int, bytes]],
) -> None:
    data = source
    for at, length, patch in cuts:
        data = data[:at] + patch + data[at + length :]
    path = write(tmp_path_factory.getbasetemp() / "damaged", data)
    load: Any
    for load in (load_items_csv, load_sale):
        # Anything but SaleFileError, a MemoryError or a plain ValueError say, fails the test.
        with contextlib.suppress(SaleFileError):
            load(path)
