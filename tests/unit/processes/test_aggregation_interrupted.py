"""A run that is killed in the middle of a round: what the next one finds, and what no meter does twice.

Meters and head-end are objects that are thrown away; what stays is the meters' stores and the chain. The chain here keeps
the contract's rules that matter: numbers rise, sets shrink, the first end of a round stays.
"""

import asyncio
from collections import defaultdict
from types import SimpleNamespace

import pytest

from bcami.aggregation.head_end import Call, Ended, MaskedRound, Past, Submit
from bcami.aggregation.records import (
    TO_HEAD_END_CODEC,
    Contribution,
    Declined,
    Reveal,
    RevealCall,
    RoundCall,
    RoundVoid,
)
from bcami.aggregation.rehearsal import Rehearsal
from bcami.aggregation.rules import are_near
from bcami.ami.aggregation_history import EarlierRound
from bcami.errors import InputError
from bcami.model.aggregation import (
    MASKED,
    NO_NOISE,
    REVEALED,
    RoundResult,
    RoundView,
    SettleArgument,
    Settlement,
    members_of,
)
from bcami.model.reasons import Reason
from bcami.processes.aggregation_place import AggregateOptions, look_back

FIRST_S = 1_800 * 100_000
MEMBERS = 9


def reading(member: int, first_s: int) -> int:
    return 1_000_003 * (member + 1) + first_s % 86_400


class Chain:
    """What was recorded: as much of the contract as a restart meets."""

    def __init__(self, street: Rehearsal) -> None:
        self._street = street
        self.starts, self.settled, self.results, self.ends = {}, {}, {}, {}

    def record(self, function, argument):
        number = argument.round
        if function == "start":
            if number <= max(self.starts, default=0):
                return Reason.ROUND_NOT_ABOVE
            self.starts[number] = argument
        elif number in self.results:
            return Reason.ROUND_ENDED
        elif function == "settle":
            before = self.settled.get(number)
            assert before is None or not before.is_final
            self.settled[number] = Settlement(argument.wave, argument.contributors, argument.is_final)
        elif function in ("finish", "void"):
            reason, sums = (Reason.VALID, argument.sums) if function == "finish" else (argument.reason, ())
            if function == "void":
                settled = self.settled.get(number)
                assert (reason in REVEALED) == (settled is not None and settled.is_final)
            self.results[number] = RoundResult(reason, sums, 0, True, 0)
        proof = self._street.reader.record(function, argument)
        if number in self.results:
            self.ends[number] = proof
        return proof

    async def submit(self, function, argument):
        return self.record(function, argument)

    async def near(self, _intervals) -> list[EarlierRound]:
        hids, found = [member.hid for member in self._street.members], []
        for number, start in self.starts.items():
            settled = self.settled.get(number)
            final = members_of(settled.contributors) if settled and settled.is_final else ()
            view = RoundView(start, "street", settled, self.results.get(number))
            found.append(EarlierRound(view, frozenset(hids[place] for place in final), frozenset(hids)))
        return found

    async def ending(self, number):
        return self.ends[number]


class Town:
    """A street whose command may be killed; what left it is remembered."""

    def __init__(self) -> None:
        self.street = Rehearsal(MEMBERS, b"killed")
        self.chain = Chain(self.street)
        self.left = defaultdict(set)
        """(member, round) → contributions that left."""
        self.told = defaultdict(set)
        """(member, round, other) → what it revealed about the other: "seed", "share"."""

    def kill(self) -> None:
        for member in range(MEMBERS):
            self.street.restart(member)

    def ask(self, member: int, message, *, is_kept: bool = True):
        """Let a meter answer; when it is killed before its writes are durable, nothing of it leaves."""
        store = dict(self.street.stores[member])
        answer = self.street.step(member, message, lambda first_s: reading(member, first_s)).message
        if not is_kept:
            self.street.stores[member] = store
            return None
        if isinstance(answer, Contribution):
            self.left[member, answer.round].add(TO_HEAD_END_CODEC.encode(answer))
        if isinstance(answer, Reveal):
            settled = self.chain.settled[answer.round]
            for other, _ in answer.secrets:
                self.told[member, answer.round, other].add("share" if settled.is_final else "seed")
        return answer

    def round(
        self, number: int, first_s: int, steps: int = 1 << 30, *, is_kept: bool = True, silent=()
    ) -> Ended | None:
        """Play a round; after so many steps the command is killed and None is the answer."""
        street, start = self.street, self.street.start(number, first_s)
        past = [
            Past(other, members_of(settled.contributors))
            for other, settled in self.chain.settled.items()
            if settled.is_final and are_near(self.chain.starts[other], start)
        ]
        head_end = MaskedRound(street.group, start, street.reader, street.notice, past)
        proof = self.chain.record("start", start)
        assert not isinstance(proof, Reason)
        effects, ended, phase = head_end.begin(proof), None, ""
        while effects or ended is None:
            if not effects:
                effects = head_end.timed_out(phase)
                continue
            match effects.pop(0):
                case Call(member, message) if member not in silent:
                    steps -= 1
                    answer = self.ask(member, message, is_kept=is_kept or steps > 0)
                    if steps <= 0:
                        return None
                    effects += [] if answer is None else head_end.receive(member, answer)
                case Submit(function, argument):
                    steps -= 1
                    outcome = self.chain.record(function, argument)
                    if steps <= 0:
                        return None
                    effects += head_end.recorded(function, outcome)
                case Ended() as last:
                    ended = last
                case other:
                    phase = getattr(other, "phase", phase)
        return ended

    def next_run(self, intervals: tuple[int, ...]):
        """Do what a command does before its first round."""
        ids = {member.hid: str(place) for place, member in enumerate(self.street.members)}
        options = AggregateOptions("street", MASKED, intervals, 0.0, NO_NOISE)
        place = SimpleNamespace(
            options=options, meter_ids=ids, history=self.chain, chain=self.chain, show=lambda _text: None
        )
        ahead = asyncio.run(look_back(place, 1))
        for proof in ahead.voids:
            for member in range(MEMBERS):
                self.ask(member, RoundVoid(proof))
        return ahead


