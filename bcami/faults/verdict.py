"""Judges a run: what was seen, against what always must hold and what the scenario expects beside it.

A finding is PASS, FAIL or INCONCLUSIVE. Safety is judged whatever the machine did. Speed can fail only when the load
stood before the first fault and nobody else used up the machine: slowness then says something about the protocol.
"""

from collections.abc import Iterable, Sequence
from enum import StrEnum
from typing import Final

import msgspec

from bcami.faults.scenario import Scenario

WARM_UP_S: Final = 1.0
SETTLE_S: Final = 1.0
"""After the last fault the backlog is worked off first; throughput after it counts from here."""
OTHERS_PERCENT_MAX: Final = 25.0
"""When other programs use more of the machine, an expectation of speed that does not hold proves nothing."""
BASELINE_SHARE_MIN: Final = 0.8
"""Share of the asked rate that must be committed before the first fault for speed to be judged."""


class Verdict(StrEnum):
    PASS = "PASS"  # noqa: S105 - a verdict
    FAIL = "FAIL"
    INCONCLUSIVE = "INCONCLUSIVE"


class Sample(msgspec.Struct, frozen=True):
    """The load at one moment."""

    at_s: float
    committed: int
    """Reports with a proven receipt, since the load began."""
    offered: int
    p50_ms: int | None = None
    """Latency of the commits since the sample before that has one."""
    p99_ms: int | None = None


class Shown(msgspec.Struct):
    """A fault as it really happened."""

    kind: str
    on: list[str]
    byzantine: bool
    start_s: float
    end_s: float | None = None
    """When it was over; of a killed node, when it answered again."""
    acted: int | None = None
    """How often the behaviours did something; None where nothing is counted."""
    where: str = ""
    """The nodes, or the sides of a partition, as a person reads them."""


class Ledgers(msgspec.Struct, frozen=True):
    """What the audit of all ledgers and the comparison with the MDMS found."""

    common_height: int
    hashes: dict[str, str]
    """Block hash at the common height, by node."""
    errors: dict[str, str]
    """Why a ledger does not verify, by node."""
    missing: int
    extra: int
    different: int


class History(msgspec.Struct):
    """Everything that a run saw."""

    samples: list[Sample] = msgspec.field(default_factory=list)
    shown: list[Shown] = msgspec.field(default_factory=list)
    load_end_s: float = 0.0
    sent: int = 0
    committed: int = 0
    rejected: dict[str, int] = msgspec.field(default_factory=dict)
    stopped: dict[str, int] = msgspec.field(default_factory=dict)
    evidence: dict[str, list[str]] = msgspec.field(default_factory=dict)
    """By the accused: what it signed twice, as seen by others."""
    recorded: dict[str, int] = msgspec.field(default_factory=dict)
    """Of it, how much the chain holds, by the accused."""
    views: list[int] = msgspec.field(default_factory=list)
    """Every view that a quorum of nodes was seen in, in order."""
    views_s: list[float] = msgspec.field(default_factory=list)
    """When each of them was first seen."""
    in_step_s: dict[str, float | None] = msgspec.field(default_factory=dict)
    """By restarted node: from its first answer until it was level with the others; None if it never was."""
    dead: dict[str, str] = msgspec.field(default_factory=dict)
    """Nodes that halted or ended by themselves, with why."""
    others_percent: float | None = None
    """Of the machine's processors, what programs other than this network used during the load; None when unknown."""
    ledgers: Ledgers | None = None
    trouble: list[str] = msgspec.field(default_factory=list)
    """What kept the run from being complete."""


class Finding(msgspec.Struct, frozen=True):
    """One expectation and what became of it."""

    expectation: str
    verdict: Verdict
    wanted: str
    found: str


class Figures(msgspec.Struct, frozen=True):
    """What a run measured. Rates are reports committed per second."""

    before_per_s: float
    during_per_s: float
    after_per_s: float
    pause_s: float
    """Longest time without a commit from the first fault to the end of the load."""
    pause_at_s: float
    resume_s: float | None
    """From the end of the last fault to the next commit; None when there was none."""
    view_changes: int
    view_changed_s: float | None = None
    """From the first fault until a quorum was seen in a higher view; None when it never was."""

    @property
    def during_percent(self) -> float:
        return 100 * self.during_per_s / self.before_per_s if self.before_per_s else 0.0

    @property
    def after_percent(self) -> float:
        return 100 * self.after_per_s / self.before_per_s if self.before_per_s else 0.0


