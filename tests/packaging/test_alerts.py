"""The alerts fire when they should and are silent when not, by promtool; and whatever they name is
there: metrics, labels, codes, and the place in the runbook.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import yaml

from seckill.server import problems
from seckill.server.families import FAMILIES
from seckill.server.scrape import ROUTES

ROOT = Path(__file__).parents[2]
FILE = ROOT / "deploy" / "alerts.yml"
RULES = {
    rule["alert"]: rule
    for group in yaml.safe_load(FILE.read_text("utf-8"))["groups"]
    for rule in group["rules"]
}
GUIDE = (ROOT / "docs" / "observability.md").read_text("utf-8")

promtool = pytest.mark.skipif(shutil.which("promtool") is None, reason="there is no promtool here")

# One point each 5 seconds, so 12 are a minute. "0+1x24" rises by 1 two minutes long, "1x24" stays.
INTERVAL = "5s"
JOB = 'job="seckill",instance="a"'
Series = dict[str, str]


class Case(NamedTuple):
    """What one alert is tried with: numbers that must set it off ``at``, and numbers that mustn't
    at any time up to then."""

    at: str
    fires: Series
    silent: list[Series]


def reserve(**codes: str) -> Series:
    return {
        f'seckill_answers_total{{{JOB},verb="reserve",code="{c}"}}': v for c, v in codes.items()
    }


def failed(**codes: str) -> Series:
    return {f'seckill_failures_total{{{JOB},code="{code}"}}': v for code, v in codes.items()}


def behind(seconds: str) -> Series:
    return {f'seckill_group_age_seconds{{{JOB},sale="s",group="ledger"}}': seconds}


def letters(count: str) -> Series:
    return {f'seckill_dead_letters{{{JOB},sale="s",group="webhook"}}': count}


def workers(starts: str, ends: str, alive: str) -> Series:
    return {
        f"seckill_worker_starts_total{{{JOB}}}": starts,
        f"seckill_worker_ends_total{{{JOB}}}": ends,
        f"seckill_workers{{{JOB}}}": alive,
    }


def timed(name: str, bounds: tuple[str, str], fast: int, of: int, labels: str = "") -> Series:
    """So many of so many up to the first bound, and the rest up to the second."""
    at = f"{name}_bucket{{{JOB}{labels}"
    counts = {bounds[0]: fast, bounds[1]: of, "+Inf": of}
    return {f'{at},le="{bound}"}}': f"0+{count}x60" for bound, count in counts.items()}


SELLING = f'seckill_sale_phase{{{JOB},sale="s",phase="selling"}}'


def sale(
    phase: str = "selling", left: str = "5x144", sold: str = "7x144", asked: str = ""
) -> Series:
    at = f'{JOB},sale="s"'
    return {
        f'seckill_sale_phase{{{at},phase="{phase}"}}': "1x144",
        f'seckill_sale_units{{{at},state="available"}}': left,
        f'seckill_sale_units{{{at},state="held"}}': "9x144",
        f"seckill_sale_orders_total{{{at}}}": sold,
    } | reserve(sold_out=asked or "0+5x144")


def queue(
    phase: str = "selling",
    left: str = "5x72",
    waiting: str = "30x72",
    live: str = "0x72",
    called: str = "2x72",
) -> Series:
    at = f'{JOB},sale="s"'
    return {
        f'seckill_sale_phase{{{at},phase="{phase}"}}': "1x72",
        f'seckill_sale_units{{{at},state="available"}}': left,
        f"seckill_queue_waiting{{{at}}}": waiting,
        f"seckill_queue_live_tokens{{{at}}}": live,
        f"seckill_queue_called_total{{{at}}}": called,
    }


UP, READY = f"up{{{JOB}}}", f"seckill_ready{{{JOB}}}"
RESERVE = ',verb="reserve"'
SHOW = ',verb="show"'
ORDERS = ("seckill_answer_seconds", ("1.0", "2.5"))
BATCHES = ("seckill_script_seconds", ("0.1", "0.25"))
LAG = ("seckill_loop_lag_seconds", ("0.1", "0.25"))
CASES: dict[str, Case] = {
    "SeckillNotScraped": Case("1m", {UP: "1x4 0x20"}, [{UP: "1x24"}, {UP: "1x4 0x2 1x20"}]),
    "SeckillNotReady": Case("1m", {READY: "1x6 0x20"}, [{READY: "1x24"}, {READY: "1x4 0x1 1x20"}]),
    "SeckillWorkersMissing": Case(
        "10m",
        {f"seckill_workers{{{JOB}}}": "4x90 3x60"},
        [
            {f"seckill_workers{{{JOB}}}": "4x150"},
            # A reload: for a while there are the old ones, too.
            {f"seckill_workers{{{JOB}}}": "4x60 8x10 4x80"},
            # One that was killed and replaced at once.
            {f"seckill_workers{{{JOB}}}": "4x60 3x3 4x80"},
        ],
    ),
    "SeckillWorkerDied": Case(
        "10m",
        workers("4x60 5x60", "0x120", "4x58 3x1 4x61"),
        [
            workers("4x120", "0x120", "4x120"),
            workers("4x60 8x60", "0x62 4x58", "4x60 8x1 4x59"),
            # The whole was started anew, after a night with dead workers.
            workers("9x60 4x60", "0x120", "4x120"),
        ],
    ),
    "SeckillBug": Case(
        "2m", failed(internal="0x20 1x4"), [failed(internal="3x24"), failed(busy="0+1x24")]
    ),
    "SeckillFenced": Case(
        "2m", failed(fenced="0x20 2x4"), [failed(fenced="2x24"), failed(busy="0+1x24")]
    ),
    "SeckillStorageFull": Case(
        "2m", failed(storage_full="0x20 2x4"), [failed(storage_full="2x24")]
    ),
    "SeckillOutcomeUnknown": Case(
        "2m", failed(outcome_unknown="0x20 2x4"), [failed(outcome_unknown="2x24")]
    ),
    "SeckillOverloaded": Case(
        "3m",
        failed(busy="0+4x36", overloaded="0+4x36") | reserve(created="0+92x36", busy="0+8x36"),
        [
            failed(busy="0+2x36", overloaded="0+2x36") | reserve(created="0+96x36", busy="0+4x36"),
            failed(unavailable="0+50x36") | reserve(unavailable="0+50x36"),
            # A moment of it, as at any opening.
            failed(busy="0x12 100x24") | reserve(created="0+100x36"),
        ],
    ),
    "SeckillLaneFilling": Case(
        "2m",
        {f"seckill_lane_fill_ratio{{{JOB}}}": "0x20 0.8 0x3"},
        [{f"seckill_lane_fill_ratio{{{JOB}}}": "0.5x24"}],
    ),
    "SeckillSlowOrders": Case(
        "3m",
        timed(*ORDERS, 98, 100, RESERVE),
        [timed(*ORDERS, 995, 1_000, RESERVE), timed(*ORDERS, 9, 100, SHOW)],
    ),
    "SeckillSlowRedis": Case("3m", timed(*BATCHES, 98, 100), [timed(*BATCHES, 995, 1_000)]),
    "SeckillSaturated": Case("5m", timed(*LAG, 4, 5), [timed(*LAG, 19, 20)]),
    "SeckillNobodyBuys": Case(
        "11m",
        sale(),
        [
            sale(sold="7x40 8x40 9x64"),
            # It has begun to sell only now.
            sale() | {SELLING: "_x80 1x64"},
            sale(left="0x144"),
            sale(phase="not_started"),
            sale(asked="0x144"),
        ],
    ),
    "SeckillQueueStandsStill": Case(
        "6m",
        queue(),
        [
            queue(called="2x24 3x24 4x24"),
            # Whoever was called may still come.
            queue(live="1x72"),
            # Somebody was called, and came at once.
            queue(called="0+1x72"),
            queue(waiting="0x72"),
            queue(left="0x72"),
            queue(phase="paused"),
            # It has begun to sell only now.
            queue() | {SELLING: "_x40 1x32"},
            # A moment between two calls.
            queue(live="1x40 0x3 1x29"),
        ],
    ),
    "SeckillSalePaused": Case("3m", sale("paused"), [sale("selling", asked="0x144")]),
    "SeckillGroupBehind": Case("5m", behind("121x60"), [behind("119x60"), behind("0+5x30 0x30")]),
    "SeckillDeadLetters": Case("3m", letters("1x36"), [letters("0x36")]),
    "SeckillSaleFenced": Case("3m", sale("fenced"), [sale("paused", asked="0x144")]),
    "SeckillLoginsRefused": Case(
        "4m",
        reserve(unauthenticated="0+15x48", keys_unavailable="0+15x48", created="0+70x48"),
        [
            reserve(unauthenticated="0+5x48", keys_unavailable="0+10x48", created="0+85x48"),
            reserve(forbidden="0+90x48", created="0+10x48"),
        ],
    ),
    "SeckillRateLimited": Case(
        "5m",
        reserve(rate_limited="0+30x60", created="0+70x60"),
        [reserve(rate_limited="0+10x60", created="0+90x60")],
    ),
}


def test_every_alert_has_a_case() -> None:
    assert CASES.keys() == RULES.keys()


@promtool
def test_promtool_accepts_the_rules() -> None:
    done = run("check", "rules", FILE)
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"SUCCESS: {len(RULES)} rules found" in done.stdout


@promtool
@pytest.mark.parametrize("alert", CASES)
def test_it_fires_and_it_does_not(alert: str, tmp_path: Path) -> None:
    case = CASES[alert]
    tests = [trial(alert, case.fires, [case.at], fires=True)]
    until_s = seconds(case.at)
    times = [f"{at}s" for at in range(0, until_s + 1, until_s // 12)]
    tests += [trial(alert, series, times, fires=False) for series in case.silent]
    done = run_tests(tests, tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr


@promtool
def test_a_test_that_expects_the_opposite_fails(tmp_path: Path) -> None:
    """Or promtool would say nothing at all by its silence."""
    case = CASES["SeckillBug"]
    for series, fires in ((case.fires, False), (case.silent[0], True)):
        done = run_tests([trial("SeckillBug", series, [case.at], fires=fires)], tmp_path)
        assert done.returncode != 0
        assert "FAILED" in done.stdout + done.stderr


def run(*command: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["promtool", *map(str, command)],
        capture_output=True,
        encoding="utf-8",
        check=False,
        timeout=60,
    )


def run_tests(tests: list[Any], folder: Path) -> subprocess.CompletedProcess[str]:
    file = folder / "tests.yml"
    # YAML's parsers take JSON.
    document = {"rule_files": [str(FILE)], "evaluation_interval": INTERVAL, "tests": tests}
    file.write_text(json.dumps(document), encoding="utf-8")
    return run("test", "rules", file)


def trial(alert: str, series: Series, times: list[str], *, fires: bool) -> Any:
    """A test for promtool. What it compares are labels and annotations as well, so of an alert that
    fires it is only asked whether there is one."""
    count = f'count(ALERTS{{alertname="{alert}",alertstate="firing"}})'
    return {
        "interval": INTERVAL,
        "input_series": [{"series": name, "values": values} for name, values in series.items()],
        "promql_expr_test": [
            {
                "expr": count,
                "eval_time": time,
                "exp_samples": [{"labels": "{}", "value": 1}] if fires else [],
            }
            for time in times
        ],
    }


def seconds(time: str) -> int:
    return int(time[:-1]) * {"s": 1, "m": 60}[time[-1]]


# -- what the rules name ----------------------------------------------------------------------


def shown_names() -> dict[str, set[str]]:
    """Every name a scrape may show, with its labels."""
    found = {"up": set[str](), "ALERTS": set[str]()}
    for family in FAMILIES:
        labels = set(family.labels)
        match family.kind:
            case "counter":
                found[f"{family.name}_total"] = labels
            case "gauge":
                found[family.name] = labels
            case "histogram":
                found[f"{family.name}_bucket"] = labels | {"le"}
                found[f"{family.name}_sum"] = found[f"{family.name}_count"] = labels
    return found


def codes() -> set[str]:
    kinds = [*problems.ANSWERS.values(), *problems.RAISED.values()]
    kinds += [value for value in vars(problems).values() if isinstance(value, problems.Kind)]
    return {kind.code for kind in kinds}


PHASES = {"created", "not_started", "selling", "ended", "paused", "closed", "fenced", "settled"}


def values_of(label: str) -> set[str]:
    return {
        "code": codes(),
        "phase": PHASES,
        "state": {"available", "held", "confirmed"},
        "verb": {"reserve"},
        "job": {"seckill"},
    }[label]


@pytest.mark.parametrize("alert", RULES)
def test_what_it_names_is_there(alert: str) -> None:
    names = shown_names()
    expression = RULES[alert]["expr"]
    used = re.findall(r"\b(seckill_\w+|up)\b(?:\{([^}]*)\})?", expression)
    assert used
    for name, matchers in used:
        assert name in names, name
        for label, value in re.findall(r'(\w+)=~?"([^"]*)"', matchers):
            assert label in names[name] | {"job"}, (name, label)
            assert set(value.split("|")) <= values_of(label), value
    for labels in re.findall(r"\b(?:by|on) \(([^)]*)\)", expression):
        for label in labels.split(", "):
            assert label in {"job", "instance"} or any(label in names[name] for name, _ in used)


@pytest.mark.parametrize("alert", RULES)
def test_it_tells_somebody_what_to_do(alert: str) -> None:
    rule = RULES[alert]
    assert rule["labels"]["severity"] in ("critical", "warning")
    assert rule["annotations"]["summary"].strip().endswith(".")
    file, _, anchor = rule["annotations"]["runbook"].partition("#")
    assert file == "docs/observability.md"
    # A heading of the runbook names the alert, and GitHub makes the anchor of it.
    headings = re.findall(r"(?m)^### (.+)$", GUIDE)
    assert anchor in [heading.lower().replace(" ", "-") for heading in headings]
    words = re.findall("[A-Z][a-z]+", alert)[1:]
    assert anchor == "-".join(words).lower()


# -- what the guide says ----------------------------------------------------------------------


def table(*columns: str) -> list[list[str]]:
    found = []
    for part in re.findall(r"(?m)(?:^\|.*\|\n)+", GUIDE):
        rows = [
            [cell.replace("`", "").strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]]
            for line in part.splitlines()
        ]
        if tuple(rows[0][: len(columns)]) == columns:
            found.append(rows[2:])
    assert len(found) == 1
    return found[0]


def test_the_guide_lists_every_metric() -> None:
    documented = {name: labels for name, labels, *_ in table("metric", "labels")}
    assert documented == {
        f"{family.name}_total" if family.kind == "counter" else family.name: ", ".join(
            family.labels
        )
        for family in FAMILIES
    }


def test_the_guide_has_every_alert_once() -> None:
    documented = [row[0] for row in table("alert", "severity")]
    assert documented == list(RULES)
    for alert, severity, *_ in table("alert", "severity"):
        assert severity == RULES[alert]["labels"]["severity"]


def test_the_guide_names_every_log_field() -> None:
    from seckill.server.log import FIELDS

    documented = [row[0] for row in table("field", "holds")]
    assert documented == ["time", "level", "logger", "message", *FIELDS, "exception"]


def test_the_scrape_of_the_guide(tmp_path: Path) -> None:
    """It names the path that is served, and the job the alerts ask for."""
    (config,) = re.findall(r"(?ms)^```yaml\n(.*?)^```$", GUIDE)
    (job,) = yaml.safe_load(config)["scrape_configs"]
    assert job["job_name"] == "seckill"
    assert job.get("metrics_path", "/metrics") == ROUTES[0].path
    assert job["authorization"]["credentials_file"]
    if shutil.which("promtool"):
        shutil.copy(FILE, tmp_path)
        key = tmp_path / "key"
        key.write_text("sk_x", encoding="utf-8")
        (tmp_path / "prometheus.yml").write_text(
            config.replace(job["authorization"]["credentials_file"], str(key)), encoding="utf-8"
        )
        done = run("check", "config", tmp_path / "prometheus.yml")
        assert done.returncode == 0, done.stdout + done.stderr
        assert f"{len(RULES)} rules found" in done.stdout
