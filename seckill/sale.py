"""What is sold, when and under which limits; and the checks of everything a caller hands in.

    Sale ── one or more Item, in the order in which the merchant lists them
    Sale.definition()  canonical JSON, kept in Redis beside the sale; Sale.from_definition reads it

A model that exists is valid: building one checks every field and raises InvalidInput, which names
the field by its path (``items[2].price_fen``). Money is a whole number of fen, there are no floats.
msgspec turns the ValueError of a ``__post_init__`` into its own ValidationError while it decodes,
so plain values become models through ``build_items`` and ``build_sale``, never by a typed decode.

The ``check_*`` functions stand on the hot path: one isinstance and one compiled match when the
value is good; the explaining is left to the error path.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from datetime import datetime
from functools import cached_property
from typing import Any, Final

import msgspec

from seckill.admission import Admission, build_admission
from seckill.checks import (
    EPOCH,
    MILLISECOND,
    TIME_MS_MAX,
    TIME_MS_MIN,
    check_int,
    check_keys,
    check_text,
    did_you_mean,
    show,
    to_ms,
    whole_ms,
)
from seckill.errors import InvalidInput

__all__ = [
    "ATTRS_BYTES_MAX",
    "ITEMS_MAX",
    "LIMIT_MAX",
    "PRICE_FEN_MAX",
    "TIMEOUT_MS_MAX",
    "TOTAL_MAX",
    "Item",
    "Sale",
    "build_items",
    "build_sale",
    "check_attrs",
    "check_buyer",
    "check_key",
    "check_payment",
    "check_sale_id",
    "check_sku",
    "did_you_mean",
    "show",
]

ITEMS_MAX: Final = 1_000
TOTAL_MAX: Final = 1_000_000_000
LIMIT_MAX: Final = 1_000_000_000
PRICE_FEN_MAX: Final = 10**10
TIMEOUT_MS_MAX: Final = 7 * 86_400_000
ATTRS_BYTES_MAX: Final = 512
_TITLE_MAX: Final = 200
_BASIS_MAX: Final = 100
_FEN: Final = "fen, e.g. 9900 for 99.00 yuan"

_SALE_ID: Final = re.compile(r"[0-9A-Za-z_-]{1,40}").fullmatch
_SKU: Final = re.compile(r"[0-9A-Za-z_.-]{1,40}").fullmatch
# Printable ASCII without the space and the two separators of the scripts, "," and "|".
_OPAQUE: Final = re.compile(r"[!-+\--{}~]{1,64}").fullmatch
_SALE_ID_RULE: Final = "1 to 40 of the characters 0-9 A-Z a-z _ -"
_SKU_RULE: Final = "1 to 40 of the characters 0-9 A-Z a-z _ . -"
_OPAQUE_RULE: Final = "1 to 64 printable ASCII characters without space, ',' and '|'"


class Item(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One SKU of a sale. Prices in fen, ``total`` in units.

    ``limit_per_buyer`` is units per buyer of this SKU, 0 = no limit. ``list_price_fen`` is the
    crossed-out price; a merchant in China must say what a compared price is (明码标价和禁止价格
    欺诈规定), so it comes with ``list_price_basis``, e.g. "近30天最低成交价", or not at all.
    """

    sku: str
    title: str
    price_fen: int
    total: int
    list_price_fen: int | None = None
    list_price_basis: str | None = None
    limit_per_buyer: int = 1

    def __post_init__(self) -> None:
        check_sku(self.sku, "sku")
        check_text("title", self.title, _TITLE_MAX)
        check_int("price_fen", self.price_fen, 0, PRICE_FEN_MAX, _FEN)
        check_int("total", self.total, 0, TOTAL_MAX, "units")
        check_int("limit_per_buyer", self.limit_per_buyer, 0, LIMIT_MAX, "numbers, 0 = no limit")
        if self.list_price_fen is None:
            if self.list_price_basis is not None:
                raise InvalidInput(
                    "list_price_fen",
                    "is missing although list_price_basis is given",
                    "write the list price in fen, or remove list_price_basis",
                )
            return
        check_int("list_price_fen", self.list_price_fen, 0, PRICE_FEN_MAX, _FEN)
        if self.list_price_fen < self.price_fen:
            raise InvalidInput(
                "list_price_fen",
                f"{self.list_price_fen} is below price_fen {self.price_fen}",
                "a crossed-out price is at least the price; correct or remove it",
            )
        if self.list_price_basis is None:
            raise InvalidInput(
                "list_price_basis",
                "is missing although list_price_fen is given",
                'say what the crossed-out price is, e.g. "近30天最低成交价"',
            )
        check_text("list_price_basis", self.list_price_basis, _BASIS_MAX)


