"""Masked rounds: the sum, drop-outs, what a meter refuses, and what it never does twice (protocol 9)."""

from collections import Counter

import msgspec
import pytest

from bcami.aggregation.head_end import Alike, Call, Ended, MaskedRound, Past, Submit
from bcami.aggregation.masks import MaskSum, PairKey
from bcami.aggregation.records import Contribution, Declined, Reveal, RevealCall, RosterNotice, RoundCall, RoundVoid
from bcami.aggregation.rehearsal import READING_MAX, Faults, Rehearsal
from bcami.aggregation.shamir import combine, split
from bcami.model.aggregation import Noise, RosterMember, SettleArgument, VoidArgument, bitmap
from bcami.model.reasons import Reason

DAY_S = 86_400
FIRST_S = 1_800 * 100_000


def reading(member: int, first_s: int) -> int:
    return 1_000_003 * member + first_s % 86_400


def total(outcome, first_s: int) -> int:
    return sum(reading(member, first_s) for member in outcome.contributors)


@pytest.fixture
def street() -> Rehearsal:
    return Rehearsal(40, b"street")


def settle(street: Rehearsal, round_number: int, wave: int, members, is_final: bool) -> RevealCall:
    argument = SettleArgument(round_number, wave, bitmap(set(members), len(street.members)), is_final)
    return RevealCall(street.reader.record("settle", argument), ())


def open_round(street: Rehearsal, start, member: int = 0) -> Contribution:
    """Let one meter contribute, outside of a head-end."""
    street.step(member, street.notice, lambda _: None)
    call = RoundCall(street.reader.record("start", start))
    answer = street.step(member, call, lambda first_s: reading(member, first_s))
    assert isinstance(answer.message, Contribution), answer.message
    return answer.message


def no(answer) -> Reason:
    assert isinstance(answer.message, Declined), answer.message
    return answer.message.reason


