"""``seckill verify-draw``: recomputes a draw from what was published of it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Final

import msgspec
import typer
from rich.text import Text

from seckill.admission import Admission
from seckill.cli.command import Json
from seckill.cli.output import Output, complain, moment, warn
from seckill.draw import SALT_BYTES, DrawRecord, holder_of
from seckill.errors import InvalidInput
from seckill.sale import check_buyer, show
from seckill.verify_draw import DrawVerdict, Finding, Placed, Published
from seckill.verify_draw import verify_draw as recompute

__all__ = ["finding_text", "verdict_data", "verify_draw"]

UNDECIDED: Final = 2
"""As in `seckill verify`."""
# More than the largest definition there is.
_RECORD_BYTES_MAX: Final = 16 * 1024 * 1024


class _Question(msgspec.Struct, frozen=True):
    """Whose ticket is asked for, and how many of the first."""

    buyer: str | None
    holder: str | None
    winners: int


def verify_draw(
    draw: Annotated[Path, typer.Argument(metavar="DRAW.JSON", help="What was published of it.")],
    tickets: Annotated[Path, typer.Argument(metavar="TICKETS.TXT", help="The list of tickets.")],
    commitment: Annotated[
        str | None,
        typer.Option(metavar="HEX", help="The commitment that you noted when the sale was made."),
    ] = None,
    digest: Annotated[
        str | None,
        typer.Option(metavar="HEX", help="The digest that you noted when the list was closed."),
    ] = None,
    public_value: Annotated[
        str | None, typer.Option(metavar="TEXT", help="The public value, as its source has it.")
    ] = None,
    buyer: Annotated[
        str | None, typer.Option(metavar="ID", help="Say where this buyer's ticket stands.")
    ] = None,
    salt: Annotated[
        str | None, typer.Option(metavar="HEX", help="The salt that the buyer got with the ticket.")
    ] = None,
    winners: Annotated[
        int, typer.Option(metavar="N", min=0, help="List the first N tickets, in order.")
    ] = 0,
    json: Json = False,
) -> None:
    """Prove from public files that a draw or a shuffle came out as it had to. Needs no server and
    no secret.

    Exit code: 0 proven, 1 something was changed, 2 a file is of no use, or it is too early.
    """
    noted = _hex("--commitment", commitment, 32), _hex("--digest", digest, 32)
    published = Published(*noted, public_value)
    question = _Question(buyer, _holder(buyer, salt), winners)
    record = _read_record(draw)
    verdict = _recompute(record, tickets, published)
    if code := _told(Output(json=json), verdict, published, question):
        raise typer.Exit(code)


def _holder(buyer: str | None, salt: str | None) -> str | None:
    if buyer is None and salt is None:
        return None
    if buyer is None or salt is None:
        missing = "--buyer" if buyer is None else "--salt"
        raise InvalidInput(missing, "is missing", "give --buyer and --salt together")
    plain = _hex("--salt", salt, SALT_BYTES, "write it as joining gave it") or ""
    return holder_of(bytes.fromhex(plain), check_buyer(buyer, "--buyer"))


def _hex(
    option: str, value: str | None, size: int, remedy: str = "write it as it was published"
) -> str | None:
    """An option of so many bytes in hex digits; large ones are taken as well."""
    if value is None:
        return None
    plain = value.strip().lower()
    if len(plain) != 2 * size or set(plain) - set("0123456789abcdef"):
        problem = f"{show(value)} is not {2 * size} digits of 0-9 a-f"
        raise InvalidInput(option, problem, remedy)
    return plain


def _read_record(path: Path) -> DrawRecord:
    try:
        with path.open("rb") as file:
            data = file.read(_RECORD_BYTES_MAX + 1)
    except (OSError, ValueError) as error:
        raise _unreadable(path, error) from None
    if len(data) > _RECORD_BYTES_MAX:
        raise InvalidInput(str(path), "is larger than 16 MiB", "name draw.json first")
    return DrawRecord.decode(data)


def _recompute(record: DrawRecord, tickets: Path, published: Published) -> DrawVerdict:
    try:
        with tickets.open("rb") as file:
            return recompute(record, file, published=published)
    except InvalidInput:
        raise
    except (OSError, ValueError) as error:
        raise _unreadable(tickets, error) from None


def _unreadable(path: Path, error: OSError | ValueError) -> InvalidInput:
    reason = (error.strerror if isinstance(error, OSError) else None) or "no such path"
    return InvalidInput(str(path), f"can't be read: {reason}", "name a file that is there")


def _told(out: Output, verdict: DrawVerdict, published: Published, question: _Question) -> int:
    """Says what was found; the exit code."""
    placed = verdict.placed(question.holder) if question.holder else None
    is_missing = question.holder is not None and placed is None
    code = UNDECIDED if verdict.undecided else int(not verdict.proven)
    if is_missing:
        code = 1
    if out.json:
        out.answer(verdict_data(verdict, published, question, placed))
        return code
    for finding in verdict.findings:
        complain(finding_text(finding), code=code)
    # Digests and names of public values are long, and are not to be folded.
    if verdict.proven:
        said = Text.assemble(
            ("✓ ", "green"), "\n  ".join([_proven_text(verdict), *_facts(verdict)])
        )
        out.console.print(said, soft_wrap=True)
    if placed is not None:
        where = _placed_text(placed, len(verdict.tickets.numbers))
        out.console.print(Text(f"  {question.buyer}: {where}"), soft_wrap=True)
    for rank, number in enumerate(verdict.winners(question.winners), 1):
        out.console.print(f"{rank:>8}. ticket {number}")
    if is_missing:
        missing = f"no ticket of buyer {question.buyer} with this salt is in the list"
        complain(f"{missing}: is the salt right? If so, the ticket was left out", code=1)
    if verdict.proven or verdict.undecided:
        _say_what_was_not_compared(verdict, published)
    return code


def _proven_text(verdict: DrawVerdict) -> str:
    count = len(verdict.tickets.numbers)
    what = f"{count:,} ticket{'' if count == 1 else 's'}"
    return f"sale {verdict.record.sale}: the order of {what} is the one that was drawn"


def _facts(verdict: DrawVerdict) -> list[str]:
    """What the reader should look at, because a program can't: each on a line."""
    record, admission = verdict.record, verdict.admission
    facts = [f"closed at {moment(record.closed_ms)}, digest {record.digest}"]
    if len(lots := verdict.lots) > 1:
        parts = ", ".join(f"{count:,} of weight {weight}" for weight, count in lots.items())
        facts.append(f"tickets: {parts}")
    return [*facts, _public_text(record, admission)]


