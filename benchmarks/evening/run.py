"""One run, from the first buyer to the account: in the process that leads (alone, or a master),
and in each that carries the load (alone, or a worker)."""

from __future__ import annotations

import logging
from collections import Counter
from functools import partial
from pathlib import Path
from typing import Any, Final

import gevent
import msgspec
from gevent.pool import Pool
from locust.env import Environment
from locust.runners import MasterRunner, WorkerRunner

from .audit import added, compared, oversold, still_there, totals_of
from .options import Options
from .promises import Account
from .shop import ASKING, Desk, Shop

__all__ = ["BROKEN", "BrokenPromise", "Run"]

BROKEN: Final = "broken promise"
CLOSE: Final = "evening_close"
ACCOUNT: Final = "evening_account"
# How long those may take who are still to be answered, workers to send their accounts, and what
# is left of them if locust has sent them home already.
_ANSWERS_S: Final = 30.0
_ACCOUNTS_S: Final = 60.0
_LATE_S: Final = 5.0
_LOOKS: Final = 3
_ADMIN: Final = "/v1/admin/sales/{sale}/report"

_log = logging.getLogger("evening")


class BrokenPromise(Exception):
    """What was promised; the details are in the summary."""


class Run:
    """What one process of locust knows of the run. ``shop`` is None until it has begun, ``failed``
    says that it can't, ``begun`` that one ever did."""

    def __init__(self, environment: Environment) -> None:
        self.environment = environment
        self.shop: Shop | None = None
        self.opening_s = 0.0
        self.begun = self.failed = False
        self._totals: dict[str, int] = {}
        self._over: dict[str, int] = {}
        self._asked: set[str] = set()
        self._accounts: dict[str, Account] = {}
        self._mute: set[str] = set()
        self._closed, self._closing = True, False

    @property
    def leads(self) -> bool:
        """Whether this is the process that answers for the whole."""
        return not isinstance(self.environment.runner, WorkerRunner)

    def listen(self) -> None:
        """Takes part in what locust does."""
        events, runner = self.environment.events, self.environment.runner
        events.test_start.add_listener(self._begin)
        events.report_to_master.add_listener(self._report)
        events.worker_report.add_listener(self._reported)
        events.test_stop.add_listener(self._end)
        events.quitting.add_listener(self._quitting)
        if isinstance(runner, WorkerRunner):
            runner.register_message(CLOSE, self._give_account, concurrent=True)
        elif isinstance(runner, MasterRunner):
            runner.register_message(ACCOUNT, self._take_account)

    def evenings(self) -> int:
        """How many evenings are over, in all processes."""
        own = self.shop.notes.evenings.total() if self.shop else 0
        return own + sum(self._over.values())

    # -- the beginning ------------------------------------------------------------------------

    def _begin(self, **_: Any) -> None:
        parsed = self.environment.parsed_options
        assert parsed is not None
        self.shop, self.failed = None, False
        try:
            options = Options.of(parsed, self.environment.host or parsed.host or "")
            shop = Shop(options, self._broke)
            if self.leads:
                self._accounts, self._over, self._mute = {}, {}, set()
                self._asked = self._workers()
                self._totals = totals_of(self._report_of(options))
                shop.try_token()
                now_ms = Desk(options.host).need("/v1/time")["now_ms"]
                self.opening_s = (shop.rules.opens_ms - now_ms) / 1000
                self._closed, self.begun = False, True
        except (ValueError, KeyError, OSError, msgspec.MsgspecError) as error:
            self.failed = True
            self.environment.process_exit_code = 2
            _log.error("the run can't begin: %s", error)
            return
        self.shop = shop

    @staticmethod
    def _report_of(options: Options) -> dict[str, Any]:
        desk = Desk(options.mall, options.api_key)
        return desk.need(_ADMIN.format(sale=options.sale))

    def _broke(self, what: str, detail: str) -> None:
        """A failure of its own kind in the statistics. The text is the same for each of a kind, so
        that a thousand of them are one line."""
        _log.debug("%s: %s", what, detail)
        self.environment.events.request.fire(
            request_type="BROKEN",
            name=f"{BROKEN}: {what}",
            response_time=0,
            response_length=0,
            exception=BrokenPromise(what),
        )

    # -- between processes --------------------------------------------------------------------

    def _report(self, data: dict[str, Any], **_: Any) -> None:
        data["evenings"] = self.shop.notes.evenings.total() if self.shop else 0

    def _reported(self, client_id: str, data: dict[str, Any], **_: Any) -> None:
        self._over[client_id] = data.get("evenings", 0)

    def _give_account(self, environment: Environment, **_: Any) -> None:
        runner, account = environment.runner, None
        assert runner is not None
        if self.shop is not None:
            notes = self.shop.notes
            notes.closed = True
            with gevent.Timeout(_ANSWERS_S, False):
                while notes.in_flight:
                    gevent.sleep(0.05)
            account = msgspec.to_builtins(notes.account())
        # A process whose run could not begin has nothing to say, and says so.
        runner.send_message(ACCOUNT, {"account": account})

    def _take_account(self, msg: Any, **_: Any) -> None:
        account = msg.data["account"]
        if account is None:
            self._mute.add(msg.node_id)
        else:
            self._accounts[msg.node_id] = msgspec.convert(account, Account)

    def _collect(self, seconds: float) -> int:
        """Waits for the accounts of all processes. Returns how many are missing."""
        runner = self.environment.runner
        if not isinstance(runner, MasterRunner):
            assert self.shop is not None
            self._accounts["self"] = self.shop.notes.account()
            return 0
        # Whoever was there at the beginning, came later, or has ever reported: one who died is in
        # none of the lists of locust.
        asked = self._asked | self._workers() | self._over.keys()
        told: set[str] = set()
        with gevent.Timeout(seconds, False):
            while missing := asked - self._accounts.keys() - self._mute:
                # Who has just stopped is away for a moment.
                for worker in missing & self._workers() - told:
                    runner.send_message(CLOSE, client_id=worker)
                    told.add(worker)
                gevent.sleep(0.1)
        return len(asked - self._accounts.keys())

    def _workers(self) -> set[str]:
        """Who carries load for this process now."""
        runner = self.environment.runner
        if not isinstance(runner, MasterRunner):
            return set()
        return {client.id for client in runner.clients.all}

    # -- the end ------------------------------------------------------------------------------

    def _end(self, seconds: float = _ACCOUNTS_S, **_: Any) -> None:
        if not self.leads or self._closed or self._closing or self.shop is None:
            return
        self._closing = True
        try:
            self._settle(self.shop.options, seconds)
            self._closed = True
        finally:
            # A master whose last worker has died kills the greenlet that is here in the middle of
            # it, and goes on to ``_quitting``, which must not take this for the end.
            self._closing = False

    def _settle(self, options: Options, seconds: float) -> None:
        silent = self._collect(seconds)
        account = added(self._accounts.values())
        for what, detail in self._audit(options, account):
            self._broke(what, detail)
            account.broken[what] = account.broken.get(what, 0) + 1
            account.examples.append(f"{what}: {detail}")
        if account.broken or silent:
            self.environment.process_exit_code = 1
        elif not account.answers:
            # Of which nobody learns anything, least of all that all is well.
            self.environment.process_exit_code = 2
            _log.error("the run ended before anybody had an answer: nothing is known")
        cut_off = account.begun - sum(account.evenings.values())
        summary = {
            "evenings": dict(sorted(account.evenings.items(), key=lambda found: -found[1])),
            "begun": account.begun,
            "answers": account.answers,
            "cut_off": cut_off,
            "orders": len(account.orders),
            "confirmed": account.confirmed,
            "broken": account.broken,
            "examples": account.examples[:100],
            "processes": len(self._accounts),
            "silent_processes": silent,
        }
        _print(summary)
        if options.summary:
            Path(options.summary).write_bytes(msgspec.json.encode(summary))

    def _audit(self, options: Options, account: Account) -> list[tuple[str, str]]:
        """What can only be seen when all is added up, and a last look at every order."""
        desk = Desk(options.mall, options.api_key)
        look = partial(_last_look, desk, options.sale)
        found = [broken for part in Pool(ASKING).imap(look, account.orders) for broken in part]
        try:
            report = self._report_of(options)
        except (ValueError, OSError, msgspec.MsgspecError) as error:
            return [*found, ("the report can't be read", str(error))]
        totals = Counter(self._totals) | Counter(totals_of(report))
        found += oversold(account.spans, totals)
        return found + compared(report, account.confirmed, len(account.orders))

    def _quitting(self, **_: Any) -> None:
        """Locust ends. With the web interface a run may still be under way; and a master that has
        lost its workers ends without a word to anybody."""
        if not self.leads or self.environment.runner is None:
            return
        if not self._closed:
            self.environment.runner.stop()
            self._end(_LATE_S)
        elif not self.begun and not self.failed:
            self.environment.process_exit_code = 2
            _log.error("locust ended before the run began")