CALLS, SETTLE, REVEALS, TALLY, FINISH = 18, 19, 28, 29, 30
"""Steps after which all rosters and contributions are there, and so on."""


@pytest.mark.parametrize("is_kept", [True, False])
@pytest.mark.parametrize("steps", [1, 14, CALLS, SETTLE, 24, REVEALS, TALLY, FINISH])
def test_killed_in_the_middle(steps: int, is_kept: bool) -> None:
    town = Town()
    assert town.round(1, FIRST_S, steps, is_kept=is_kept) is None
    town.kill()
    # Whoever asks the same again, with the same receipts, gets the same again or a no.
    call = RoundCall(town.street.reader.record("start", town.chain.starts[1]))
    again = [town.ask(member, call) for member in range(MEMBERS)]
    assert all(isinstance(answer, Contribution | Declined) for answer in again)
    is_final = steps >= SETTLE
    ahead = town.next_run((FIRST_S, FIRST_S + 1800))
    assert ahead.intervals == ((FIRST_S + 1800,) if is_final else (FIRST_S, FIRST_S + 1800))
    assert [item.earlier for item in ahead.summed_before] == ([1] if is_final else [])
    first = town.chain.results[1]
    why = Reason.ALREADY_REVEALED if is_final else Reason.TIMED_OUT
    assert first.reason is (Reason.VALID if steps == FINISH else why)
    for number, first_s in enumerate(ahead.intervals, 2):
        ended = town.round(number, first_s)
        assert ended.reason is Reason.VALID
        assert ended.sums == (sum(reading(member, first_s) for member in range(MEMBERS)),)
    assert town.chain.results[1] is first, "the first end of a round stays"
    assert all(len(contributions) == 1 for contributions in town.left.values()), "one mask for each round"
    assert all(len(kinds) == 1 for kinds in town.told.values()), "a seed or a share, never both"


def test_killed_while_seeds_are_asked_for() -> None:
    """One is gone, seeds about it were told; after the restart no meter tells a share about it in this round."""
    town = Town()
    quiet = frozenset({4})
    assert town.round(1, FIRST_S, 8 + 8 + 1 + 3, silent=quiet) is None
    assert {kind for kinds in town.told.values() for kind in kinds} == {"seed"}
    town.kill()
    settle = town.chain.settled[1]
    assert not settle.is_final
    final = town.street.reader.record("settle", SettleArgument(1, settle.wave + 1, settle.contributors, True))
    for member in set(range(MEMBERS)) - quiet:
        town.ask(member, RoundCall(town.street.reader.record("start", town.chain.starts[1])))
        town.chain.settled[1] = Settlement(1, settle.contributors, True)
        answer = town.ask(member, RevealCall(final, ()))
        assert isinstance(answer, Reveal)
    assert all(len(kinds) == 1 for kinds in town.told.values())


def test_nothing_is_left_after_a_whole_round() -> None:
    town = Town()
    assert town.round(1, FIRST_S).reason is Reason.VALID
    town.kill()
    with pytest.raises(InputError, match="nothing is left to sum"):
        town.next_run((FIRST_S,))