def figures(scenario: Scenario, history: History) -> Figures:
    """Return the measured figures, from the samples alone."""
    first, last, end = _bounds(scenario, history)
    pause_s, pause_at_s = longest_pause(history.samples, first, end)
    return Figures(
        before_per_s=rate(history.samples, min(WARM_UP_S, first / 2), first),
        during_per_s=rate(history.samples, first, last),
        after_per_s=rate(history.samples, min(last + SETTLE_S, end), end),
        pause_s=round(pause_s, 3),
        pause_at_s=round(pause_at_s, 3),
        resume_s=next_commit(history.samples, last),
        view_changes=max(0, len(history.views) - 1),
        view_changed_s=next((round(at_s - first, 3) for at_s in history.views_s[1:] if at_s >= first), None),
    )


def _bounds(scenario: Scenario, history: History) -> tuple[float, float, float]:
    first = min((item.start_s for item in history.shown), default=scenario.first_fault_s)
    last = max((item.end_s or scenario.last_end_s for item in history.shown), default=scenario.last_end_s)
    return first, last, max(history.load_end_s, last)


def rate(samples: Sequence[Sample], start_s: float, end_s: float) -> float:
    """Return commits per second between two moments."""
    inside = [item for item in samples if start_s <= item.at_s <= end_s]
    if len(inside) < 2 or inside[-1].at_s <= inside[0].at_s:
        return 0.0
    return round((inside[-1].committed - inside[0].committed) / (inside[-1].at_s - inside[0].at_s), 1)


def longest_pause(samples: Sequence[Sample], start_s: float, end_s: float) -> tuple[float, float]:
    """Return the longest time without a commit within two moments, and when it began."""
    longest, began = 0.0, start_s
    moved_s, committed = start_s, None
    for item in samples:
        if not start_s <= item.at_s <= end_s:
            continue
        if committed is not None and item.committed > committed:
            moved_s = item.at_s
        committed = item.committed
        if item.at_s - moved_s > longest:
            longest, began = item.at_s - moved_s, moved_s
    return longest, began


def next_commit(samples: Sequence[Sample], after_s: float) -> float | None:
    """Return the seconds from a moment to the next commit, None when none followed."""
    before = [item.committed for item in samples if item.at_s <= after_s]
    base = before[-1] if before else 0
    found = next((item.at_s for item in samples if item.at_s > after_s and item.committed > base), None)
    return None if found is None else round(found - after_s, 3)


def liars(history: History) -> set[str]:
    """Return the nodes that were told to lie."""
    return {name for item in history.shown if item.byzantine for name in item.on}


def judge(scenario: Scenario, history: History) -> list[Finding]:
    """Return a finding for each thing that always must hold and each expectation of the scenario."""
    findings = [*_safety(scenario, history), *_standing(scenario, history)]
    findings += _validity(scenario, history)
    return findings


def overall(findings: Iterable[Finding]) -> Verdict:
    """One failure fails the run; short of that, one doubt leaves it open."""
    verdicts = {item.verdict for item in findings}
    return next((item for item in (Verdict.FAIL, Verdict.INCONCLUSIVE) if item in verdicts), Verdict.PASS)


def _finding(expectation: str, held: bool, wanted: str, found: str) -> Finding:
    return Finding(expectation, Verdict.PASS if held else Verdict.FAIL, wanted, found)


def _safety(scenario: Scenario, history: History) -> list[Finding]:
    false = liars(history)
    honest = [name for name in scenario.names if name not in false]
    accused = sorted(name for name in {*history.evidence, *history.recorded} if name not in false)
    dead = {name: why for name, why in history.dead.items() if name in honest}
    settled = history.committed == history.sent and not history.stopped
    stopped = f", {sum(history.stopped.values())} given up" if history.stopped else ""
    found = [
        _finding(
            "every report is settled",
            settled,
            "all sent are committed",
            f"{history.committed} of {history.sent}{stopped}",
        ),
        _finding("no honest node halts", not dead, "none", _listed(f"{name}: {why}" for name, why in dead.items())),
        _finding("no honest node is accused", not accused, "none", _listed(accused)),
    ]
    ledgers = history.ledgers
    if ledgers is None:
        why = "; ".join(history.trouble) or "no audit"
        return [*found, Finding("no fork, ledgers verify, readings reconcile", Verdict.INCONCLUSIVE, "an audit", why)]
    hashes = {ledgers.hashes[name] for name in honest if name in ledgers.hashes}
    errors = [f"{name}: {why}" for name, why in ledgers.errors.items() if name in honest]
    missing = [name for name in honest if name not in ledgers.hashes]
    lost = ledgers.missing if settled else max(0, ledgers.missing - (history.sent - history.committed))
    return [
        *found,
        _finding(
            "no fork",
            len(hashes) == 1 and not missing,
            "one chain on all honest nodes",
            f"{len(hashes)} at height {ledgers.common_height}"
            + (f", no block from {_listed(missing)}" if missing else ""),
        ),
        _finding("ledgers verify", not errors, "all honest ones", _listed(errors) if errors else "all"),
        _finding("nothing acknowledged is lost", lost == 0, "0 lost", f"{lost} lost"),
        _finding(
            "readings reconcile",
            ledgers.missing == ledgers.extra == ledgers.different == 0,
            "0 missing, extra, different",
            f"{ledgers.missing} missing, {ledgers.extra} extra, {ledgers.different} different",
        ),
    ]


