"""Weak equal answers, each high enough (protocol 5.6)."""

import pytest

from bcami.client.reads import Agreed, Tally, weak_read
from bcami.errors import InconclusiveError
from bcami.model.api import QueryAnswer
from tests.unit.client.cluster import Cluster
from tests.virtual import run


def test_weak_equal_answers_agree_whatever_their_heights() -> None:
    tally = Tally(weak=2, at_least=5)
    assert tally.add(0, QueryAnswer(5, b"x", 3)) is None
    assert tally.add(1, QueryAnswer(9, b"x", 3)) == Agreed(b"x", 3)


@pytest.mark.parametrize(
    "answers",
    [
        [(0, QueryAnswer(9, b"x", 3)), (1, QueryAnswer(9, b"y", 3))],
        [(0, QueryAnswer(9, b"x", 3)), (1, QueryAnswer(9, b"x", 4))],
        [(0, QueryAnswer(9, b"x", 3)), (1, QueryAnswer(4, b"x", 3))],
        [(0, QueryAnswer(9, b"x", 3)), (0, QueryAnswer(9, b"x", 3))],
        [(0, QueryAnswer(9, None, 0)), (1, QueryAnswer(9, b"", 0))],
    ],
)
def test_what_does_not_agree(answers: list) -> None:
    tally = Tally(weak=2, at_least=5)
    assert [tally.add(*answer) for answer in answers] == [None, None]


def test_one_liar_and_one_dead_node_change_nothing() -> None:
    cluster = Cluster()
    cluster.open_period()
    cluster.faults[0].lies_in_reads = True
    cluster.faults[1].is_down = True
    key = b"mdms/current/" + cluster.genesis.mdms_hid

    async def work() -> Agreed:
        return await weak_read(cluster.clients(), lambda node: node.state(key), weak=2, at_least=1)

    assert run(work()) == Agreed(b"\x01", 1)


def test_no_agreement_is_said() -> None:
    cluster = Cluster()
    for faults in cluster.faults[:3]:
        faults.is_down = True

    async def work() -> Agreed:
        return await weak_read(cluster.clients(), lambda node: node.state(b"key"), weak=2, rounds=1)

    with pytest.raises(InconclusiveError, match="fewer than 2 of 4 nodes agree"):
        run(work())
