"""The ring: everything that may fail, and how the group comes back. Never a wrong sum.

A silent member, a broken link, a silent LC and the hand-over are in tests/paper/test_aggregation_attacks.py, beside
what masked mode makes of them.
"""

import pytest

from bcami.aggregation.dice import Dice
from bcami.aggregation.ring_meter import RingMeter, RingRefusal
from bcami.aggregation.ring_records import (
    SUPPLIER,
    Ciphertext,
    ConcentratorIs,
    Delta,
    Handover,
    KeySum,
    ReadingRequest,
    Successor,
    TokenGrant,
    TokenNotice,
    ring_number,
)
from bcami.aggregation.ring_rehearsal import RingFaults, RingRehearsal
from bcami.aggregation.ring_supplier import RingResult
from bcami.model.reasons import Reason

FIRST_S = 1_800 * 100_000
MEMBERS = 12


def reading(member: int, first_s: int) -> int:
    return 1_000_003 * (member + 1) + first_s % 7_919


def total(first_s: int) -> int:
    return sum(reading(member, first_s) for member in range(MEMBERS))


@pytest.fixture
def ring() -> RingRehearsal:
    ring = RingRehearsal(MEMBERS, b"ring", reading)
    assert ring.form()
    return ring


def until_whole(ring: RingRehearsal, rounds: int = 8) -> RingResult:
    """Ask for intervals until a sum of everybody comes; all before it are void, or without who was missing."""
    for number in range(1, rounds + 1):
        result = ring.sum(FIRST_S + 1800 * number)
        if result.reason is Reason.VALID and result.count == MEMBERS:
            assert result.total == total(result.first_s)
            return result
        assert result.reason in {Reason.VALID, Reason.RING_BROKEN, Reason.TIMED_OUT}
    pytest.fail(f"no sum of everybody in {rounds} rounds")


def an_ordinary_one(ring: RingRehearsal) -> bytes:
    return next(address for address in ring.addresses if address != ring.concentrator)


class TestHandover:
    def test_a_request_that_crosses_a_handover_is_asked_again(self, ring):
        """The next interval is asked for as soon as the last has its sum, when the LC may be handing over."""
        concentrators = set()
        for number in range(40):
            result = ring.sum(FIRST_S + 1800 * number)
            concentrators.add(ring.supplier._ring.concentrator)
            assert (result.reason, result.count, result.total) == (Reason.VALID, MEMBERS, total(result.first_s))
        assert len(concentrators) > 3
        assert ring.refusals[Reason.NOT_READY], "no request came to an LC that had just handed over"

    def test_an_announcement_that_its_own_ring_overtook_is_nothing_new(self, ring):
        generation = ring.meters[ring.concentrator].concentrator.generation
        ring.deliver(SUPPLIER, ring.concentrator, ConcentratorIs(generation))
        assert ring.supplier.is_ready
        assert ring.sum(FIRST_S).total == total(FIRST_S)