# dict=True gives each sale the __dict__ in which cached_property keeps what is computed once;
# equality, hash, encoding and replace go by the fields alone.
class Sale(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, dict=True):
    """One timed sale.

    ``opens_at`` and ``ends_at`` are aware and kept to the millisecond (finer digits are dropped).
    ``hold_ms`` is how long a held unit waits for begin_payment, ``pay_ms`` how long a paying one
    waits for confirm. ``limit_per_order`` is units per order, ``limit_per_buyer`` units per buyer
    in the whole sale, ``max_lapsed`` unpaid expiries per buyer; 0 = no limit. ``admission`` is how
    buyers get to the till, None: whoever comes is served.
    """

    id: str
    title: str
    opens_at: datetime
    ends_at: datetime
    items: tuple[Item, ...]
    hold_ms: int = 900_000
    pay_ms: int = 900_000
    limit_per_order: int = 0
    limit_per_buyer: int = 0
    max_lapsed: int = 3
    admission: Admission | None = None

    def __post_init__(self) -> None:
        check_sale_id(self.id, "id")
        check_text("title", self.title, _TITLE_MAX)
        for name in ("opens_at", "ends_at"):
            msgspec.structs.force_setattr(self, name, whole_ms(name, getattr(self, name)))
        # Milliseconds are compared, not datetimes: Python compares two times of one zone by the
        # wall clock, which is wrong on the night the clocks change.
        if self.ends_ms <= self.opens_ms:
            raise InvalidInput(
                "ends_at",
                f"{self.ends_at.isoformat()} is not after opens_at {self.opens_at.isoformat()}",
                "write a time after opens_at",
            )
        for name in ("hold_ms", "pay_ms"):
            check_int(name, getattr(self, name), 1, TIMEOUT_MS_MAX, "milliseconds, at most 7 days")
        for name in ("limit_per_order", "limit_per_buyer", "max_lapsed"):
            check_int(name, getattr(self, name), 0, LIMIT_MAX, "numbers, 0 = no limit")
        _check_items(self.items)
        if self.admission is not None:
            if not isinstance(self.admission, Admission):
                problem = f"is {show(self.admission)}, not an Admission"
                raise InvalidInput("admission", problem, "pass an Admission, or None")
            self.admission.check_times(self.opens_at, self.ends_at)
            if self.admission.mode == "draw" and not self.units_a_buyer:
                problem = "is 0, and so nobody knows how many winners the stock can serve"
                raise InvalidInput("limit_per_buyer", problem, "write what one winner may take")

    @classmethod
    def from_definition(cls, data: bytes) -> Sale:
        """The sale that ``definition`` wrote. Times come back in UTC. Raises InvalidInput."""
        try:
            plain = msgspec.json.decode(data)
        except (ValueError, RecursionError):
            plain = None
        if not isinstance(plain, dict):
            remedy = "pass what Sale.definition() returned"
            raise InvalidInput("definition", "is not a JSON object", remedy)
        known = [_DEFINITION_NAMES.get(name, name) for name in Sale.__struct_fields__]
        # One that has no admission was written without the word, as it was before there was any.
        check_keys(plain, known, known[:-1], "", "a sale definition")
        for name, name_ms in _DEFINITION_NAMES.items():
            ms = plain.pop(name_ms)
            check_int(name_ms, ms, TIME_MS_MIN, TIME_MS_MAX, "milliseconds since 1970")
            plain[name] = EPOCH + ms * MILLISECOND
        plain["items"] = build_items(plain["items"])
        if "admission" in plain:
            plain["admission"] = build_admission(plain["admission"])
        return build_sale(plain)

    def definition(self) -> bytes:
        """Canonical JSON: every field (``admission`` where there is one), sorted keys, times as
        ``opens_ms`` and ``ends_ms``. Equal sales have equal bytes, in every process."""
        fields = msgspec.structs.asdict(self)
        for name, name_ms in _DEFINITION_NAMES.items():
            fields[name_ms] = to_ms(fields.pop(name))
        if self.admission is None:
            del fields["admission"]
        else:
            fields["admission"] = self.admission.plain()
        return msgspec.json.encode(fields, order="sorted")

    @cached_property
    def definition_id(self) -> str:
        """The first 16 hex characters of the definition's SHA-256."""
        return hashlib.sha256(self.definition()).hexdigest()[:16]

    @cached_property
    def opens_ms(self) -> int:
        return to_ms(self.opens_at)

    @cached_property
    def ends_ms(self) -> int:
        return to_ms(self.ends_at)

    @cached_property
    def draw_ms(self) -> int:
        """When the list of tickets closes, for a shuffle and a draw; else 0."""
        if self.admission is None or not self.admission.is_drawn:
            return 0
        return to_ms(self.admission.draw_at or self.opens_at)

    @cached_property
    def units_a_buyer(self) -> int:
        """The most units that one buyer may take in all; 0 where no limit says."""
        limits = [item.limit_per_buyer for item in self.items]
        bounds = (self.limit_per_buyer, sum(limits) if all(limits) else 0)
        return min((bound for bound in bounds if bound), default=0)

    @cached_property
    def total_units(self) -> int:
        return sum(item.total for item in self.items)

    @cached_property
    def sku_index(self) -> dict[str, int]:
        """The place of each SKU in ``items``. Made once for each sale; do not change it."""
        return {item.sku: index for index, item in enumerate(self.items)}


