"""Sales from files: a TOML for the sale, and its items in the same TOML or in a CSV beside it.

    load_sale("evening-sale.toml")      -> Sale
    load_items_csv("evening-sale.csv")  -> tuple[Item, ...]

Whatever is wrong raises SaleFileError with the file, the line, the field and what to write instead.
Nothing is guessed: a price of "99.00" is refused, not multiplied by 100, because a merchant who
writes fen today and yuan tomorrow would sell a phone for one percent of its price.
"""

from __future__ import annotations

import codecs
import csv
import io
import os
import re
import stat
import tomllib
import unicodedata
from collections.abc import Iterator
from datetime import date, datetime
from pathlib import Path
from typing import Any, Final, NoReturn

from seckill.admission import build_admission
from seckill.errors import InvalidInput, SaleFileError
from seckill.sale import ITEMS_MAX, Item, Sale, build_items, build_sale, did_you_mean

__all__ = ["load_items_csv", "load_sale"]

_FILE_BYTES_MAX: Final = 4 * 1024 * 1024
# A shorter hold is for tests; in a file it is seconds written where milliseconds are meant.
_TIMEOUT_MS_MIN: Final = 1_000
_OPTIONAL: Final = ("list_price_fen", "list_price_basis", "limit_per_buyer")
_ITEM_NUMBERS: Final = ("price_fen", "total", "list_price_fen", "limit_per_buyer")
_SALE_NUMBERS: Final = ("hold_ms", "pay_ms", "limit_per_order", "limit_per_buyer", "max_lapsed")
_ADMISSION_NUMBERS: Final = ("rate_per_s", "token_life_ms", "overbook_max")
# Keys that slip below [[items]], where TOML gives them to the item.
_SALE_ONLY: Final = frozenset(Sale.__struct_fields__) - frozenset(Item.__struct_fields__) - {"id"}
_A_TIME: Final = "2026-11-28T20:00:00+08:00"

_INTEGER: Final = re.compile(r"-?(?:0|[1-9][0-9]{0,4000})").fullmatch
# What people write for an amount of money, after full-width characters became ASCII ones.
_AMOUNT: Final = re.compile(
    r"[¥元]?\s*(0|[1-9][0-9]{0,11}|[1-9][0-9]{0,2}(?:,[0-9]{3}){1,3})(?:\.([0-9]{1,2}))?\s*元?"
).fullmatch
_GROUPED: Final = re.compile(r"[1-9][0-9]{0,2}(?:,[0-9]{3}){1,3}").fullmatch
_LINE_END: Final = re.compile(rb"\r\n?|\n").findall
_TOML_PIECES: Final = re.compile(
    r'"""(?:[^\\]|\\.)*?"{3,5}'
    r"|'''.*?'{3,5}"
    r'|"(?:[^"\\]|\\.)*"'
    r"|'[^']*'"
    r"|\#[^\n]*|\n|[\[\]{}=,.]"
    r"|[^\s\[\]{}=,.\"'\#]+",
    re.DOTALL,
).findall


def load_sale(path: str | os.PathLike[str]) -> Sale:
    """The sale a TOML file describes. ``items`` is the path of a CSV, relative to the TOML, or
    [[items]] tables. Raises SaleFileError."""
    file = os.fspath(path)
    text = _decode(file, _read(file), gbk=False)
    fields = _parse_toml(file, text)
    try:
        _check_values(fields)
        items = fields.get("items")
        if isinstance(items, str):
            fields["items"] = _items_beside(file, items)
        elif items is not None:
            fields["items"] = build_items(items)
        if "admission" in fields:
            fields["admission"] = build_admission(fields["admission"])
        sale = build_sale(fields)
        for name in ("hold_ms", "pay_ms"):
            if (ms := getattr(sale, name)) < _TIMEOUT_MS_MIN:
                remedy = "write milliseconds, at least 1000: 900000 is 15 minutes"
                raise InvalidInput(name, f"{ms} is less than a second", remedy)
    except SaleFileError:
        raise
    except InvalidInput as error:
        line = _line_of(error.field, _toml_lines(text))
        _fail(file, line, error.field, error.problem, error.remedy)
    return sale


def _items_beside(file: str, items: str) -> tuple[Item, ...]:
    try:
        return load_items_csv(Path(file).parent / items)
    except SaleFileError as error:
        if error.line is not None:
            raise
        # No line of the CSV is at fault, so blame the line of the TOML that names this CSV.
        raise InvalidInput("items", f"{error.file!r} {error.problem}", error.remedy) from None


