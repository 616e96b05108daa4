"""The diagnostics of a fit: how the optimum was found, and warnings about it."""

from dataclasses import asdict, dataclass
from typing import Any

_BOUND_MESSAGES = {
    "E at its lower bound": "E went to zero: these points do not support an irreducible loss"
}


@dataclass(frozen=True)
class Certificate:
    """The evidence that a fit is the optimum; every fit has one."""

    starts: int  # number of starting points
    agreed: float  # share of starts that reached the best objective, within 1e-6 relative
    # Σ w r², Σ w Huber_δ(r) or Σ w |r|, w: weights of mean 1, r: residuals of log L or of L; runs
    # above the law have their factor.
    objective: float
    gradient: float  # largest component at the optimum, relative to the size of its summands
    converged: bool
    bounds: tuple[str, ...]  # parameters at a bound, in words
    moved: float  # largest change of a parameter from its start, in log units (exponents: in 1)
    condition: float  # condition number of the information matrix, scaled to a unit diagonal

    @property
    def flags(self) -> tuple[str, ...]:
        """Warnings for the reader; empty if there are none."""
        flags = [] if self.converged else [f"NOT CONVERGED: gradient {self.gradient:.0e}"]
        flags += [_BOUND_MESSAGES.get(bound, bound) for bound in self.bounds]
        # Little agreement means several local optima, so the best one may have been missed.
        if self.starts > 1 and self.agreed < 0.25:
            flags.append(f"only {self.agreed:.0%} of {self.starts} starts reached the best optimum")
        # With condition c a standard error can be up to sqrt(c) times that of a parameter fitted
        # alone, here 1,000 times.
        if self.condition > 1e6:
            flags.append(f"parameters are nearly redundant (condition number {self.condition:.0e})")
        return tuple(flags)

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)