def _standing(scenario: Scenario, history: History) -> list[Finding]:
    """Judge what the scenario expects."""
    expect, seen = scenario.expect, figures(scenario, history)
    stood = seen.before_per_s >= BASELINE_SHARE_MIN * scenario.load.rate_per_s
    others = history.others_percent or 0.0
    found: list[Finding] = []

    def at_most(expectation: str, limit: float | None, value: float | None, unit: str) -> None:
        if limit is not None:
            said = "never" if value is None else f"{value:.2f}{unit}"
            found.append(_finding(expectation, value is not None and value <= limit, f"≤ {limit:g}{unit}", said))

    def at_least(expectation: str, limit: float | None, value: float, unit: str) -> None:
        if limit is not None:
            found.append(_finding(expectation, value >= limit, f"≥ {limit:g}{unit}", f"{value:.0f}{unit}"))

    at_most("longest time without commits", expect.pause_s_max, seen.pause_s, " s")
    at_most("commits resume after the last fault", expect.resume_s_max, seen.resume_s, " s")
    at_most("the view is changed after the first fault", expect.view_changed_s_max, seen.view_changed_s, " s")
    if expect.in_step_s_max is not None:
        for name, seconds in history.in_step_s.items():
            at_most(f"{name} is in step after its first answer", expect.in_step_s_max, seconds, " s")
    at_least("throughput during the faults", expect.during_percent_min, seen.during_percent, " %")
    at_least("throughput after the faults", expect.after_percent_min, seen.after_percent, " %")
    if not stood or others > OTHERS_PERCENT_MAX:
        failed = [item for item in found if item.verdict is Verdict.FAIL]
        doubtful = {id(item): msgspec.structs.replace(item, verdict=Verdict.INCONCLUSIVE) for item in failed}
        found = [doubtful.get(id(item), item) for item in found]
        if failed and others > OTHERS_PERCENT_MAX:
            wanted, said = f"≤ {OTHERS_PERCENT_MAX:g} % used by others", f"{others:.0f} %"
            found.append(Finding("the machine was free for speed to be judged", Verdict.INCONCLUSIVE, wanted, said))
    at_least("view changes", expect.view_changes_min, seen.view_changes, "")
    at_most("view changes", expect.view_changes_max, seen.view_changes, "")
    for name in _accused(scenario, history):
        kept, recorded = len(history.evidence.get(name, ())), history.recorded.get(name, 0)
        said = f"{kept} kept, {recorded} recorded"
        found.append(_finding(f"evidence against {name}", min(kept, recorded) > 0, "kept and on the chain", said))
    return found


def _accused(scenario: Scenario, history: History) -> list[str]:
    wanted = [word for word in scenario.expect.evidence if word != "faulty"]
    if "faulty" in scenario.expect.evidence:
        wanted += sorted(liars(history) - set(wanted))
    return wanted


def _validity(scenario: Scenario, history: History) -> list[Finding]:
    """Say what makes the run prove less than it should."""
    found = []
    seen = figures(scenario, history)
    asked = scenario.load.rate_per_s
    share = seen.before_per_s / asked
    enough = Verdict.PASS if share >= BASELINE_SHARE_MIN else Verdict.INCONCLUSIVE
    wanted = f"≥ {BASELINE_SHARE_MIN * asked:g} of {asked:g}/s"
    found.append(Finding("the load stood before the first fault", enough, wanted, f"{seen.before_per_s:g}/s"))
    idle = [item for item in history.shown if item.acted == 0]
    if any(item.acted is not None for item in history.shown):
        said = _listed(f"{item.kind} on {', '.join(item.on)} never acted" for item in idle) if idle else "all acted"
        found.append(Finding("the faults really happened", _doubt(idle), "each acted", said))
    false = liars(history)
    if len(false) > scenario.quorum.f:
        text = f"{len(false)} nodes were told to lie, {scenario.quorum.f} are tolerated"
        found.append(Finding("within the fault model", Verdict.INCONCLUSIVE, f"at most {scenario.quorum.f}", text))
    if history.trouble:
        found.append(Finding("the run is complete", Verdict.INCONCLUSIVE, "no trouble", "; ".join(history.trouble)))
    return found


def _doubt(reasons: Sequence[object]) -> Verdict:
    return Verdict.INCONCLUSIVE if reasons else Verdict.PASS


def _listed(items: Iterable[str]) -> str:
    return ", ".join(items) or "none"
