"""When to restart a child process that died, and when to give up."""

from dataclasses import dataclass


@dataclass
class RestartPolicy:
    """Delays that double with each death and start over once a run was long enough to count as healthy."""

    first_delay_s: float = 0.2
    max_delay_s: float = 10.0
    healthy_after_s: float = 30.0
    max_fast_deaths: int = 5
    """Runs in a row that may end before `healthy_after_s`; after one more the child is given up."""
    fast_deaths: int = 0

    def delay_s(self, ran_s: float) -> float | None:
        """How long to wait before the next start, after a run of `ran_s`; None: give up."""
        if ran_s >= self.healthy_after_s:
            self.fast_deaths = 0
        self.fast_deaths += 1
        if self.fast_deaths > self.max_fast_deaths:
            return None
        return float(min(self.first_delay_s * 2 ** (self.fast_deaths - 1), self.max_delay_s))