def load_items_csv(path: str | os.PathLike[str]) -> tuple[Item, ...]:
    """The items of a CSV in UTF-8 (with or without BOM) or GBK, in the order of its rows. Raises
    SaleFileError; a row of several lines is named by its first."""
    file = os.fspath(path)
    rows = _csv_rows(file, _decode(file, _read(file), gbk=True))
    line, columns = next(rows, (1, []))
    _check_header(file, line, columns)
    items: list[Item] = []
    first_line: dict[str, int] = {}
    for line, cells in rows:
        if len(items) == ITEMS_MAX:
            _fail(file, line, "items", f"is row {ITEMS_MAX + 1}", f"write at most {ITEMS_MAX} rows")
        if len(cells) != len(columns):
            remedy = 'put quotes around a cell that holds a comma: "a, b"'
            _fail(file, line, "row", f"has {len(cells)} cells, not {len(columns)}", remedy)
        try:
            item = _csv_item(dict(zip(columns, cells, strict=True)))
        except InvalidInput as error:
            _fail(file, line, error.field, error.problem, error.remedy)
        if (first := first_line.setdefault(item.sku, line)) != line:
            _fail(file, line, "sku", f"{item.sku!r} is already on line {first}", "use a SKU once")
        items.append(item)
    if not items:
        _fail(file, line, "items", "has no row below the header", "write a row for each item")
    return tuple(items)


def _fail(file: str, line: int | None, field: str, problem: str, remedy: str) -> NoReturn:
    raise SaleFileError(file, line, field, problem, remedy) from None


def _read(file: str) -> bytes:
    data, mode = b"", 0
    try:
        mode = Path(file).stat().st_mode
        # Only a regular file is opened: opening a pipe would wait for its writer.
        if stat.S_ISREG(mode):
            with Path(file).open("rb") as stream:
                data = stream.read(_FILE_BYTES_MAX + 1)
    except FileNotFoundError:
        _fail(file, None, "file", "does not exist", "check the path")
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        _fail(file, None, "file", f"cannot be read ({reason})", "check its path and permissions")
    if not stat.S_ISREG(mode):
        kind = "a directory" if stat.S_ISDIR(mode) else "not a regular file"
        _fail(file, None, "file", f"is {kind}", "name a file on disk")
    if len(data) > _FILE_BYTES_MAX:
        _fail(file, None, "file", "is larger than 4 MiB", f"a sale has at most {ITEMS_MAX} items")
    return data


def _decode(file: str, data: bytes, *, gbk: bool) -> str:
    """The text without BOM. Excel in China saves "CSV" as GBK and "CSV UTF-8" with a BOM."""
    save_as = "save it as UTF-8 or GBK" if gbk else "save it as UTF-8"
    if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        _fail(file, 1, "file", "is UTF-16", save_as)
    has_bom = data.startswith(codecs.BOM_UTF8)
    data = data.removeprefix(codecs.BOM_UTF8)
    if (at := data.find(b"\0")) >= 0:
        _fail(file, _line_at(data, at), "file", "holds a NUL byte", save_as)
    try:
        text = data.decode()
    except UnicodeDecodeError as error:
        text, at, problem = "", error.start, "is not valid UTF-8"
        # GB18030 accepts nearly any bytes, so a UTF-8 file with one damaged character would turn
        # into nonsense titles in silence. Genuine GBK is mostly errors when read as UTF-8.
        lenient = data.decode(errors="replace")
        damaged = len(re.findall("[\u0800-\ufffc]", lenient)) > lenient.count("\ufffd")
        if gbk and not has_bom and not damaged:
            try:
                text = data.decode("gb18030")
            except UnicodeDecodeError as gbk_error:
                # The encoding that came further is the one the file was meant to be in.
                at, problem = max(at, gbk_error.start), "is neither valid UTF-8 nor GBK"
        if not text:
            _fail(file, _line_at(data, at), "file", f"byte 0x{data[at]:02X} {problem}", save_as)
    if not text.strip():
        _fail(file, None, "file", "is empty", "check that the right file was saved")
    return text


def _line_at(data: bytes, at: int) -> int:
    return len(_LINE_END(data[:at])) + 1