def _public_text(record: DrawRecord, admission: Admission | None) -> str:
    if admission is None or admission.public_value is None:
        return "no public value: it protects against outsiders and later changes, not the operator"
    return f"public value: {record.public_value} ({admission.public_value}): look it up there"


def _placed_text(placed: Placed, count: int) -> str:
    said = f"ticket {placed.number}, weight {placed.weight}"
    if placed.rank is None:
        return f"{said}, is in the list"
    return f"{said}, has place {placed.rank + 1:,} of {count:,}"


def _say_what_was_not_compared(verdict: DrawVerdict, published: Published) -> None:
    """Somebody who replaces every file together is only caught by what was noted before."""
    record = verdict.record
    missing = [
        f"the {name} {value}, with --{name}"
        for name, value, noted in (
            ("commitment", record.commitment, published.commitment),
            ("digest", record.digest, published.digest),
        )
        if noted is None
    ]
    if missing:
        warn(f"draw.json alone vouches for what you did not note: {'; '.join(missing)}")


def finding_text(finding: Finding) -> str:
    """A finding in one line."""
    more = f", and {finding.count - 1:,} more like it" if finding.count > 1 else ""
    return f"{finding.kind}: {finding.text}{more}: {finding.meaning}"


def verdict_data(
    verdict: DrawVerdict, published: Published, question: _Question, placed: Placed | None
) -> dict[str, Any]:
    """A verdict for programs. Ranks count from 0."""
    record = verdict.record
    data: dict[str, Any] = {
        "ok": verdict.proven,
        "sale": record.sale,
        "tickets": len(verdict.tickets.numbers),
        "weights": {str(weight): count for weight, count in verdict.lots.items()},
        "closed_ms": record.closed_ms,
        "digest": record.digest,
        "commitment": record.commitment,
        "public_value": record.public_value,
        "compared": {
            "commitment": published.commitment is not None,
            "digest": published.digest is not None,
            "public_value": published.public_value is not None,
        },
        "findings": [
            msgspec.structs.asdict(finding) | {"meaning": finding.meaning}
            for finding in verdict.findings
        ],
    }
    if question.winners:
        data["winners"] = verdict.winners(question.winners)
    if question.buyer is not None:
        data["ticket"] = None if placed is None else msgspec.structs.asdict(placed)
    return data
