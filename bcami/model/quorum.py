"""Vote thresholds: the only place where they are computed."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Quorum:
    """Thresholds of a cluster of n replicas [CL02, section 2]."""

    n: int

    @property
    def f(self) -> int:
        """Faulty replicas that are tolerated."""
        return (self.n - 1) // 3

    @property
    def strong(self) -> int:
        """Votes of which any two sets share a correct replica."""
        return (self.n + self.f) // 2 + 1

    @property
    def weak(self) -> int:
        """Votes of which at least one is of a correct replica."""
        return self.f + 1

    def primary(self, view: int) -> int:
        """Return the replica that leads `view` [CL02 4.1]."""
        return view % self.n