def _number_error(field: str, name: str, text: str) -> InvalidInput:
    """The refusal of ``text`` for the number ``name``, showing the number when it can be known."""
    is_price = name.endswith("_fen")
    remedy = "write a whole number in plain digits"
    if is_price:
        remedy = "write whole fen in plain digits, e.g. 9900 for 99.00 yuan"
    plain = unicodedata.normalize("NFKC", text).strip() if len(text) <= 40 else ""
    amount = _AMOUNT(plain)
    if _INTEGER(plain):
        remedy = f"write {plain}"
    elif is_price and _GROUPED(plain):
        # A spreadsheet's display of whole fen; both readings are shown, so that yuan are noticed.
        fen = int(plain.replace(",", ""))
        money = f"¥{fen // 100:,}.{fen % 100:02d}"
        remedy = f"prices are in fen: write {fen} ({money}), without the comma"
    elif amount:
        whole, cents = amount[1].replace(",", ""), (amount[2] or "").ljust(2, "0")
        if is_price:
            fen = int(whole) * 100 + int(cents)
            remedy = f"write {fen} for {whole}.{cents} yuan: prices are whole fen"
        elif cents == "00":
            remedy = f"write {whole}"
    return InvalidInput(field, f"{text[:40]!r} is not a plain whole number", remedy)


class _Decimal:
    """A TOML float, kept as it is written so that the remedy can be exact."""

    def __init__(self, text: str) -> None:
        self.text = text


# The models call an unexpected value by its type's name.
_Decimal.__name__ = "decimal number"


def _parse_toml(file: str, text: str) -> dict[str, Any]:
    try:
        return tomllib.loads(text, parse_float=_Decimal)
    except RecursionError:
        _fail(file, None, "toml", "is nested too deeply", "write plain keys and [[items]]")
    except tomllib.TOMLDecodeError as error:
        problem, _, where = str(error).rpartition(" (at ")
        number = re.match(r"line (\d+)", where)
        line = int(number[1]) if number else text.rstrip("\n").count("\n") + 1
        _fail(file, line, "toml", f"is not valid TOML ({problem})", "correct the syntax there")
    except ValueError:
        # Python refuses to read a number of more than 4,300 digits.
        huge = re.search(r"[0-9_]{4300}", text)
        at = text.count("\n", 0, huge.start()) + 1 if huge else None
        _fail(file, at, "toml", "holds a number of thousands of digits", "write a smaller number")


def _check_values(fields: dict[str, Any]) -> None:
    """What the models would refuse too, but could not explain to somebody who writes a file."""
    for name in ("opens_at", "ends_at"):
        if name in fields:
            _check_time(name, fields[name])
    _check_numbers("", fields, _SALE_NUMBERS)
    admission = fields.get("admission")
    if isinstance(admission, dict):
        for name in ("joins_at", "draw_at"):
            if name in admission:
                _check_time(f"admission.{name}", admission[name])
        _check_numbers("admission.", admission, _ADMISSION_NUMBERS)
    items = fields.get("items")
    if isinstance(items, dict):
        raise InvalidInput("items", "is a single table", "write [[items]] above each item")
    for index, table in enumerate(items if isinstance(items, list) else ()):
        if isinstance(table, dict):
            for name in table:
                if name in _SALE_ONLY:
                    remedy = "move it above the first [[items]]"
                    raise InvalidInput(f"items[{index}].{name}", "belongs to the sale", remedy)
            _check_numbers(f"items[{index}].", table, _ITEM_NUMBERS)


def _check_time(name: str, value: object) -> None:
    if isinstance(value, datetime):
        if value.utcoffset() is None:
            text = value.isoformat()
            raise InvalidInput(name, f"{text} has no offset from UTC", f"write {text}+08:00")
    elif isinstance(value, date):
        text = value.isoformat()
        raise InvalidInput(name, f"{text} has no time of day", f"write {text}T20:00:00+08:00")
    else:
        raise InvalidInput(name, "is not a time", f"write {_A_TIME}, without quotes")


def _check_numbers(at: str, table: dict[str, Any], names: tuple[str, ...]) -> None:
    for name in names:
        value = table.get(name)
        if isinstance(value, str | _Decimal):
            text = value if isinstance(value, str) else value.text
            raise _number_error(at + name, name, text)