class TestSum:
    @pytest.mark.parametrize("slots", [1, 5])
    def test_everybody_two_messages_each(self, street, slots):
        outcome = street.run(street.start(1, FIRST_S, slots), reading)
        assert outcome.reason is Reason.VALID
        assert outcome.sums == tuple(
            sum(reading(member, FIRST_S + 1800 * slot) for member in range(40)) for slot in range(slots)
        )
        assert {traffic.sent for traffic in outcome.traffic} == {2}
        assert {traffic.received for traffic in outcome.traffic} == {2}

    def test_silent_members_change_only_their_own_term(self, street):
        outcome = street.run(street.start(1, FIRST_S), reading, Faults(silent=frozenset({3, 17})))
        assert outcome.reason is Reason.VALID
        assert outcome.contributors == frozenset(range(40)) - {3, 17}
        assert outcome.sums == (total(outcome, FIRST_S),)
        assert max(traffic.sent for traffic in outcome.traffic) == 3

    @pytest.mark.parametrize("answers", [1, 2])
    def test_members_that_go_on_the_way(self, street, answers):
        """Gone after the contribution: its term goes too. Gone after the seeds: its term stays, the threshold helps."""
        faults = Faults(silent=frozenset({3}), gone_at={9: answers})
        outcome = street.run(street.start(1, FIRST_S), reading, faults)
        assert outcome.reason is Reason.VALID
        assert (9 in outcome.contributors) is (answers == 2)
        assert outcome.sums == (total(outcome, FIRST_S),)

    def test_too_many_gone_is_void(self, street):
        outcome = street.run(street.start(1, FIRST_S), reading, Faults(silent=frozenset(range(5))))
        assert (outcome.reason, outcome.sums) == (Reason.GROUP_TOO_SMALL, ())

    def test_sparse_groups(self):
        village = Rehearsal(220, b"village")
        assert village.group.plan.degree < 219
        outcome = village.run(village.start(1, FIRST_S), reading, Faults(silent=frozenset(range(0, 220, 20))))
        assert outcome.reason is Reason.VALID
        assert outcome.sums == (total(outcome, FIRST_S),)

    def test_noise_is_added_and_still_opens_the_commitments(self, street):
        noise = Noise(1_000_000, 50_000_000, 5_000_000)
        outcome = street.run(street.start(1, FIRST_S, noise=noise), reading)
        exact = sum((reading(member, FIRST_S) + 2_500_000) // 5_000_000 * 5_000_000 for member in range(40))
        assert outcome.reason is Reason.VALID
        assert outcome.sums[0] % 5_000_000 == 0
        assert outcome.sums[0] != exact
        assert abs(outcome.sums[0] - exact) < 30 * 50_000_000


@pytest.mark.parametrize("seed", range(6))
def test_loss_crashes_and_reordering_never_make_a_wrong_sum(seed):
    group = Rehearsal(40, b"storm" + bytes([seed]))
    valid = 0
    for number in range(1, 5):
        first_s = FIRST_S + number * 2 * DAY_S
        faults = Faults(loss_percent=20, crash_percent=20, is_reordered=True, gone_at={seed: number % 3})
        outcome = group.run(group.start(number, first_s), reading, faults)
        if outcome.reason is Reason.VALID:
            valid += 1
            assert outcome.sums == (total(outcome, first_s),)
        else:
            assert outcome.reason in {Reason.GROUP_TOO_SMALL, Reason.TIMED_OUT, Reason.TOO_FEW_SHARES}
    assert valid, "some round comes through"


def test_the_same_seed_gives_the_same_run():
    runs = []
    for _ in range(2):
        group = Rehearsal(30, b"again")
        faults = Faults(loss_percent=30, crash_percent=20, is_reordered=True)
        runs.append(group.run(group.start(1, FIRST_S), reading, faults).seen)
    assert runs[0] == runs[1]


class TestNeverTwice:
    def test_a_repeated_question_gets_the_same_bytes_after_a_restart_too(self, street):
        start = street.start(1, FIRST_S)
        first = open_round(street, start)
        street.restart(0)
        assert open_round(street, start) == first
        everybody = range(40)
        call = settle(street, 1, 0, everybody, is_final=True)
        reveal = street.step(0, call, lambda _: None).message
        assert isinstance(reveal, Reveal)
        street.restart(0)
        assert street.step(0, call, lambda _: None).message == reveal

    def test_what_it_answers_is_durable_before_it_leaves(self, street):
        street.step(0, street.notice, lambda _: None)
        call = RoundCall(street.reader.record("start", street.start(1, FIRST_S)))
        before = street.meters[0].receive(call, lambda first_s: 5, b"e" * 32)
        assert before.message is not None
        assert before.writes
        assert not street.stores[0], "the writes are the driver's to make"

    def test_a_round_number_is_answered_once(self, street):
        open_round(street, street.start(5, FIRST_S))
        for number in (5, 4):
            call = RoundCall(street.reader.record("start", street.start(number, FIRST_S + 10 * DAY_S)))
            assert no(street.step(0, call, lambda _: 1)) is Reason.ROUND_NOT_ABOVE

    def test_seed_or_share_never_both(self, street):
        """Member 1 is declared gone and its pairwise seed revealed: its self mask stays covered, whatever follows."""
        open_round(street, street.start(1, FIRST_S))
        gone = set(range(40)) - {1}
        reveal = street.step(0, settle(street, 1, 0, gone, is_final=False), lambda _: None).message
        assert [other for other, _ in reveal.secrets] == [1]
        back = street.step(0, settle(street, 1, 1, range(40), is_final=True), lambda _: None)
        assert no(back) is Reason.CONTRIBUTORS_GREW

    def test_nothing_follows_a_final_set(self, street):
        open_round(street, street.start(1, FIRST_S))
        assert isinstance(street.step(0, settle(street, 1, 0, range(40), True), lambda _: None).message, Reveal)
        later = street.step(0, settle(street, 1, 1, set(range(40)) - {1}, False), lambda _: None)
        assert no(later) is Reason.ALREADY_REVEALED
        void = RoundVoid(street.reader.record("void", VoidArgument(1, Reason.TIMED_OUT)))
        assert no(street.step(0, void, lambda _: None)) is Reason.ALREADY_REVEALED

    def test_an_older_wave_is_stale(self, street):
        open_round(street, street.start(1, FIRST_S))
        old = settle(street, 1, 0, set(range(40)) - {1}, False)
        new = settle(street, 1, 1, set(range(40)) - {1, 2}, False)
        assert isinstance(street.step(0, new, lambda _: None).message, Reveal)
        assert no(street.step(0, old, lambda _: None)) is Reason.CONTRIBUTORS_GREW


class TestWhatAMeterInsistsOn:
    def test_a_receipt_for_everything(self, street):
        street.step(0, street.notice, lambda _: None)
        forged = street.reader.record("start", street.start(1, FIRST_S))
        street.reader.recorded.clear()
        assert no(street.step(0, RoundCall(forged), lambda _: 1)) is Reason.BAD_PROOF

    def test_the_roster_of_the_chain(self, street):
        members = list(street.members)
        members[1] = RosterMember(members[1].hid, 1, members[1].public_key, members[2].kem_key)
        notice = RosterNotice(street.notice.proof, street.notice.beacon, tuple(members))
        assert no(street.step(0, notice, lambda _: None)) is Reason.ROSTER_MISMATCH
        short = RosterNotice(street.notice.proof, street.notice.beacon, street.members[:-1])
        assert no(street.step(0, short, lambda _: None)) is Reason.ROSTER_MISMATCH

    def test_the_graph_is_drawn_from_the_very_next_block(self, street):
        for height in (1, 3):
            notice = RosterNotice(street.notice.proof, street.reader.header(height), street.members)
            assert no(street.step(0, notice, lambda _: None)) is Reason.BAD_PROOF

    def test_a_roster_that_it_is_in(self, street):
        stranger = Rehearsal(40, b"elsewhere")
        stranger.meters[0]._reader = street.reader
        assert no(stranger.step(0, street.notice, lambda _: None)) is Reason.NOT_A_MEMBER

    def test_a_roster_that_it_knows(self, street):
        call = RoundCall(street.reader.record("start", street.start(1, FIRST_S)))
        assert no(street.step(0, call, lambda _: 1)) is Reason.UNKNOWN_ROSTER

    @pytest.mark.parametrize(
        ("value", "reason"),
        [(None, Reason.NO_READING), (-1, Reason.READING_OUT_OF_RANGE), (READING_MAX + 1, Reason.READING_OUT_OF_RANGE)],
    )
    def test_a_reading_in_range(self, street, value, reason):
        street.step(0, street.notice, lambda _: None)
        call = RoundCall(street.reader.record("start", street.start(1, FIRST_S)))
        assert no(street.step(0, call, lambda _: value)) is reason

    def test_noise_that_it_can_draw(self, street):
        street.step(0, street.notice, lambda _: None)
        call = RoundCall(street.reader.record("start", street.start(1, FIRST_S, noise=Noise(1, 0, 1))))
        assert no(street.step(0, call, lambda _: 1)) is Reason.BAD_ARGUMENT

    def test_enough_contributors(self, street):
        open_round(street, street.start(1, FIRST_S))
        few = settle(street, 1, 0, range(35), is_final=True)
        assert no(street.step(0, few, lambda _: None)) is Reason.GROUP_TOO_SMALL

    def test_enough_neighbours(self):
        """A head-end that drops only one meter's neighbours gets nothing from it."""
        village = Rehearsal(500, b"village")
        near = set(village.group.graph[0])
        assert len(near) - village.group.plan.threshold + 1 <= 50
        open_round(village, village.start(1, FIRST_S))
        dropped = sorted(near)[: len(near) - village.group.plan.threshold + 1]
        call = settle(village, 1, 0, set(range(500)) - set(dropped), is_final=False)
        assert no(village.step(0, call, lambda _: None)) is Reason.CUT_OFF

    def test_an_interval_goes_into_one_sum(self, street):
        open_round(street, street.start(1, FIRST_S, 4))
        for first_s in (FIRST_S - 1800, FIRST_S, FIRST_S + 3 * 1800):
            call = RoundCall(street.reader.record("start", street.start(2, first_s, 2)))
            assert no(street.step(0, call, lambda _: 1)) is Reason.INTERVAL_SPENT
        assert open_round(street, street.start(3, FIRST_S + 4 * 1800))

    def test_a_void_round_gives_the_interval_back_only_by_receipt(self, street):
        open_round(street, street.start(1, FIRST_S))
        void = RoundVoid(street.reader.record("void", VoidArgument(1, Reason.TIMED_OUT)))
        assert street.step(0, void, lambda _: None).message is None
        assert open_round(street, street.start(2, FIRST_S))

    def test_a_round_that_is_void_after_its_final_set_gives_nothing_back(self, street):
        """Also to a meter that was not shown that set: others may have been, and the sum may be known."""
        open_round(street, street.start(1, FIRST_S))
        void = RoundVoid(street.reader.record("void", VoidArgument(1, Reason.TOO_FEW_SHARES)))
        assert no(street.step(0, void, lambda _: None)) is Reason.ALREADY_REVEALED
        call = RoundCall(street.reader.record("start", street.start(2, FIRST_S)))
        assert no(street.step(0, call, lambda _: 1)) is Reason.INTERVAL_SPENT

    def test_a_certified_drop_out_gets_its_interval_back(self, street):
        open_round(street, street.start(1, FIRST_S))
        gone = settle(street, 1, 0, set(range(1, 40)), is_final=False)
        assert no(street.step(0, gone, lambda _: None)) is Reason.NOT_A_MEMBER
        assert open_round(street, street.start(2, FIRST_S))

    def test_sums_of_a_day_differ_by_nobody_or_by_many(self, street):
        everybody = set(range(40))
        for number, left_out, expected in (
            (1, set(), None),
            (2, {5}, Reason.GROUP_TOO_ALIKE),
            (3, set(), None),
        ):
            open_round(street, street.start(number, FIRST_S + number * 1800))
            answer = street.step(0, settle(street, number, 0, everybody - left_out, True), lambda _: None)
            assert (no(answer) if expected else None) is expected
        late = FIRST_S + 3 * DAY_S
        open_round(street, street.start(4, late))
        later = street.step(0, settle(street, 4, 0, everybody - {5}, True), lambda _: None)
        assert isinstance(later.message, Reveal), "a day later the sums have little in common"

    def test_the_budget_of_a_day(self, street):
        noise = Noise(4_000_000, 10**8, 10**7)
        for number, expected in ((1, None), (2, None), (3, Reason.BUDGET_SPENT)):
            start = street.start(number, FIRST_S + number * 1800, noise=noise)
            if expected is None:
                open_round(street, start)
            else:
                call = RoundCall(street.reader.record("start", start))
                assert no(street.step(0, call, lambda _: 1)) is expected


class TestWhoIsLeftOut:
    """A reader of a round hears of each member why it is not in the sum."""

    def left_out(self, street, start, silent=(), past=(), lacking=()) -> tuple[MaskedRound, dict[int, Declined]]:
        head_end = MaskedRound(street.group, start, street.reader, street.notice, past)
        for call in head_end.begin(street.reader.record("start", start)):
            if isinstance(call, Call) and call.member not in silent:
                answer = street.step(
                    call.member, call.message, lambda _, call=call: None if call.member in lacking else 5
                )
                if answer.message is not None:
                    head_end.receive(call.member, answer.message)
        if silent or lacking:
            head_end.timed_out("contributions")
        return head_end, head_end.left_out()

    def test_its_own_no_or_its_silence(self, street):
        _, missing = self.left_out(street, street.start(1, FIRST_S), silent=(3,), lacking=(17,))
        assert missing == {3: Declined(1, Reason.TIMED_OUT), 17: Declined(1, Reason.NO_READING)}

    def test_who_was_away_when_the_roster_went_out_gets_it_with_the_next_round(self, street):
        first, _ = self.left_out(street, street.start(1, FIRST_S), silent=(3,), lacking=(17,))
        assert first.informed() == frozenset(range(40)) - {3}
        second = MaskedRound(
            street.group, street.start(2, FIRST_S + 3 * DAY_S), street.reader, street.notice, (), first.informed()
        )
        calls = second.begin(street.reader.record("start", street.start(2, FIRST_S + 3 * DAY_S)))
        assert [item.member for item in calls if isinstance(item, Call) and item.message is street.notice] == [3]
        second.receive(5, Declined(2, Reason.UNKNOWN_ROSTER))
        assert 5 not in second.informed(), "it forgot: it gets the roster again"

    def test_the_earlier_sum_is_named(self, street):
        assert street.run(street.start(7, FIRST_S), reading).reason is Reason.VALID
        head_end = MaskedRound(street.group, street.start(9, FIRST_S), street.reader, None)
        for call in head_end.begin(street.reader.record("start", street.start(9, FIRST_S))):
            if isinstance(call, Call):
                head_end.receive(call.member, street.step(call.member, call.message, lambda _: 5).message)
        assert set(head_end.left_out().values()) == {Declined(9, Reason.INTERVAL_SPENT, earlier=7)}

    def test_an_earlier_set_is_taken_again_unless_everybody_is_there(self):
        village = Rehearsal(160, b"village")
        everybody, before = frozenset(range(160)), frozenset(range(8, 160))
        past = (Past(1, before),)
        head_end = MaskedRound(village.group, village.start(2, FIRST_S), village.reader, None, past)
        assert head_end._evened(everybody) == everybody
        assert head_end._evened(everybody - {0}) == before
        assert head_end._evened(before) == before
        without = head_end._evened(everybody - {100})
        assert len(without) == 152, "one of the earlier set is gone: seven go with it, and those eight are back"

    def test_whom_the_rule_about_alike_groups_leaves_out(self, street):
        """Earlier sums of other rosters count: strangers are members with negative numbers."""
        before = Past(4, frozenset(range(1, 40)))
        _, missing = self.left_out(street, street.start(5, FIRST_S), past=(before,))
        assert missing == {0: Declined(5, Reason.GROUP_TOO_ALIKE)}
        alike, _ = self.left_out(
            street, street.start(6, FIRST_S + 9 * DAY_S), past=(Past(4, frozenset(range(-1, 39))),)
        )
        assert alike.alike == Alike(earlier=4, differ=2)


class TestHeadEnd:
    def begin(self, street) -> tuple[MaskedRound, list[Contribution]]:
        start = street.start(1, FIRST_S)
        proof = street.reader.record("start", start)
        head_end = MaskedRound(street.group, start, street.reader, street.notice)
        calls = [effect for effect in head_end.begin(proof) if isinstance(effect, Call)]
        answers = [
            street.step(call.member, call.message, lambda first_s, call=call: reading(call.member, first_s))
            for call in calls
        ]
        return head_end, [answer.message for answer in answers if answer.message is not None]

    def test_what_does_not_hold_is_counted_under_its_reason(self, street):
        head_end, messages = self.begin(street)
        first, second = messages[0], messages[1]
        assert head_end.receive(0, first) == []
        altered = msgspec.structs.replace(second, masked=b"\xff" + second.masked[1:])
        for member, message in (
            (0, first),
            (0, second),
            (1, altered),
            (1, msgspec.structs.replace(second, round=9)),
            (1, msgspec.structs.replace(second, shares=second.shares[1:])),
            (2, Reveal(1, 2, 0, (), bytes(64))),
        ):
            assert head_end.receive(member, message) == []
        other = Rehearsal(40, b"street")
        other.step(0, other.notice, lambda _: None)
        call = RoundCall(other.reader.record("start", other.start(1, FIRST_S)))
        second_answer = other.step(0, call, lambda _: 12345).message
        assert head_end.receive(0, second_answer) == []
        assert head_end.refused == {
            Reason.DUPLICATE: 1,
            Reason.NOT_A_MEMBER: 1,
            Reason.BAD_SIGNATURE: 1,
            Reason.STALE: 2,
            Reason.MALFORMED: 1,
            Reason.CONTRIBUTED_TWICE: 1,
        }

    def test_a_meter_that_masks_another_value_than_it_committed_to_voids_the_round(self, street):
        """It can spoil a round, and not shift a sum."""
        keys = street.keys[4]
        from bcami.aggregation.meter import contribution_statement

        head_end, messages = self.begin(street)
        lie = msgspec.structs.replace(messages[4], masked=bytes([messages[4].masked[0] ^ 1]) + messages[4].masked[1:])
        statement = contribution_statement(street.reader, street.group.digest, keys.hid, lie)
        messages[4] = msgspec.structs.replace(lie, signature=keys.signer.sign(statement))
        effects = [effect for member, message in enumerate(messages) for effect in head_end.receive(member, message)]
        proof = street.reader.record("settle", effects[0].argument)
        ended = []
        for call in head_end.recorded("settle", proof):
            if isinstance(call, Call):
                answer = street.step(call.member, call.message, lambda _: None).message
                ended += head_end.receive(call.member, answer)
        assert [effect for effect in ended if isinstance(effect, Submit)] == [
            Submit("void", VoidArgument(1, Reason.SUM_MISMATCH))
        ]
        ended = head_end.recorded("void", street.reader.record("void", ended[0].argument))
        assert Ended(Reason.SUM_MISMATCH, (), frozenset()) in ended

    def test_wrong_shares_of_a_few_are_found_and_left_out(self, street):
        head_end, messages = self.begin(street)
        effects = [effect for member, message in enumerate(messages) for effect in head_end.receive(member, message)]
        proof = street.reader.record("settle", effects[0].argument)
        from bcami.model.aggregation import reveal_digest

        submitted = []
        for call in head_end.recorded("settle", proof):
            if not isinstance(call, Call):
                continue
            answer = street.step(call.member, call.message, lambda _: None).message
            if call.member in (0, 1, 2):
                secrets = tuple((other, bytes(16)) for other, _ in answer.secrets)
                keys = street.keys[call.member]
                statement = reveal_digest(street.reader.chain, street.reader.epoch, 1, 0, keys.hid, secrets)
                answer = msgspec.structs.replace(answer, secrets=secrets, signature=keys.signer.sign(statement))
            submitted += head_end.receive(call.member, answer)
        assert [effect.function for effect in submitted] == ["tally"]


def test_a_round_costs_each_member_its_neighbours_and_not_the_group(monkeypatch: pytest.MonkeyPatch):
    """Five in a hundred are gone. A thousand meters took 1.0 s of CPU at the head-end and 2.3 s at all meters together."""
    counts: Counter[str] = Counter()

    def counted(name: str, function):
        def count(*arguments, **named):
            counts[name] += 1
            return function(*arguments, **named)

        return count

    town = Rehearsal(400, b"town")
    assert town.run(town.start(1, FIRST_S), reading).reason is Reason.VALID
    monkeypatch.setattr(PairKey, "__init__", counted("agreements", PairKey.__init__))
    monkeypatch.setattr(PairKey, "round_keys", counted("pair keys", PairKey.round_keys))
    monkeypatch.setattr(MaskSum, "add", counted("masks", MaskSum.add))
    monkeypatch.setattr("bcami.aggregation.meter.split", counted("splits", split))
    monkeypatch.setattr("bcami.aggregation.head_end.combine", counted("combinations", combine))
    late = FIRST_S + 3 * DAY_S
    outcome = town.run(town.start(2, late), reading, Faults(silent=frozenset(range(0, 400, 20))))
    assert (outcome.reason, outcome.sums) == (Reason.VALID, (total(outcome, late),))
    there, gone, degree = 380, 20, town.group.plan.degree
    assert len(outcome.contributors) == there
    assert degree < 100, "far fewer than are in the group, and hardly more in a larger one"
    assert counts["agreements"] == 0, "once for a roster, which was known"
    assert counts["splits"] == counts["combinations"] == there
    assert there * degree // 2 < counts["pair keys"] <= there * degree
    assert counts["masks"] <= there * (degree + 1) + there + gone * degree
