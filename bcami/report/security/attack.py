"""What an attack is, its transcript, and its verdict.

An attack does what it can and writes down what it saw: steps, what refused them, and for each aim whether it was
reached. The verdict follows from that and from nothing else:

    falls    an aim was reached that must be out of reach
    partly   no such aim was reached, but one that the system does not claim to prevent (a *limit*, said beforehand)
    holds    no aim was reached
    void     a check failed without which the attack proves nothing: the system does not work even undisturbed, or
             the attack never took place
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Final

from bcami.mdms.records import ReportFault
from bcami.model.reasons import Reason


class Verdict(StrEnum):
    """From the best to the worst."""

    HOLDS = "holds"
    PARTLY = "partly"
    VOID = "void"
    FALLS = "falls"


_ORDER: Final = tuple(Verdict)


def worst(verdicts: Sequence[Verdict]) -> Verdict:
    """Return the worst of some verdicts; of none, `void`."""
    return max(verdicts, key=_ORDER.index, default=Verdict.VOID)


class Kind(StrEnum):
    """What a line of a transcript is."""

    STEP = "does"
    ANSWER = "answer"
    CHECK = "check"
    AIM = "aim"


@dataclass(frozen=True, slots=True)
class Line:
    """One line of a transcript."""

    kind: Kind
    what: str
    came_of_it: str = ""


@dataclass(frozen=True, slots=True)
class Aim:
    """Something the attacker wants."""

    what: str
    reached: bool
    limit: str = ""
    """Why the system does not claim to prevent it; empty when it must."""


@dataclass(frozen=True, slots=True)
class Stopped:
    """What said no, and where."""

    where: str
    reason: str


@dataclass(slots=True)
class Account:
    """What an attack saw."""

    lines: list[Line] = field(default_factory=list)
    aims: list[Aim] = field(default_factory=list)
    stopped: list[Stopped] = field(default_factory=list)
    failed_checks: list[str] = field(default_factory=list)

    def does(self, what: str, came_of_it: str = "") -> None:
        """Write down a step of the attacker."""
        self.lines.append(Line(Kind.STEP, what, came_of_it))

    def no(self, where: str, reason: Reason | ReportFault | str | None) -> bool:
        """Write down what said no; None when nothing did. Return whether something did."""
        if reason is None or reason is Reason.VALID:
            self.lines.append(Line(Kind.ANSWER, where, "accepted"))
            return False
        self.lines.append(Line(Kind.ANSWER, where, str(reason)))
        said = Stopped(where, str(reason))
        if said not in self.stopped:
            self.stopped.append(said)
        return True

    def check(self, what: str, held: bool) -> None:
        """Write down something without which the attack proves nothing."""
        self.lines.append(Line(Kind.CHECK, what, "yes" if held else "no"))
        if not held:
            self.failed_checks.append(what)

    def aim(self, what: str, reached: bool, limit: str = "") -> None:
        """Write down whether an aim was reached; `limit` says why it is none that the system claims to prevent."""
        self.aims.append(Aim(what, reached, limit))
        came_of_it = "not reached" if not reached else "reached, as said" if limit else "reached"
        self.lines.append(Line(Kind.AIM, what, came_of_it))

    @property
    def verdict(self) -> Verdict:
        if any(aim.reached and not aim.limit for aim in self.aims):
            return Verdict.FALLS
        if self.failed_checks or not self.aims:
            return Verdict.VOID
        return Verdict.PARTLY if any(aim.reached for aim in self.aims) else Verdict.HOLDS


BC_AMI: Final = "BC-AMI"
Run = Callable[[int], Account]
"""Carries the attack out; the argument is the seed."""


@dataclass(frozen=True, slots=True)
class PaperRun:
    """The same attack against the paper's literal protocol."""

    sections: str
    run: Run
    paper: str = BC_AMI


@dataclass(frozen=True, slots=True)
class Attack:
    """One attack."""

    key: str
    """`F3.2`: the property and a number."""
    title: str
    attacker: str
    """What the attacker holds and can do."""
    run: Run
    paper: PaperRun | None = None
    also: tuple[str, ...] = ()
    """Other properties that it is about."""
    slow: bool = False
    """Left out of a quick report."""

    @property
    def properties(self) -> tuple[str, ...]:
        return (self.key.partition(".")[0], *self.also)


@dataclass(frozen=True, slots=True)
class Finding:
    """An attack that was carried out."""

    attack: Attack
    ours: Account
    papers: Account | None


def carry_out(attack: Attack, seed: int) -> Finding:
    """Carry an attack out, here and against the paper's protocol."""
    papers = None if attack.paper is None else attack.paper.run(seed)
    return Finding(attack, attack.run(seed), papers)
