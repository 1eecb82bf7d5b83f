"""The figures that the cost report prints: what is measured, and that the work behind them is as much as is said.

How long it takes is for the reports: a suite that many machines run gates counts, never times.
"""

from itertools import count

import pytest

from bcami.crypto.keys import SecretKey
from bcami.kms import measure
from bcami.kms.bench import LEAVE_MS, PAPER_SESSIONS_MS
from bcami.kms.costs import Laboratory, lkh_leave, star_leave
from bcami.kms.hardened import HardenedProfile
from bcami.kms.keying import STAR_DEGREE
from tests.unit.kms.network import SCOPE

SIGNER = SecretKey.generate(b"signer".ljust(32))


def test_every_row_is_measured_around_its_step_alone() -> None:
    ticks = count()
    rows = measure(SCOPE, SIGNER, lambda: float(next(ticks)), members=64, runs=1)
    assert {row.cpu_ms for row in rows} == {1000.0}, "the clock is read once before and once behind"
    assert next(ticks) == 2 * len(rows)
    found = {(row.what, row.profile, row.strategy): row for row in rows}
    assert len(found) == len(rows)
    assert {row.limit_ms for row in rows} == {None, PAPER_SESSIONS_MS, LEAVE_MS}
    assert {row.members for row in rows} == {64}
    for profile in ("paper", "hardened"):
        assert {("session keys", profile, ""), ("leave", profile, "lkh"), ("join", profile, "flat")} <= set(found)


@pytest.mark.parametrize(("degree", "expected"), [(4, lkh_leave(1024, 4)), (STAR_DEGREE, star_leave(1024))])
def test_a_leave_takes_as_many_encryptions_as_the_formula_says(degree: int, expected: int) -> None:
    laboratory = Laboratory(SCOPE, HardenedProfile(SCOPE), SIGNER, 1024, degree=degree)
    assert laboratory.change(leaves=[laboratory.hids[1023]]).encryptions == expected
    assert expected == {4: 19, STAR_DEGREE: 1023}[degree]
