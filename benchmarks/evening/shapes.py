"""The shape of the load, for locust."""

from __future__ import annotations

from typing import Any

from locust import LoadTestShape

from .crowd import present
from .run import Run

__all__ = ["Rush"]


class Rush(LoadTestShape):
    """A rush at the opening and a long tail. ``--users`` is how many come in all. ``--run-time``,
    counted from the opening, ends it; it ends before, when every evening is over. ``--spawn-rate``
    says nothing here."""

    use_common_options = True

    def __init__(self) -> None:
        super().__init__()
        self._last: tuple[int, float] = (1, 1.0)

    def reset_time(self) -> None:
        """A new run."""
        super().reset_time()
        self._last = (1, 1.0)

    def tick(self) -> tuple[int, float] | None:
        """Asked about once a second by whoever leads the run."""
        assert self.runner is not None
        environment: Any = self.runner.environment
        run: Run = environment.evening
        if run.failed:
            return None
        if run.shop is None:
            return self._last  # The first buyer begins the run.
        asked, options = environment.parsed_options, run.shop.options
        users, after_s = asked.num_users or 1, self.get_run_time()
        opened_s = after_s - max(0.0, run.opening_s)
        if run.evenings() >= users or (asked.run_time and opened_s > asked.run_time):
            return None
        count = present(
            users, options.rush, options.tail_s, options.come_per_s, run.opening_s, after_s
        )
        if count > self._last[0]:
            # All of them within the second until the next tick.
            self._last = (count, float(count - self._last[0]))
        return self._last