def _last_look(desk: Desk, sale: str, known: tuple[str, str, int]) -> list[tuple[str, str]]:
    for _ in range(_LOOKS):
        try:
            status, body = desk.get(f"/v1/sales/{sale}/orders/{known[0]}")
        except (OSError, msgspec.MsgspecError):
            status, body = 0, {}
        if status in (200, 404):
            return still_there(known, status, body if status == 200 else None)
        gevent.sleep(1)
    return [("an order can't be looked at", f"{known[0]}: {status} {body.get('code', '')}")]


def _print(summary: dict[str, Any]) -> None:
    print("\nThe buyers' evenings")
    for ended, count in summary["evenings"].items():
        print(f"{count:>8,}  {ended}")
    if summary["cut_off"]:
        print(f"{summary['cut_off']:>8,}  under way when the run ended")
    units = ", ".join(f"{count:,} {sku}" for sku, count in summary["confirmed"].items())
    print(f"{summary['orders']:>8,}  orders acknowledged; paid: {units or 'nothing'}")
    for what, count in summary["broken"].items():
        print(f"{count:>8,}  {BROKEN}: {what}")
    for example in summary["examples"][:10]:
        print(f"          {example}")
    if summary["silent_processes"]:
        print(
            f"{summary['silent_processes']:>8,}  load processes gave no account: nothing is known"
        )
    print(f"{sum(summary['broken'].values()):>8,}  broken promises\n", flush=True)
