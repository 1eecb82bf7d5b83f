"""Each safeguard removed in turn: the search must then find a violation, else it proves nothing."""

from collections.abc import Callable

import pytest

from bcami.model.quorum import Quorum
from bcami.pbft import proofs, records, slots, timers, views
from tests.paper.chaos import Chaos

Patch = pytest.MonkeyPatch


def without_persisted_votes(patch: Patch) -> None:
    patch.setattr(records.VoteLog, "accepted", lambda *_: None)


def without_durable_proofs(patch: Patch) -> None:
    patch.setattr(records.VoteLog, "prepared", lambda *_: None)


def without_restored_votes(patch: Patch) -> None:
    patch.setattr(records, "read_records", read := lambda _: records.VoteRecords({}, {}, {}, None, None))
    patch.setattr("bcami.pbft.replica.read_records", read)


def with_a_simple_majority(patch: Patch) -> None:
    patch.setattr(Quorum, "strong", property(lambda self: self.n // 2))


def with_an_empty_p(patch: Patch) -> None:
    patch.setattr("bcami.pbft.ordering.Ordering.proofs", lambda _: [])


def with_the_lowest_view_winning(patch: Patch) -> None:
    patch.setattr(proofs, "_rank", lambda first: (-first.view, first.digest))


def without_joining(patch: Patch) -> None:
    """Found by the primary's death at the end of a run, where the rest know of nothing that waits.

    As long as everybody holds all certificates, each replica's own timers make it leave as well, and cover for this.
    """
    patch.setattr(views.ViewChanges, "view_to_join", lambda _: None)


def without_the_status_answer(patch: Patch) -> None:
    patch.setattr("bcami.pbft.recovery.Recovery.answer", lambda *_: [])


def without_timers_that_leave_a_view(patch: Patch) -> None:
    keep = timers.Timers.keep
    patch.setattr(timers.Timers, "keep", lambda self, name, wanted, ms: keep(self, name, wanted and name != "view", ms))
    patch.setattr(timers.Fairness, "watch", lambda *_: [])


def with_the_first_checkpoint_of_a_liar_counting(patch: Patch) -> None:
    patch.setattr("bcami.pbft.checkpoints.Checkpoints._is_better", lambda *_: False)


def with_votes_counted_for_any_digest(patch: Patch) -> None:
    def proof(self: slots.Round, quorum: Quorum) -> object:
        if self.pre_prepare is None or len(self.prepares) < quorum.strong - 1:
            return None
        return slots.PreparedProof(self.pre_prepare, ())

    patch.setattr(slots.Round, "proof", proof)
    patch.setattr(
        slots.Round, "is_committed", lambda self, quorum: self.prepared and len(self.commits) >= quorum.strong
    )


ABLATIONS: list[tuple[Callable[[Patch], None], int]] = [
    (without_persisted_votes, 0),
    (without_durable_proofs, 0),
    (without_restored_votes, 0),
    (with_a_simple_majority, 0),
    (with_an_empty_p, 20),
    (with_the_lowest_view_winning, 30),
    (without_joining, 0),
    (without_the_status_answer, 0),
    (without_timers_that_leave_a_view, 20),
    (with_votes_counted_for_any_digest, 0),
    (with_the_first_checkpoint_of_a_liar_counting, 800),
]
"""With the seed to begin at: near one that finds it, to save time."""


@pytest.mark.parametrize(("ablate", "first"), ABLATIONS, ids=[item.__name__ for item, _ in ABLATIONS])
def test_without_a_safeguard_some_seed_fails(ablate: Callable[[Patch], None], first: int, monkeypatch: Patch) -> None:
    ablate(monkeypatch)
    for seed in range(first, first + 400):
        try:
            Chaos(seed).run()
        except AssertionError:
            return
    pytest.fail("400 seeds found nothing")