def _toml_lines(text: str) -> dict[str, int]:
    """The line of every key and table of a valid TOML text, by path: ``items[2].price_fen``."""
    lines: dict[str, int] = {}
    counts: dict[str, int] = {}  # how many [[tables]] each path has had so far
    # The open brackets of a value above the table it stands in: path, and place in an array.
    frames: list[tuple[str, int | None]] = [("", None)]
    parts: list[str] = []
    path, in_value, brackets, line = "", False, 0, 1
    for piece in _TOML_PIECES(text):
        start, line = line, line + piece.count("\n")
        if piece == "\n":
            if len(frames) == 1:
                parts, in_value, brackets = [], False, 0
        elif piece[0] == "#":
            continue
        elif in_value:
            base, place = frames[-1]
            here = path if place is None else f"{base}[{place}]"
            if piece == "[":
                frames.append((here, 0))
            elif piece == "{":
                lines.setdefault(here, start)
                frames.append((here, None))
                parts, in_value = [], False
            elif piece in ("]", "}"):
                frames.pop()
            elif piece == "," and place is not None:
                frames[-1] = (base, place + 1)
            elif piece == ",":
                parts, in_value = [], False
        elif piece == "[":
            brackets += 1
        elif piece == "]" and parts:
            path = ""
            for depth, part in enumerate(parts, 1):
                path = f"{path}.{part}" if path else part
                lines.setdefault(path, start)
                if brackets == 2 and depth == len(parts):
                    counts[path] = counts.get(path, 0) + 1
                if path in counts:
                    path = f"{path}[{counts[path] - 1}]"
            lines.setdefault(path, start)
            frames, parts = [(path, None)], []
        elif piece == "=":
            path = frames[-1][0]
            for part in parts:
                path = f"{path}.{part}" if path else part
                lines.setdefault(path, start)
            in_value = True
        elif piece == "}":
            frames.pop()
            in_value = True
        elif piece not in ".,]":
            parts.append(piece[1:-1] if piece[0] in "\"'" else piece)
    return lines


def _line_of(field: str, lines: dict[str, int]) -> int | None:
    """The line of a field, else of the nearest table around it: a missing key has no line."""
    while field and field not in lines:
        field = field[: max(field.rfind("."), field.rfind("["), 0)]
    return lines.get(field)


def _csv_rows(file: str, text: str) -> Iterator[tuple[int, list[str]]]:
    """Each row with the line it begins on, blanks around cells removed. Excel leaves empty lines
    at the end; an empty line with rows below it is a row somebody lost."""
    # newline="" keeps line ends inside quotes as they are, so that reader.line_num stays right.
    reader = csv.reader(io.StringIO(text, newline=""), strict=True, skipinitialspace=True)
    empty: int | None = None
    while True:
        line = reader.line_num + 1
        try:
            cells = [cell.strip() for cell in next(reader)]
        except StopIteration:
            return
        except csv.Error as error:
            remedy = 'close every quote, and write a quote inside a cell twice: ""'
            _fail(file, line, "csv", f"is not valid CSV ({error})", remedy)
        if not any(cells):
            empty = empty or line
        elif empty:
            _fail(file, empty, "row", "is empty although rows follow", "delete the empty line")
        else:
            yield line, cells


def _check_header(file: str, line: int, columns: list[str]) -> None:
    known = Item.__struct_fields__
    required = [name for name in known if name not in _OPTIONAL]
    if len(columns) == 1 and re.search(r"[;\t|，]", columns[0]):
        _fail(file, line, "header", "is not separated by commas", "save it with commas")
    for index, name in enumerate(columns):
        if not name:
            remedy = "name the column or delete it"
            _fail(file, line, "header", f"column {index + 1} has no name", remedy)
        if name not in known:
            problem = "is not a column of an items file"
            _fail(file, line, name[:40], problem, did_you_mean(name, known))
        if name in columns[:index]:
            _fail(file, line, name, "is there twice", "delete one of the two columns")
    for name in required:
        if name not in columns:
            _fail(file, line, name, "is not in the header", f"it needs {', '.join(required)}")


def _csv_item(row: dict[str, str]) -> Item:
    fields: dict[str, Any] = {}
    for name, cell in row.items():
        if not cell:
            if name not in _OPTIONAL:
                raise InvalidInput(name, "is empty", "fill in the cell")
        elif name not in _ITEM_NUMBERS:
            fields[name] = cell
        elif _INTEGER(cell):
            fields[name] = int(cell)
        else:
            raise _number_error(name, name, cell)
    return Item(**fields)
