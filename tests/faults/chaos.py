"""Chaos: real servers, faults at seeded moments, callers that log everything, and a verdict.

    python -m tests.faults.chaos --seed 7                        one run
    python -m tests.faults.chaos --seeds 20 --topology single    seeds 1 to 20
    python -m tests.faults.chaos --seed 7 --broken new_key       an engine broken on purpose

Each run prints its schedule and one line; docs/chaos.md tells how to read them. Ends with 1 if a
run was invalid, with 3 if one was unknown for a reason that the faults do not explain.
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from collections.abc import Sequence

from seckill.errors import SeckillError
from tests.faults.chaos_broken import VARIANTS
from tests.faults.chaos_judge import Result
from tests.faults.chaos_run import Plan, run
from tests.faults.chaos_schedule import FAULTS, TOPOLOGIES, Fault
from tests.faults.checker import Verdict

__all__ = ["exit_code", "main", "show_schedule"]

PROBLEMS_SHOWN = 5
INVALID, UNUSABLE, UNEXPLAINED = 1, 2, 3


def show_schedule(faults: Sequence[Fault]) -> str:
    """A schedule on one line: each fault with its time and length in seconds."""
    return " ".join(
        f"{fault.name}{f'({fault.amount})' if fault.amount else ''}"
        f"@{fault.at_ms / 1000:.2f}+{fault.for_ms / 1000:.2f}"
        for fault in faults
    )


def exit_code(results: Sequence[Result]) -> int:
    """1 for anything invalid, 3 for an unknown that the faults do not explain, else 0."""
    if any(result.verdict is Verdict.INVALID for result in results):
        return INVALID
    return 0 if all(result.explained for result in results) else UNEXPLAINED


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs what is asked for and prints it. Returns the exit code."""
    options = _options(arguments)
    seeds = [options.seed] if options.seed is not None else range(1, options.seeds + 1)
    results = []
    for seed in seeds:
        plan = Plan(
            options.topology,
            seed,
            options.seconds,
            tuple(filter(None, options.faults.split(","))),
            options.broken,
        )
        print(f"seed {seed}: {show_schedule(plan.schedule)}", flush=True)
        try:
            result = run(plan)
        except SeckillError as error:
            print(f"no sale can be opened on {plan.topology}: {error}", file=sys.stderr)
            return UNUSABLE
        results.append(result)
        print(result, flush=True)
        for problem in result.report.problems[:PROBLEMS_SHOWN]:
            print(f"    {problem}", flush=True)
    _summarize(results)
    return exit_code(results)


def _summarize(results: Sequence[Result]) -> None:
    verdicts = Counter(str(result.verdict) for result in results)
    told = ", ".join(f"{count} {verdict}" for verdict, count in sorted(verdicts.items()))
    runs = "1 run" if len(results) == 1 else f"{len(results)} runs"
    print(
        f"{runs}: {told}; {sum(result.calls for result in results)} calls,"
        f" {sum(result.accepted for result in results)} orders accepted,"
        f" {sum(result.patience.errors for result in results)} errors for patient callers,"
        f" longest silence {max(result.silence_s for result in results):.2f} s"
    )


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m tests.faults.chaos", description="Breaks servers under load and judges."
    )
    parser.add_argument("--topology", choices=TOPOLOGIES, default="single")
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--seed", type=int, help="this one only")
    which.add_argument("--seeds", type=int, default=5, help="so many, from 1 on")
    parser.add_argument("--seconds", type=float, default=6.0, help="how long faults begin")
    parser.add_argument("--faults", default="", help="names with commas between; else the usual")
    parser.add_argument("--broken", choices=sorted(VARIANTS), default="", help="on purpose")
    options = parser.parse_args(arguments)
    if options.seeds < 1:
        parser.error("--seeds must be 1 or more")
    if not options.seconds > 0:
        parser.error("--seconds must be more than 0")
    kinds = FAULTS[options.topology]
    for name in filter(None, options.faults.split(",")):
        if name not in kinds:
            parser.error(f"--faults: {name!r} is none of {', '.join(kinds)}")
    return options


if __name__ == "__main__":
    sys.exit(main())
