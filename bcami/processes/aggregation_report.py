"""What a run of private aggregation tells: each half-hour's sum beside the true one, who was left out and why."""

import datetime as dt
from collections import Counter
from collections.abc import Iterable, Mapping

import msgspec

from bcami.aggregation.bounds import Plan
from bcami.aggregation.head_end import MaskedRound
from bcami.aggregation.records import Declined
from bcami.aggregation.rehearsal import Traffic
from bcami.ami.aggregation_history import EarlierRound
from bcami.model.reasons import Reason
from bcami.units import energy_to_text


class RoundReport(msgspec.Struct, frozen=True):
    """One interval."""

    round: int
    first_s: int
    reason: Reason
    """`valid`, or why the round is void."""
    energy: int | None
    true_energy: int | None
    """Of the same members, from the data set."""
    contributors: int
    is_proven: bool
    """The contract checked every signature and the sum."""
    seconds: float
    cpu_s: float = 0.0
    """CPU time of head-end and meters together; the nodes' is not in it."""
    explanation: str = ""
    """Of a void round: what was missing, and what it stands against."""


class LeftOut(msgspec.Struct, frozen=True):
    """A meter that is not in a sum."""

    meter: str
    first_s: int
    """Start of the half-hour."""
    reason: Reason
    """Its own no, or why the head-end went on without it; `timed_out`: it did not answer."""
    earlier: int = 0
    """Round of an earlier sum that stands against this one."""
    is_trial: bool = False
    """Gone because the run was asked for drop-outs."""


class SummedBefore(msgspec.Struct, frozen=True):
    """A half-hour that is not summed again."""

    first_s: int
    earlier: int
    """The round that stands against it."""
    text: str


class Setup(msgspec.Struct, frozen=True):
    """What came before the first round: the roster went to all members, who agreed on keys with their neighbours."""

    seconds: float
    cpu_s: float
    """Of head-end and meters together."""
    roster_bytes: int
    """To each meter."""
    agreements: int
    """Of keys, at each meter, on average."""
    meter_ms: float
    """CPU time of a meter's own steps, on average."""


class AggregateReport(msgspec.Struct, frozen=True):
    """What came of it."""

    members: int
    plan: Plan | None
    """Neighbours, threshold and collusion bound; None in ring mode."""
    rounds: tuple[RoundReport, ...]
    dropped: int
    messages_per_meter: float
    """Sent by a meter in a round, on average; without the setup of a ring."""
    bytes_sent_per_meter: float
    bytes_received_per_meter: float
    """In a round; without a masked round's roster, which comes before."""
    cpu_ms_per_meter: float
    """Of one round, without HTTP."""
    head_end_cpu_ms: float
    """Of one round, without HTTP."""
    transactions: int
    transaction_bytes: int
    noes: Mapping[str, Mapping[str, int]]
    """What each kind of party turned down: party → reason → how often."""
    left_out: tuple[LeftOut, ...] = ()
    summed_before: tuple[SummedBefore, ...] = ()
    processes: int = 0
    """That played the meters; 0: the command itself did."""
    lost: tuple[str, ...] = ()
    """Those of them that ended too early."""
    setup: "Setup | None" = None
    """Masked mode only."""

    @property
    def is_exact(self) -> bool:
        """Every round has a sum, and the right one."""
        return all(item.reason is Reason.VALID and item.energy == item.true_energy for item in self.rounds)


def half_hour_text(first_s: int) -> str:
    """Return the start of a half-hour as people write it, UTC."""
    return dt.datetime.fromtimestamp(first_s, dt.UTC).strftime("%Y-%m-%d %H:%M")


def name_of(earlier: EarlierRound) -> str:
    """Return an earlier round as a person may look it up: number, group, time, members, sum."""
    view = earlier.view
    parts = [f"round {earlier.number} of {view.group}, {view.start.mode}, {half_hour_text(view.start.first_s)}"]
    if view.result is not None and view.result.sums:
        parts.append(f"{view.result.count} meters, {energy_to_text(sum(view.result.sums))} kWh")
    return ": ".join(parts)


def explain_void(masked: MaskedRound, reason: Reason, members: int, contributors_min: int) -> str:
    """Return what a void round lacked, in one line."""
    if reason is Reason.VALID:
        return ""
    if masked.alike is not None:
        return (
            f"its contributors would differ from those of round {masked.alike.earlier} by {masked.alike.differ}; "
            "within a day 8 or more come and go together: sum the same meters again, or another day"
        )
    missing = masked.left_out()
    if reason is Reason.GROUP_TOO_SMALL:
        allowed = members - contributors_min
        return f"{len(missing)} of {members} are missing, at most {allowed} may be: {_counted(missing.values())}"
    return _counted(missing.values())


def _counted(noes: Iterable[Declined]) -> str:
    def words(no: Declined) -> str:
        if no.reason is Reason.TIMED_OUT:
            return "did not answer"
        return no.reason.value + (f" in round {no.earlier}" if no.earlier else "")

    return ", ".join(f"{count} {what}" for what, count in Counter(map(words, noes)).most_common())


def means(
    traffic: list[Traffic], rounds: int, setup_messages: int, cpu_s: tuple[float, float]
) -> tuple[float, float, float, float, float]:
    """Return messages, bytes sent, bytes received, CPU ms of a meter in a round, and CPU ms of the head-end."""
    shares = len(traffic) * rounds
    return (
        round((sum(item.sent for item in traffic) - setup_messages) / shares, 3),
        round(sum(item.sent_bytes for item in traffic) / shares, 1),
        round(sum(item.received_bytes for item in traffic) / shares, 1),
        round(cpu_s[0] * 1000 / shares, 3),
        round(cpu_s[1] * 1000 / rounds, 3),
    )
