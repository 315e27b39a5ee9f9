"""The API for people: one page, made of the OpenAPI document, that needs nothing from elsewhere and
no script.
"""

from __future__ import annotations

import json
import re
from html import escape
from typing import Any, Final

from aiohttp import web

from .codes_zh import CODES_ZH
from .docs_style import STYLE
from .openapi import MAX_AGE_S, made
from .operation import Operation
from .pages import page_reply

__all__ = ["ROUTES", "render"]

_HTML: Final = "text/html; charset=utf-8"
# The page has no script, and may not be given one.
_POLICY: Final = "default-src 'none'; style-src 'unsafe-inline'; frame-ancestors 'none'"
_COMMON: Final = ("408", "413", "415", "429", "500", "503")
_WHO: Final = {
    "user": "User token, or backend key with <code>Seckill-Buyer</code> 用户令牌或后端密钥",
    "backend": "Backend key 后端密钥",
    "admin": "Admin key 管理密钥",
    "metrics": "Metrics key 监控密钥",
    "anyone": "Everybody 公开",
}


@Operation(
    id="read_docs",
    zh="接口文档（本页）",
    answer="text/html",
    asks_engine=False,
    cached=True,
)
async def docs(request: web.Request) -> web.Response:
    """Shows the API to people."""
    response = page_reply(request, made(request, render, "/docs"), MAX_AGE_S, _HTML)
    response.headers["Content-Security-Policy"] = _POLICY
    return response


def render(document: dict[str, Any], prefix: str) -> bytes:
    """The page of an OpenAPI document of ours."""
    groups: dict[str, list[tuple[str, str, dict[str, Any]]]] = {}
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            groups.setdefault(operation["tags"][0], []).append((method, path, operation))
    tags = [tag for tag in document["tags"] if tag["name"] in groups]
    english, chinese = document["info"]["description"].split("\n\n")
    nav = "".join(
        f'<li><a href="#{tag["name"].lower()}">{escape(tag["name"])}</a><ul>'
        + "".join(_link(*one) for one in groups[tag["name"]])
        + "</ul></li>"
        for tag in tags
    )
    sections = "".join(
        f'<section aria-labelledby="{tag["name"].lower()}"><h2 id="{tag["name"].lower()}">'
        f"{escape(tag['name'])} <small>{escape(tag['description'])}</small></h2>"
        + "".join(_operation(document, prefix, *one) for one in groups[tag["name"]])
        + "</section>"
        for tag in tags
    )
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>seckill API {escape(document["info"]["version"])}</title>
<style>{STYLE}</style>
</head>
<body>
<a class="skip" href="#main">Skip to content 跳到正文</a>
<nav aria-label="Contents 目录">
<p class="name"><a href="#main">seckill <small>API v1</small></a></p>
<ul>{nav}
<li><a href="#documents">Documents 数据结构</a></li><li><a href="#codes">Codes 状态码</a></li></ul>
</nav>
<main id="main">
<header>
<h1>Order intake <span lang="zh">秒杀下单接口</span></h1>
<p>{_text(english)}</p>
<p lang="zh">{_text(chinese)}</p>
<p>For machines 供程序读取: <a href="{escape(prefix)}/openapi.json">openapi.json</a> \
({escape(document["openapi"])})</p>
</header>
{sections}
<section aria-labelledby="documents"><h2 id="documents">Documents <small>数据结构</small></h2>
{"".join(_schema(name, one) for name, one in document["components"]["schemas"].items())}
</section>
<section aria-labelledby="codes"><h2 id="codes">Codes <small>状态码</small></h2>
{_codes(document["x-codes"])}
</section>
</main>
</body>
</html>
""".encode()


def _link(method: str, path: str, operation: dict[str, Any]) -> str:
    name = escape(operation["operationId"])
    return f'<li><a href="#{name}"><b class="{method}">{method.upper()}</b> {escape(name)}</a></li>'


def _operation(
    document: dict[str, Any], prefix: str, method: str, path: str, operation: dict[str, Any]
) -> str:
    name = escape(operation["operationId"])
    more = f"<p>{_text(operation['description'])}</p>" if "description" in operation else ""
    return f"""<article aria-labelledby="{name}">
