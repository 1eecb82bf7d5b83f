"""What cannot be summed is said before anything is put on the chain."""

import pytest

from bcami.errors import InputError
from bcami.model.aggregation import MASKED, NO_NOISE, RING, Mode, Noise
from bcami.processes.aggregation import RING_MEMBERS_MAX, check_group
from bcami.processes.aggregation_place import AggregateOptions


@pytest.mark.parametrize(
    ("group", "mode", "intervals", "noise", "members", "where"),
    [
        ("Street 7", MASKED, (0,), NO_NOISE, 20, "--group"),
        ("", MASKED, (0,), NO_NOISE, 20, "--group"),
        ("street", MASKED, (), NO_NOISE, 20, "--from, --to, --meters"),
        ("street", MASKED, (0,), NO_NOISE, 7, "--meters"),
        ("street", MASKED, (0,), Noise(1, 5 * 10**7, 10**6), 20, "--epsilon, --sensitivity"),
        ("street", RING, (0,), NO_NOISE, RING_MEMBERS_MAX + 1, "--meters"),
    ],
)
def test_what_cannot_be(
    group: str, mode: Mode, intervals: tuple[int, ...], noise: Noise, members: int, where: str
) -> None:
    with pytest.raises(InputError) as raised:
        check_group(AggregateOptions(group, mode, intervals, 0.0, noise), members)
    assert raised.value.where == where
