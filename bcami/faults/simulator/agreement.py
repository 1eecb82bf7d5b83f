"""I1 and I6: what honest nodes decide, and what later views make of it."""

from dataclasses import dataclass
from typing import Self

from bcami.model.consensus import NewView


class Violation(Exception):
    """An invariant does not hold."""

    def __init__(self, invariant: str, what: str) -> None:
        super().__init__(f"{invariant}: {what}")
        self.invariant = invariant
        self.what = what


@dataclass(frozen=True, slots=True)
class Decided:
    """What the first honest node that decided a height says of it."""

    digest: bytes
    view: int


@dataclass(frozen=True, slots=True)
class Chosen:
    """A NEW-VIEW that an honest node entered."""

    view: int
    low: int
    digests: dict[int, bytes]

    @classmethod
    def of(cls, new_view: NewView) -> Self:
        stable = [item.stable.height for item in new_view.view_changes if item.stable is not None]
        digests = {item.height: item.digest for item in new_view.pre_prepares}
        return cls(new_view.view, max(stable, default=0), digests)


class Agreement:
    """Watches the honest nodes of one run."""

    def __init__(self) -> None:
        self.decided: dict[int, Decided] = {}
        self._chosen: dict[int, Chosen] = {}

    def decides(self, node: int, height: int, digest: bytes, view: int | None) -> None:
        """Check I1 and I6; `view` is None for what came from catch-up."""
        known = self.decided.get(height)
        if known is not None and known.digest != digest:
            raise Violation("I1", f"node {node} decides another proposal at height {height}")
        if view is not None and (known is None or view < known.view):
            known = self.decided[height] = Decided(digest, view)
            for chosen in self._chosen.values():
                self._check_carried(chosen, height, known)

    def enters(self, new_view: NewView) -> None:
        """Check that the NEW-VIEW proposes again what was decided in lower views (I6)."""
        chosen = self._chosen[new_view.view] = Chosen.of(new_view)
        for height, decided in self.decided.items():
            self._check_carried(chosen, height, decided)

    def _check_carried(self, chosen: Chosen, height: int, decided: Decided) -> None:
        if decided.view < chosen.view and height > chosen.low and chosen.digests.get(height) != decided.digest:
            raise Violation("I6", f"view {chosen.view} proposes something else at the decided height {height}")
