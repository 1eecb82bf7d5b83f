from bcami.model.consensus import Proposal
from bcami.pbft.lanes import Lanes, lanes_after, proposal_bytes_max
from tests.paper.keys import batch


def lanes(*executed: int, bytes_max: int = 1 << 20) -> Lanes:
    return Lanes(executed or (0, 0, 0, 0), bytes_max)


def places(chosen: tuple[object, ...]) -> list[tuple[int, int]]:
    return [(item.collector, item.number) for item in chosen]


def test_a_proposal_moves_a_lane_only_by_its_next_number() -> None:
    proposal = Proposal((batch(0, 2), batch(0, 1), batch(0, 2), batch(1, 5), batch(9, 1)), 0)
    assert lanes_after((0, 3, 0), proposal) == (2, 3, 0)


def test_gathering_goes_round_the_collectors_from_the_start_given() -> None:
    waiting = lanes()
    for place in ((0, 1), (0, 2), (0, 3), (2, 1), (3, 1), (3, 2)):
        waiting.add(batch(*place))
    assert places(waiting.gather((0, 0, 0, 0), 2)) == [(2, 1), (3, 1), (0, 1), (3, 2), (0, 2), (0, 3)]


def test_gathering_stops_at_the_bytes_and_transactions_but_takes_one_at_least() -> None:
    small = lanes(bytes_max=10)
    small.add(batch(0, 1))
    small.add(batch(1, 1))
    assert places(small.gather((0, 0, 0, 0), 0)) == [(0, 1)]
    large = lanes()
    for number in range(1, 8):
        large.add(batch(0, number, count=2_000))
    assert len(large.gather((0, 0, 0, 0), 0)) == 4


def test_owed_is_the_next_number_that_is_not_ordered() -> None:
    waiting = lanes()
    for place in ((0, 1), (0, 2), (1, 2)):
        waiting.add(batch(*place))
    assert waiting.owed() == {0: 1}
    waiting.order(Proposal((batch(0, 1),), 0))
    assert waiting.owed() == {0: 2}
    waiting.execute((2, 1, 0, 0), [])
    assert waiting.owed() == {1: 2}


def test_lanes_never_fall() -> None:
    waiting = lanes()
    waiting.execute((3, 0, 0, 0), [])
    waiting.execute((1, 0, 0, 0), [])
    assert waiting.executed == (3, 0, 0, 0)


def test_the_first_certificate_of_a_number_stays() -> None:
    waiting = lanes()
    waiting.add(batch(0, 1))
    waiting.add(batch(0, 1, salt=1))
    assert waiting.gather((0, 0, 0, 0), 0) == (batch(0, 1),)


def test_a_new_view_of_full_proposals_fits_into_a_vote_frame() -> None:
    from bcami.model.wire import VOTE_FRAME_BYTES_MAX

    for n in (4, 7, 31):
        assert proposal_bytes_max(n, 16) * 16 * (n + 1) < VOTE_FRAME_BYTES_MAX
