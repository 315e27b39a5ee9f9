"""Which answers are documented: the intake says so itself, in /openapi.json, operation by
operation. So a load process needs no copy of the table, and can't have an old one."""

from __future__ import annotations

from typing import Any, Final

__all__ = ["VERBS", "Documented", "documented"]

Documented = dict[str, set[tuple[int, str]]]
"""By operation, the HTTP status and code of each answer; the code is "" where the answer has none,
as that of a page."""

# What buyers do, in the words of the statistics, and the operation of the API that it is.
VERBS: Final = {
    "page": "show_sale",
    "time": "read_clock",
    "join": "join_queue",
    "place": "show_place",
    "buy": "reserve",
    "begin": "begin_payment",
    "release": "release",
    "confirm": "confirm",
    "result": "show_order",
}


def documented(openapi: dict[str, Any]) -> Documented:
    """The documented answers of every operation. Raises ValueError if one of VERBS is missing."""
    found: Documented = {}
    for methods in openapi.get("paths", {}).values():
        for operation in methods.values():
            answers = found.setdefault(operation["operationId"], set())
            for status, response in operation["responses"].items():
                answers.update((int(status), code) for code in _codes(response))
    if missing := ", ".join(sorted(set(VERBS.values()) - found.keys())):
        raise ValueError(f"/openapi.json describes no {missing}; is this host an intake?")
    return found


def _codes(response: dict[str, Any]) -> list[str]:
    for media in response.get("content", {}).values():
        for part in media.get("schema", {}).get("allOf", ()):
            if codes := part.get("properties", {}).get("code", {}).get("enum"):
                return list(codes)
    return [""]
