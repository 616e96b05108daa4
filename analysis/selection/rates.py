"""The best learning rate tried at each size, and whether it is at the edge of the range tried."""

from dataclasses import dataclass

import pandas as pd


@dataclass(frozen=True)
class RateSweep:
    """The mean final loss of each peak learning rate that was tried at one size."""

    size: float  # N
    width: int | None
    losses: dict[float, float]  # by learning rate, in increasing order

    @property
    def best(self) -> float:
        """The learning rate with the least loss."""
        return min(self.losses, key=self.losses.__getitem__)

    @property
    def at_edge(self) -> bool:
        """Whether the best rate is the lowest or highest tried, so a rate outside may be better."""
        rates = list(self.losses)
        return self.best in (rates[0], rates[-1])

    @property
    def constant(self) -> float | None:
        """The best rate times width, c in rate = c / width; None where the width is unknown."""
        return None if self.width is None else self.best * self.width

    def relative(self, rate: float) -> float:
        """The relative excess of a rate's loss over the best loss; 0.01 is 1 %."""
        return self.losses[rate] / self.losses[self.best] - 1


def rate_sweeps(finals: pd.DataFrame, size: str) -> tuple[RateSweep, ...]:
    """One RateSweep for each size in the column `size` with several rates, smallest size first."""
    known = finals.dropna(subset=[size, "learning_rate", "val_loss"])
    sweeps = []
    for _, runs in known.groupby(size):
        losses = runs.groupby("learning_rate").val_loss.mean()
        if len(losses) < 2:
            continue
        # c = rate · width has a meaning only if all runs of the size have one width.
        widths = runs.width.dropna().unique()
        width = int(widths[0]) if len(widths) == 1 else None
        by_rate = dict(zip(losses.index.tolist(), losses.tolist(), strict=True))
        sweeps.append(RateSweep(float(runs[size].iloc[0]), width, by_rate))
    return tuple(sweeps)
