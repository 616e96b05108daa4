"""The best of the learning rates that were tried at each size, and whether it is at their edge."""

from dataclasses import dataclass

import pandas as pd


@dataclass(frozen=True)
class RateSweep:
    """Runs of one size that differ in peak rate: the mean final loss of each rate."""

    size: float  # N
    width: int | None
    losses: dict[float, float]  # by rate, rising

    @property
    def best(self) -> float:
        return min(self.losses, key=self.losses.__getitem__)

    @property
    def at_edge(self) -> bool:
        """Whether a rate beyond those tried may be better still."""
        rates = list(self.losses)
        return self.best in (rates[0], rates[-1])

    @property
    def constant(self) -> float | None:
        """The best rate times width, the c of rate = c / width; None where no width is known."""
        return None if self.width is None else self.best * self.width

    def relative(self, rate: float) -> float:
        """How much worse a rate is than the best: 0.01 is 1 %."""
        return self.losses[rate] / self.losses[self.best] - 1


def rate_sweeps(finals: pd.DataFrame, size: str) -> tuple[RateSweep, ...]:
    """Of each size in the column `size` that was run with several rates, the smallest first."""
    known = finals.dropna(subset=[size, "learning_rate", "val_loss"])
    found = []
    for _, runs in known.groupby(size):
        losses = runs.groupby("learning_rate").val_loss.mean()
        if len(losses) < 2:
            continue
        widths = runs.width.dropna().unique()
        width = int(widths[0]) if len(widths) == 1 else None
        by_rate = dict(zip(losses.index.tolist(), losses.tolist(), strict=True))
        found.append(RateSweep(float(runs[size].iloc[0]), width, by_rate))
    return tuple(found)
