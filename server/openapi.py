"""The public description of the API, made of the routes, the promises of their handlers and the
structs they name. Nothing in it is written a second time.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from importlib.metadata import PackageNotFoundError, version
from inspect import getdoc
from math import inf
from typing import Any, Final
from weakref import WeakKeyDictionary

import msgspec
from aiohttp import web

from . import gate, problems
from .operation import Operation, operation_of
from .pages import Page, etag_of, page_reply
from .problems import ANSWERS, Kind
from .reply import JSON, PROBLEM
from .wire import ProblemDocument
from .wire_socket import PROTOCOL

__all__ = ["MAX_AGE_S", "ROUTES", "describe", "every_kind", "made"]

MAX_AGE_S: Final = 60

_SCHEMAS: Final = "#/components/schemas/"
_METHODS: Final = ("GET", "PUT", "POST", "DELETE", "PATCH")
_OPAQUE: Final = r"^[!-+\--{}~]{1,64}$"

_ABOUT: Final = """\
The order intake of a flash sale. JSON in and out; money is a whole number of fen, every time is \
Unix time in milliseconds on the clock of the sale. Whatever is not a yes is a problem document \
(RFC 9457): decide by its `code`. Every call can be repeated: orders and stock changes carry the \
header `Idempotency-Key`, all others repeat by nature. After 429 and 503 repeat the identical \
request, `Retry-After` says when."""
_ABOUT_ZH: Final = """\
秒杀下单接口。请求与响应均为 JSON；金额以分为单位的整数，时间为场次时钟的 Unix 毫秒。\
凡非成功的应答都是 RFC 9457 问题文档，请以其中的 `code` 判断，不要依赖 `title`。\
每个调用都可以原样重试：下单与改库存带 `Idempotency-Key`，其余天然可重复。\
收到 429 或 503 时按 `Retry-After` 秒后原样重试。"""

_TAGS: Final = {
    "Orders": "The life of an order 订单",
    "Queue": "The way to the till 排队与抽签",
    "Sales": "What is on sale 场次",
    "Merchant": "Running a sale 商家",
    "Service": "Health and description 服务",
}

_PATH: Final[dict[str, dict[str, Any]]] = {
    "sale": {
        "description": "The sale's id.",
        "schema": {"type": "string", "pattern": "^[0-9A-Za-z_-]{1,40}$"},
    },
    "order": {
        "description": "The order's id.",
        "schema": {"type": "string", "pattern": "^[0-9a-f]{24}$"},
    },
}
_KEY: Final = {
    "name": "Idempotency-Key",
    "in": "header",
    "required": True,
    "description": "Names this wish: a new key for a new wish, the same key for a retry.",
    "schema": {"type": "string", "pattern": _OPAQUE},
}
_BUYER: Final = {
    "name": "Seckill-Buyer",
    "in": "header",
    "required": False,
    "description": "The buyer in whose name the mall's backend asks; not with a user token.",
    "schema": {"type": "string", "pattern": _OPAQUE},
}
_TICKET: Final = {
    "name": "Seckill-Ticket",
    "in": "header",
    "required": False,
    "description": "The ticket, as joining returned it; without it the answer is `unknown_ticket`.",
    "schema": {"type": "string", "pattern": "^[0-9A-Za-z_-]{28}$"},
    "example": "0123456789abcdefghijklmnopqr",
}
_PROOF: Final = {
    "name": gate.PROOF_HEADER,
    "in": "header",
    "required": False,
    "description": "The solved challenge, where a proof of work is asked for.",
    "schema": {"type": "string", "maxLength": gate.PROOF_CHARS_MAX},
}
_KNOWN_TAG: Final = {
    "name": "If-None-Match",
    "in": "header",
    "required": False,
    "description": "The ETag of the page you have; the answer is 304 while it is the same.",
    "schema": {"type": "string"},
}
_SECURITY: Final[dict[str, list[dict[str, list[str]]]]] = {
    "anyone": [],
    "user": [{"user": []}, {"key": ["backend"]}],
    "backend": [{"key": ["backend"]}],
    "admin": [{"key": ["admin"]}],
    "metrics": [{"key": ["metrics"]}],
}
_SOCKET: Final[list[dict[str, list[str]]]] = [{"user": []}]
_SCHEMES: Final = {
    "user": {
        "type": "http",
        "scheme": "bearer",
        "bearerFormat": "JWT",
        "description": "The mall's own user token: a buyer, who sees only that buyer's orders.",
    },
    "key": {
        "type": "http",
        "scheme": "bearer",
        "bearerFormat": "sk_…",
        "description": "An API key of one of the mall's programs, with the scope that is named.",
    },
}
_HEADERS: Final[dict[str, Any]] = {
    "Retry-After": {"description": "Seconds to wait.", "schema": {"type": "integer"}},
    "Location": {"description": "The new order's path.", "schema": {"type": "string"}},
    "ETag": {"description": "Names this very page.", "schema": {"type": "string"}},
    "Allow": {"description": "The methods of this path.", "schema": {"type": "string"}},
}


def every_kind() -> list[Kind]:
    """Every kind of answer, by HTTP status and code."""
    found = {*ANSWERS.values()}
    for module in (problems, gate):
        found.update(kind for kind in vars(module).values() if isinstance(kind, Kind))
    return sorted(found, key=lambda kind: (kind.http, kind.code))


def describe(routes: Iterable[web.AbstractRoute], prefix: str = "") -> dict[str, Any]:
    """The OpenAPI 3.1 document of these routes, which all begin with ``prefix``."""
    promised = [
        (route.method, _path_of(route).removeprefix(prefix), route.handler, operation)
        for route in routes
        if route.method in _METHODS and (operation := operation_of(route.handler))
    ]
    paths: dict[str, dict[str, Any]] = {}
    for method, path, handler, operation in promised:
        described = _operation(path, operation, getdoc(handler) or "")
        paths.setdefault(path, {})[method.lower()] = described
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "seckill",
            "version": _version(),
            "description": f"{_ABOUT}\n\n{_ABOUT_ZH}",
        },
        **({"servers": [{"url": prefix}]} if prefix else {}),
        "tags": [{"name": name, "description": about} for name, about in _TAGS.items()],
        "paths": paths,
        "components": {
            "schemas": _schemas(operation for *_, operation in promised),
            "securitySchemes": _SCHEMES,
        },
        "x-codes": [
            {"code": kind.code, "http": kind.http, "title": kind.title} for kind in every_kind()
        ],
    }


def _path_of(route: web.AbstractRoute) -> str:
    return route.resource.canonical if route.resource else ""


def _version() -> str:
    try:
        return version("seckill")
    except PackageNotFoundError:
        return "0"


def _schemas(operations: Iterable[Operation]) -> dict[str, Any]:
    structs: dict[type, None] = {ProblemDocument: None}
    for operation in operations:
        for struct in (operation.body, operation.answer):
            if isinstance(struct, type):
                structs[struct] = None
    _, schemas = msgspec.json.schema_components(structs, ref_template=_SCHEMAS + "{name}")
    return {name: _plain(schema) for name, schema in sorted(schemas.items())}


def _plain(schema: dict[str, Any]) -> dict[str, Any]:
    """The schema with its docstring as one paragraph, and code as Markdown writes it."""
    if "description" in schema:
        schema = schema | {"description": _sentences(schema["description"])}
    return schema


def _sentences(doc: str) -> str:
    return " ".join(doc.split()).replace("``", "`")


def _operation(path: str, operation: Operation, doc: str) -> dict[str, Any]:
    summary, _, rest = _sentences(doc).partition(". ")
    described: dict[str, Any] = {
        "operationId": operation.id,
        "tags": [_tag_of(path)],
        "summary": summary.removesuffix("."),
        "x-summary-zh": operation.zh,
    }
    if rest:
        described["description"] = rest
    if parameters := _parameters(path, operation):
        described["parameters"] = parameters
    if operation.body is not None:
        content = {JSON: {"schema": _ref(operation.body)}}
        described["requestBody"] = {"required": not operation.bodiless, "content": content}
    described["responses"] = _responses(operation)
    # A socket is one buyer's, whom nobody else may name.
    described["security"] = _SOCKET if operation.answer == PROTOCOL else _SECURITY[operation.who]
    return described


def _tag_of(path: str) -> str:
    if path.startswith("/v1/admin/"):
        return "Merchant"
    if "/orders" in path or "/challenge" in path or path.endswith("/socket"):
        return "Orders"
    if "/tickets" in path or "/draw" in path:
        return "Queue"
    return "Sales" if path.startswith("/v1/") else "Service"


def _parameters(path: str, operation: Operation) -> list[Mapping[str, Any]]:
    found: list[Mapping[str, Any]] = [
        {"name": name, "in": "path", "required": True, **_PATH[name]}
        for name in re.findall(r"{(\w+)}", path)
    ]
    found += [
        {"name": name, "in": "query", "description": _sentences(text), "schema": {"type": "string"}}
        for name, text in operation.query.items()
    ]
    if operation.keyed:
        found.append(_KEY)
    if operation.ticketed:
        found.append(_TICKET)
    if operation.who == "user" and operation.answer != PROTOCOL:
        found.append(_BUYER)
    if problems.PROOF_REQUIRED in operation.kinds:
        found.append(_PROOF)
    if operation.cached:
        found.append(_KNOWN_TAG)
    return found


def _responses(operation: Operation) -> dict[str, Any]:
    by_http: dict[int, list[Kind]] = {}
    for kind in operation.good:
        by_http.setdefault(kind.http, []).append(kind)
    responses = {str(http): _good(operation, http, kinds) for http, kinds in by_http.items()}
    if operation.answer == PROTOCOL:
        responses["101"] = {"description": "The WebSocket is open."}
    elif not by_http:
        responses["200"] = _good(operation, 200, [])
    if operation.cached:
        responses["304"] = {"description": "The page you have is still the same."}
    by_http = {}
    for kind in operation.problems:
        by_http.setdefault(kind.http, []).append(kind)
    responses |= {str(http): _bad(http, kinds) for http, kinds in by_http.items()}
    return dict(sorted(responses.items()))


def _good(operation: Operation, http: int, kinds: list[Kind]) -> dict[str, Any]:
    if isinstance(operation.answer, str):
        kind = "object" if operation.answer == JSON else "string"
        content: dict[str, Any] = {operation.answer: {"schema": {"type": kind}}}
    else:
        content = {JSON: {"schema": _with_codes(_ref(operation.answer), kinds)}}
    headers = (["Location"] if http == 201 and operation.keyed else []) + (
        ["ETag"] if operation.cached else []
    )
    return {
        "description": _table(kinds) or "As asked.",
        **({"headers": {name: _HEADERS[name] for name in headers}} if headers else {}),
        "content": content,
    }


def _bad(http: int, kinds: list[Kind]) -> dict[str, Any]:
    schema = _with_codes(_ref(ProblemDocument), kinds)
    headers = {"Retry-After": _HEADERS["Retry-After"]} if http in (429, 503) else {}
    return {
        "description": _table(kinds),
        **({"headers": headers} if headers else {}),
        "content": {PROBLEM: {"schema": schema}},
    }


def _with_codes(schema: dict[str, Any], kinds: list[Kind]) -> dict[str, Any]:
    if not kinds:
        return schema
    codes = {"properties": {"code": {"enum": sorted(kind.code for kind in kinds)}}}
    return {"allOf": [schema, codes]}


def _table(kinds: list[Kind]) -> str:
    return "\n".join(f"- `{kind.code}`: {kind.title}" for kind in kinds)


def _ref(struct: type) -> dict[str, Any]:
    return {"$ref": f"{_SCHEMAS}{struct.__name__}"}


Render = Callable[[dict[str, Any], str], bytes]
"""Makes a page of the document and the prefix of all its paths."""

_PAGES: Final[WeakKeyDictionary[web.Application, dict[Render, Page]]] = WeakKeyDictionary()


def made(request: web.Request, render: Render, path: str) -> Page:
    """What ``render`` makes of the description, once for each application. ``path`` is the page's
    own, without the prefix."""
    pages = _PAGES.setdefault(request.app, {})
    page = pages.get(render)
    if page is None:
        prefix = request.path.removesuffix(path)
        body = render(describe(request.app.router.routes(), prefix), prefix)
        page = pages[render] = Page(fresh_until_s=inf, body=body, etag=etag_of(body))
    return page


@Operation(
    id="read_description",
    zh="本接口的 OpenAPI 3.1 描述",
    answer=JSON,
    asks_engine=False,
    cached=True,
)
async def description(request: web.Request) -> web.Response:
    """Shows this description of the API."""
    return page_reply(request, made(request, _encoded, "/openapi.json"), MAX_AGE_S)


def _encoded(document: dict[str, Any], prefix: str) -> bytes:
    return msgspec.json.encode(document)


ROUTES: Final = (web.get("/openapi.json", description),)