class TestOvertaking:
    """Nothing orders messages of different senders, and a busy machine those of one sender neither."""

    def generation(self, ring: RingRehearsal) -> int:
        return ring.meters[ring.concentrator].concentrator.generation

    def test_a_delta_waits_for_the_word_who_comes_next(self, ring):
        member = an_ordinary_one(ring)
        address, ring.meters[member]._successor = ring.meters[member]._successor, None
        ring._carry_out(SUPPLIER, ring.supplier.request(FIRST_S))
        ring.settle(until=lambda: any(to == member and isinstance(item, Delta) for to, _, item in ring.seen))
        ring.deliver(member, ring.concentrator, Successor(self.generation(ring), address))
        assert ring.settle(until=lambda: ring.supplier.results, limit_ms=1_000)
        assert ring.supplier.results[0].total == total(FIRST_S)

    def test_a_ring_waits_for_the_notice_of_its_last_token(self, ring):
        lc, late = ring.concentrator, b"\x05" * 16
        tokens = list(ring.meters[lc].concentrator.tokens.values())
        ring.deliver(SUPPLIER, lc, KeySum(9, ring_number(1), (*tokens[1:], late)))
        assert ring.supplier._ring.generation == self.generation(ring)
        ring.deliver(SUPPLIER, lc, TokenNotice(late))
        assert ring.supplier._ring.generation == 9

    def test_the_last_ciphertext_may_come_after_the_next_lc(self, ring):
        ring._carry_out(SUPPLIER, ring.supplier.request(FIRST_S))
        assert ring.settle(until=lambda: len(ring.supplier._period.received) == MEMBERS - 1)
        ring.deliver(SUPPLIER, an_ordinary_one(ring), ConcentratorIs(self.generation(ring) + 1))
        assert ring.settle(until=lambda: ring.supplier.results)
        assert ring.supplier.results[0].total == total(FIRST_S)
        assert not ring.supplier.is_ready, "the ring of the next LC does not stand yet"

    def test_a_late_grant_of_an_lc_that_gave_way_changes_no_key(self, ring):
        other = max(ring.addresses)
        member = next(address for address in ring.addresses if address not in {other, ring.concentrator})
        assert ring.concentrator < other
        ring.deliver(member, other, TokenGrant(self.generation(ring), b"\x05" * 16))
        assert ring.sum(FIRST_S).total == total(FIRST_S)

    @pytest.mark.parametrize("seed", [4, 6, 10, 16])
    def test_it_costs_no_sum(self, seed):
        ring = RingRehearsal(MEMBERS, b"late" + bytes([seed]), reading, RingFaults(jitter_ms=100))
        for number in range(20):
            result = ring.sum(FIRST_S + 1800 * number)
            assert (result.reason, result.count, result.total) == (Reason.VALID, MEMBERS, total(result.first_s))

    def test_a_request_while_no_ring_stands_waits_for_the_next(self, ring):
        """The ring may go between the moment when it is seen to stand and the request, which is noted durably before."""
        heir, lc = an_ordinary_one(ring), ring.concentrator
        ring.deliver(heir, lc, Handover(ring.meters[lc].concentrator.generation + 1))
        assert ring.settle(until=lambda: not ring.supplier.is_ready)
        ring._carry_out(SUPPLIER, ring.supplier.request(FIRST_S))
        assert ring.settle(until=lambda: bool(ring.supplier.results))
        result = ring.supplier.results[-1]
        assert (result.reason, result.count, result.total) == (Reason.VALID, MEMBERS, total(FIRST_S))


class TestTopology:
    def test_a_member_that_comes_back_is_taken_in(self, ring):
        """Whenever the topology changes, the process is repeated [section V]."""
        target = an_ordinary_one(ring)
        ring.down.add(target)
        assert ring.sum(FIRST_S).reason is Reason.RING_BROKEN
        assert ring.sum(FIRST_S + 1800).count == MEMBERS - 1
        ring.down.remove(target)
        ring.restart(target)
        assert ring.settle(until=lambda: ring.supplier.is_ready and ring.supplier.ring_size == MEMBERS)
        assert until_whole(ring).count == MEMBERS

    def test_a_newcomer_during_a_period_ends_it_void(self, ring):
        target = an_ordinary_one(ring)
        ring.down.add(target)
        ring.sum(FIRST_S)
        assert ring.form()
        ring.down.remove(target)
        ring.restart(target)
        ring._carry_out(SUPPLIER, ring.supplier.request(FIRST_S + 1800))
        assert ring.settle(until=lambda: len(ring.supplier.results) == 2)
        assert ring.supplier.results[-1].reason in {Reason.RING_BROKEN, Reason.VALID, Reason.TIMED_OUT}
        assert until_whole(ring).count == MEMBERS

    def test_a_session_that_ended_is_not_licensed(self, ring):
        """Of a meter that came with another session than the roster's; the others go on without it."""
        target = an_ordinary_one(ring)
        ring.restart(target, session=2)
        ring.settle(until=lambda: ring.supplier.refused[Reason.NOT_A_MEMBER], limit_ms=1_000)
        assert ring.supplier.refused[Reason.NOT_A_MEMBER]
        results = [ring.sum(FIRST_S + 1800 * number) for number in range(3)]
        assert results[-1].reason is Reason.VALID
        assert results[-1].count == MEMBERS - 1


class TestRestart:
    def test_of_a_member(self, ring):
        """Its k_i1 is gone, so the ring has to form anew: one period is lost."""
        ring.restart(an_ordinary_one(ring))
        assert until_whole(ring)

    def test_of_the_concentrator(self, ring):
        ring.restart(ring.concentrator)
        assert until_whole(ring)

    def test_of_the_concentrator_in_a_late_generation(self, ring):
        """It knows no generation; the others follow it only once the supplier says that the LC is lost."""
        for _ in range(3):
            ring.down.add(an_ordinary_one(ring))
            ring.sum(FIRST_S)
            assert ring.form()
            for address in tuple(ring.down):
                ring.down.remove(address)
                ring.restart(address)
            assert ring.settle(until=lambda: ring.supplier.is_ready and ring.supplier.ring_size == MEMBERS)
        ring.restart(ring.concentrator)
        assert until_whole(ring)

    def test_of_everybody(self, ring):
        for address in ring.addresses:
            ring.restart(address)
        assert until_whole(ring)