_DEFINITION_NAMES: Final = {"opens_at": "opens_ms", "ends_at": "ends_ms"}


def build_items(tables: object) -> tuple[Item, ...]:
    """Items from plain dicts, as JSON and TOML give them. Raises InvalidInput."""
    if not isinstance(tables, list):
        raise InvalidInput("items", f"is {show(tables)}, not a list", "write a list of items")
    return tuple(_build_item(table, f"items[{index}]") for index, table in enumerate(tables))


def _build_item(table: object, at: str) -> Item:
    if not isinstance(table, dict):
        raise InvalidInput(at, f"is {show(table)}, not a table", "write sku, title, price_fen …")
    check_keys(table, *_model_keys(Item), f"{at}.", "an item")
    try:
        return Item(**table)
    except InvalidInput as error:
        raise InvalidInput(f"{at}.{error.field}", error.problem, error.remedy) from None


def build_sale(fields: dict[str, Any]) -> Sale:
    """A sale from its fields by name; ``items`` are Items already. Raises InvalidInput."""
    check_keys(fields, *_model_keys(Sale), "", "a sale")
    return Sale(**fields)


def check_sale_id(value: object, field: str) -> str:
    if isinstance(value, str) and _SALE_ID(value):
        return value
    raise _refusal(field, value, _SALE_ID, 40, _SALE_ID_RULE)


def check_sku(value: object, field: str) -> str:
    if isinstance(value, str) and _SKU(value):
        return value
    raise _refusal(field, value, _SKU, 40, _SKU_RULE)


def check_buyer(value: object, field: str) -> str:
    """A buyer id: the mall's own opaque id, never an openid or a phone number."""
    if (
        # The rule as most ids obey it, without an expression: each order is asked this twice.
        type(value) is str
        and 0 < len(value) <= 64
        and value.isascii()
        and value.isprintable()
        and " " not in value
        and "," not in value
        and "|" not in value
    ):
        return value
    if isinstance(value, str) and _OPAQUE(value):
        # A subclass of str, such as a template engine's safe string, can't be packed.
        return value if type(value) is str else str.__str__(value)
    raise _refusal(field, value, _OPAQUE, 64, _OPAQUE_RULE)


# An idempotency key and a payment id obey the rule of a buyer id, at no extra call.
check_key = check_payment = check_buyer


def check_attrs(value: object, field: str) -> str:
    """Opaque text that travels in the event: at most 512 bytes of UTF-8, may be empty."""
    # Text of more than 512 characters never fits, so a huge one is never encoded.
    if isinstance(value, str) and len(value) <= ATTRS_BYTES_MAX:
        value = value if type(value) is str else str.__str__(value)
        if value.isascii():
            return value
        try:
            size = len(value.encode())
        except UnicodeEncodeError:
            remedy = "pass text that is valid UTF-8"
            raise InvalidInput(field, "holds half a surrogate pair", remedy) from None
        if size <= ATTRS_BYTES_MAX:
            return value
    problem = f"is longer than {ATTRS_BYTES_MAX} bytes of UTF-8"
    if not isinstance(value, str):
        problem = f"is {show(value)}, not text"
    remedy = f"pass at most {ATTRS_BYTES_MAX} bytes: ids and codes, not whole records"
    raise InvalidInput(field, problem, remedy)


def _refusal(field: str, value: object, match: Any, longest: int, rule: str) -> InvalidInput:
    if not isinstance(value, str):
        problem = f"is {show(value)}, not text"
    elif not value:
        problem = "is empty"
    elif len(value) > longest:
        problem = f"has {len(value)} characters"
    else:
        bad = next(char for char in value if not match(char))
        problem = f"{show(value)} holds {bad!a}"
    return InvalidInput(field, problem, f"write {rule}")


def _check_items(items: object) -> None:
    if not isinstance(items, tuple):
        raise InvalidInput("items", f"is {show(items)}, not a tuple", "pass a tuple of Item")
    if not 1 <= len(items) <= ITEMS_MAX:
        raise InvalidInput("items", f"has {len(items)} items", f"write 1 to {ITEMS_MAX} items")
    first: dict[str, int] = {}
    for index, item in enumerate(items):
        if not isinstance(item, Item):
            raise InvalidInput(
                f"items[{index}]", f"is {show(item)}, not an Item", "pass a tuple of Item"
            )
        if first.setdefault(item.sku, index) != index:
            raise InvalidInput(
                f"items[{index}].sku",
                f"{item.sku!r} is already the SKU of items[{first[item.sku]}]",
                "give every item a SKU of its own",
            )


def _model_keys(model: type[Item] | type[Sale]) -> tuple[Sequence[str], Sequence[str]]:
    """The known and the required keys of a model. Required fields stand before optional ones."""
    known = model.__struct_fields__
    return known, known[: len(known) - len(model.__struct_defaults__)]