<h3 id="{name}"><b class="{method}">{method.upper()}</b> <code>{_path(path)}</code></h3>
<p class="lead">{_text(operation["summary"])}. <span lang="zh">{escape(operation["x-summary-zh"])}\
</span></p>
{more}<p class="who">{_who(operation["security"])}</p>
{_parameters(operation)}{_body(document, operation)}{_answers(operation)}
{_example(document, prefix, method, path, operation)}
</article>
"""


def _path(path: str) -> str:
    # A long path may break after a slash.
    return re.sub(r"({\w+})", r"<i>\1</i>", escape(path).replace("/", "/<wbr>"))


def _who(security: list[dict[str, list[str]]]) -> str:
    if not security:
        return _WHO["anyone"]
    return _WHO["user"] if "user" in security[0] else _WHO[security[0]["key"][0]]


def _parameters(operation: dict[str, Any]) -> str:
    rows = "".join(
        f"<tr><th scope=row><code>{escape(one['name'])}</code></th>"
        f"<td>{one['in']}{', required' if one.get('required') else ''}</td>"
        f"<td>{_text(one.get('description', ''))}</td></tr>"
        for one in operation.get("parameters", ())
    )
    if not rows:
        return ""
    return _table("Parameters 参数", ("Name", "Where", "Meaning"), rows)


def _body(document: dict[str, Any], operation: dict[str, Any]) -> str:
    if "requestBody" not in operation:
        return ""
    (content,) = operation["requestBody"]["content"].values()
    return f"<h4>Body 请求体</h4><p>{_type(content['schema'])}, as JSON.</p>"


def _answers(operation: dict[str, Any]) -> str:
    own, common = "", []
    for http, answer in operation["responses"].items():
        if http in _COMMON:
            common.append((http, answer))
        else:
            own += _answer(http, answer)
    seen = "".join(_answer(http, answer) for http, answer in common)
    return _table("Answers 应答", ("HTTP", "Document", "Codes"), own) + (
        "<details><summary>And what any request may be told 通用应答</summary>"
        f"<div class=scroll><table><tbody>{seen}</tbody></table></div></details>"
    )


def _answer(http: str, answer: dict[str, Any]) -> str:
    kind = "yes" if http < "400" else "no"
    shown = "".join(_type(content["schema"]) for content in answer.get("content", {}).values())
    codes = [
        f'<a href="#code-{code}"><code>{code}</code></a>'
        for code in re.findall(r"(?m)^- `(\w+)`:", answer["description"])
    ]
    said = ", ".join(codes) or _text(answer["description"])
    return f"<tr><th scope=row class={kind}>{http}</th><td>{shown}</td><td>{said}</td></tr>"


def _table(caption: str, heads: tuple[str, ...], rows: str) -> str:
    head = "".join(f"<th scope=col>{one}</th>" for one in heads)
    return (
        f"<h4>{caption}</h4><div class=scroll><table><thead><tr>{head}</tr></thead>"
        f"<tbody>{rows}</tbody></table></div>"
    )


def _schema(name: str, schema: dict[str, Any]) -> str:
    about = f"<p>{_text(schema['description'])}</p>" if "description" in schema else ""
    if "enum" in schema:
        return (
            f'<article><h3 id="schema-{name}"><code>{name}</code></h3>{about}'
            f"<p>{_type(schema)}</p></article>"
        )
    rows = "".join(
        f"<tr><th scope=row><code>{field}</code></th><td>{_type(one)}</td><td>"
        f"{'required' if field in schema.get('required', ()) else _default(one)}</td></tr>"
        for field, one in schema["properties"].items()
    )
    return (
        f'<article><h3 id="schema-{name}"><code>{name}</code></h3>{about}'
        "<div class=scroll><table><thead><tr><th scope=col>Field</th><th scope=col>Type</th>"
        f"<th scope=col></th></tr></thead><tbody>{rows}</tbody></table></div></article>"
    )


def _default(schema: dict[str, Any]) -> str:
    if schema.get("default") is None:
        return "optional"
    return f"optional, {escape(json.dumps(schema['default']))}"


def _type(schema: dict[str, Any]) -> str:
    """A schema in a few words."""
    if "$ref" in schema:
        name = schema["$ref"].rpartition("/")[2]
        return f'<a href="#schema-{name}"><code>{name}</code></a>'
    if "allOf" in schema:
        return _type(schema["allOf"][0])
    if "anyOf" in schema:
        return " or ".join(_type(one) for one in schema["anyOf"])
    if "enum" in schema:
        return " ".join(f"<code>{escape(str(one))}</code>" for one in schema["enum"])
    kind = str(schema.get("type", "anything"))
    if kind == "array":
        bounds = _bounds(schema, "minItems", "maxItems")
        return f"list of {_type(schema.get('items', {}))}{bounds}"
    if kind == "string":
        pattern = f" <code>{escape(schema['pattern'])}</code>" if "pattern" in schema else ""
        form = f" ({schema['format']})" if "format" in schema else ""
        return f"text{form}{pattern}{_bounds(schema, 'minLength', 'maxLength')}"
    return {"integer": "whole number", "boolean": "true or false"}.get(kind, kind) + _bounds(
        schema, "minimum", "maximum"
    )


def _bounds(schema: dict[str, Any], low: str, high: str) -> str:
    if high not in schema:
        return ""
    return f", {schema.get(low, 0):,} to {schema[high]:,}"


def _codes(kinds: list[dict[str, Any]]) -> str:
    rows = "".join(
        f'<tr id="code-{kind["code"]}"><th scope=row><code>{kind["code"]}</code></th>'
        f"<td>{kind['http']}</td><td>{escape(kind['title'])}</td>"
        f"<td lang=zh>{escape(CODES_ZH.get(kind['code'], ''))}</td></tr>"
        for kind in kinds
    )
    return (
        "<div class=scroll><table><thead><tr><th scope=col>Code</th><th scope=col>HTTP</th>"
        "<th scope=col>Meaning</th><th scope=col lang=zh>含义</th></tr></thead>"
        f"<tbody>{rows}</tbody></table></div>"
    )


def _example(
    document: dict[str, Any], prefix: str, method: str, path: str, operation: dict[str, Any]
) -> str:
    filled = path.replace("{sale}", "$SALE").replace("{order}", "$ORDER")
    lines = [
        f'curl "$INTAKE{prefix}{filled}"' + ("" if method == "get" else f" -X {method.upper()}")
    ]
    if operation["security"]:
        lines.append('-H "Authorization: Bearer $TOKEN"')
    lines += [
        f"-H '{one['name']}: {one.get('example', 'cart-81')}'"
        for one in operation.get("parameters", ())
        if one["in"] == "header" and (one.get("required") or "example" in one)
    ]
    if "requestBody" in operation:
        (content,) = operation["requestBody"]["content"].values()
        body = json.dumps(_sample(document, content["schema"]), ensure_ascii=False)
        lines += ["-H 'Content-Type: application/json'", f"-d '{body}'"]
    command = escape(" \\\n  ".join(lines), quote=False)
    return f"<pre><code>{command}</code></pre>"


def _sample(document: dict[str, Any], schema: dict[str, Any]) -> Any:
    """The smallest value of a schema that makes sense."""
    if "$ref" in schema:
        schema = document["components"]["schemas"][schema["$ref"].rpartition("/")[2]]
    if "properties" in schema:
        needed = schema.get("required") or list(schema["properties"])
        return {name: _sample(document, schema["properties"][name]) for name in needed}
    if "examples" in schema:
        return schema["examples"][0]
    if schema.get("type") == "array":
        return [_sample(document, schema["items"])]
    return True if schema.get("type") == "boolean" else schema.get("default", "")


def _text(text: str) -> str:
    return re.sub(r"`([^`]*)`", r"<code>\1</code>", escape(text, quote=False))


ROUTES: Final = (web.get("/docs", docs),)