class TestTimeOut:
    def test_an_answer_after_the_time_is_stale(self, ring):
        other = an_ordinary_one(ring)
        ring.down.add(ring.concentrator)
        assert ring.sum(FIRST_S).reason is Reason.TIMED_OUT
        ring.deliver(SUPPLIER, other, Ciphertext(1, b"\x01" * 16, ring_number(1)))
        assert ring.supplier.refused[Reason.STALE] == 1

    def test_a_request_for_a_period_that_was_is_stale(self, ring):
        assert ring.sum(FIRST_S).reason is Reason.VALID
        lc = ring.concentrator
        before = ring.refusals[Reason.STALE]
        ring.deliver(lc, SUPPLIER, ReadingRequest(1, FIRST_S))
        assert ring.refusals[Reason.STALE] == before + 1

    def test_a_request_while_the_ring_forms_is_not_ready(self, ring):
        ring.restart(ring.concentrator)
        ring.deliver(ring.addresses[0], SUPPLIER, ReadingRequest(1, FIRST_S))
        assert ring.refusals[Reason.NOT_READY] == 1


class TestBadInput:
    @pytest.mark.parametrize(
        ("held", "reason"),
        [
            (None, Reason.NO_READING),
            (-1, Reason.READING_OUT_OF_RANGE),
            (10**9 + 1, Reason.READING_OUT_OF_RANGE),
            (Reason.INTERVAL_SPENT, Reason.INTERVAL_SPENT),
        ],
    )
    def test_a_reading_that_cannot_be_summed_breaks_the_ring(self, held, reason):
        """The round is void, and says so; the meter says why."""
        ring = RingRehearsal(MEMBERS, b"ring", lambda member, _: held if member == 3 else 7)
        assert ring.sum(FIRST_S).reason in {Reason.RING_BROKEN, Reason.TIMED_OUT}
        assert ring.refusals[reason]

    def test_a_group_below_the_minimum_and_tokens_that_nobody_announced(self, ring):
        lc = ring.concentrator
        tokens = tuple(ring.meters[lc].concentrator.tokens.values())
        ring.deliver(SUPPLIER, lc, TokenNotice(b"\x06" * 16))
        for message, reason in (
            (KeySum(9, ring_number(1), (*tokens, b"\x06" * 16)), Reason.MEMBER_TWICE),
            (KeySum(9, ring_number(1), tokens[:7]), Reason.GROUP_TOO_SMALL),
            (KeySum(9, ring_number(1), (*tokens[:11], tokens[0])), Reason.MEMBER_TWICE),
            (KeySum(9, ring_number(1), (*tokens[:11], b"\x05" * 16)), Reason.WRONG_TOKEN),
            (KeySum(9, ring_number(2**120), tokens), Reason.KEY_SUM_MISMATCH),
            (KeySum(0, ring_number(1), tokens), Reason.STALE),
        ):
            assert ring.supplier.receive(lc, message)[0] == RingRefusal(reason), message
        assert ring.sum(FIRST_S).reason is Reason.VALID, "the ring that stands goes on"


def test_a_meter_without_a_licence_hears_no_broadcast():
    from bcami.aggregation.ring_records import ConcentratorIs, WhoIsConcentrator

    meter = RingMeter(b"\x01" * 32, lambda _: 1, bytes(32))
    assert meter.receive(b"\x02" * 32, WhoIsConcentrator()) == []
    assert meter.receive(b"\x02" * 32, ConcentratorIs(4)) == []
    assert meter.receive(b"\x02" * 32, Ciphertext(1, bytes(16), bytes(16))) == [RingRefusal(Reason.NOT_A_MEMBER)]


@pytest.mark.parametrize("seed", range(10))
def test_loss_crashes_and_reordering_never_make_a_wrong_sum(seed):
    faults = RingFaults(loss_percent=1, jitter_ms=80, crash_per_mille=2)
    ring = RingRehearsal(MEMBERS, b"crash" + bytes([seed]), reading, faults)
    dice, whole = Dice(bytes([seed])), 0
    for number in range(12):
        if not ring.form():
            break
        if dice.chance(1, 4):
            ring.restart(ring.addresses[dice.below(MEMBERS)])
        if not ring.form():
            break
        result = ring.sum(FIRST_S + 1800 * number)
        if result.reason is Reason.VALID and result.count == MEMBERS:
            whole += 1
            assert result.total == total(result.first_s)
        else:
            assert result.reason in {Reason.VALID, Reason.RING_BROKEN, Reason.TIMED_OUT, Reason.KEY_SUM_MISMATCH}
    assert ring.restarts
    assert whole, "some round comes through"
