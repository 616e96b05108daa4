"""How an optimum was found, and whether a claimed one is one."""

from dataclasses import asdict, dataclass
from typing import Any

_BOUNDS = {"E at its lower bound": "E ran to zero: the data wants no floor"}


@dataclass(frozen=True)
class Certificate:
    """Carried by every fit: what speaks for its being the optimum."""

    starts: int
    agreed: float  # share of starts that ended at the best objective, within 1e-6 relative
    objective: float  # in its own units: Σ r², Σ Huber_δ(r) or Σ |r|, r the log residual
    gradient: float  # largest component at the end, relative to the size of its summands
    converged: bool
    bounds: tuple[str, ...]  # parameters that rest against a bound
    moved: float  # longest way of a parameter from the best start, in logs or exponent
    condition: float  # of the information matrix with unit diagonal

    @property
    def flags(self) -> tuple[str, ...]:
        found = [] if self.converged else [f"NOT CONVERGED: gradient {self.gradient:.0e}"]
        found += [_BOUNDS.get(bound, bound) for bound in self.bounds]
        if self.starts > 1 and self.agreed < 0.25:
            found.append(f"only {self.agreed:.0%} of {self.starts} starts reached the best optimum")
        if self.condition > 1e6:
            found.append(f"parameters can hardly be told apart (condition {self.condition:.0e})")
        return tuple(found)

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)
