"""Twins: what is enumerated is complete, what is drawn holds, and both can fail."""

import os
from itertools import product

import pytest

from bcami.faults.simulator import twins
from bcami.faults.simulator.agreement import Violation
from bcami.faults.simulator.campaign import Found, run_campaign
from bcami.pbft.ordering import Ordering

SCHEDULES = int(os.environ.get("BCAMI_SIMULATED_SCHEDULES", "60"))
EVERY = 1 if SCHEDULES > 1000 else 9
"""One schedule of so many of those with two views; all of them, and those with three, are for a long run."""


def test_a_view_may_have_any_leader_and_any_partition() -> None:
    """Bell(5) = 52 partitions of five instances, four leaders."""
    assert len(set(twins.choices())) == len(twins.choices()) == 4 * 52


@pytest.mark.parametrize("views", [1, 2])
def test_symmetry_leaves_one_schedule_of_each_class(views: int) -> None:
    """Burnside's lemma counts the classes in another way: the mean number of schedules that a renaming keeps."""
    renamings = set(twins.renamings())
    assert len(renamings) == 12
    kept = [sum(image == item for item, image in enumerate(images)) ** views for images in renamings]
    assert len(twins.beginnings(views)) * len(renamings) == sum(kept)


def test_every_schedule_has_a_renaming_that_is_played() -> None:
    every = range(0, len(twins.choices()), 7)
    for schedule in product(every, every):
        images = {tuple(image[item] for item in schedule) for image in twins.renamings()}
        assert sum(map(twins.is_first, images)) == 1


def test_schedules_of_two_views_hold() -> None:
    beginnings = twins.beginnings(2)[::EVERY]
    total = Found()
    for found in run_campaign(twins.Everything(2), beginnings, 1):
        total.add(found)
    assert not total.broken
    assert total.schedules == len(beginnings)
    assert total.convicted, "no schedule brings two statements of the twins together"


def test_drawn_schedules_hold_and_reach_views_and_evidence() -> None:
    total = Found()
    for found in run_campaign(twins.play_seed, range(SCHEDULES), 1):
        total.add(found)
    assert not total.broken, f"replay: bcami simulate --twins --seeds {total.broken[0].schedule}:…"
    assert total.schedules == SCHEDULES
    assert total.views > 4 * SCHEDULES
    assert total.convicted > SCHEDULES // 2


def test_the_same_seed_gives_the_same_run() -> None:
    assert twins.play_seed(5) == twins.play_seed(5)
    assert twins.play_seed(5).steps != twins.play_seed(6).steps


def test_what_is_found_is_printed_as_a_schedule_that_shows_it_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Ordering, "_check_clock", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        twins.play(twins.parse("0:01234"))
    monkeypatch.undo()
    monkeypatch.setattr("bcami.model.quorum.Quorum.strong", property(lambda self: self.weak))
    broken = [item for found in run_campaign(twins.Everything(1), twins.beginnings(1), 1) for item in found.broken]
    assert broken
    for item in broken:
        with pytest.raises(Violation) as caught:
            twins.play(twins.parse(item.schedule))
        assert caught.value.invariant == item.invariant


@pytest.mark.parametrize("text", ["", "0:0123", "4:01234", "0:01234;1:0|1|2|34|4", "x"])
def test_what_is_no_schedule_is_refused(text: str) -> None:
    with pytest.raises(ValueError):  # noqa: PT011  int() has its own words
        twins.parse(text)
