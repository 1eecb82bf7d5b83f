"""What a new view proposes again, over all subsets and orders of view-changes (F40, I6)."""

from itertools import combinations

from hypothesis import given, settings
from hypothesis import strategies as st

from bcami.model.consensus import PreparedProof, ViewChange
from bcami.pbft.proofs import Choice, check_new_view, check_view_change, choose
from tests.paper.lab import Lab

LAB = Lab(own=3)
VIEW = 5
PROPOSALS = {
    (height, view): LAB.proposal((height % 4, 1), (view % 4, 2)) for height in range(1, 6) for view in range(5)
}


def proof(height: int, view: int) -> PreparedProof:
    return LAB.proof(LAB.pre_prepare(view, height, PROPOSALS[height, view]))


@st.composite
def view_changes(draw: st.DrawFn) -> list[ViewChange]:
    """One VIEW-CHANGE of each of four replicas."""
    changes = []
    for replica in range(4):
        stable = draw(st.integers(0, 3))
        heights = draw(st.sets(st.integers(stable + 1, 5)))
        proofs = [proof(height, draw(st.integers(0, 4))) for height in sorted(heights)]
        changes.append(LAB.view_change(replica, VIEW, LAB.certificate(stable) if stable else None, proofs))
    return changes


@settings(max_examples=60)
@given(view_changes(), st.randoms(use_true_random=False))
def test_every_strong_subset_in_every_order_makes_a_new_view_that_every_backup_accepts(changes, chance) -> None:
    for chosen in combinations(changes, 3):
        listed = list(chosen)
        choice = choose(listed, LAB.of[0])
        chance.shuffle(listed)
        assert choose(listed, LAB.of[0]) == choice
        new_view = LAB.new_view(list(chosen))
        for replica in (0, 2, 3):
            assert isinstance(check_new_view(new_view, LAB.of[replica]), Choice)
        assert [item.height for item in choice.orders] == list(range(choice.min_s + 1, choice.max_s + 1))


@settings(max_examples=60)
@given(view_changes(), st.sets(st.integers(0, 3), min_size=3), st.integers(4, 5))
def test_what_a_strong_quorum_prepared_last_is_in_every_choice(changes, committed, height) -> None:
    """I6: a committed proposal has a strong quorum of replicas whose newest proof it is."""
    last = proof(height, 4)
    carried = []
    for change in changes:
        if change.replica not in committed:
            # a replica outside the quorum cannot have prepared anything else in that view or above
            kept = [item for item in change.prepared if item.pre_prepare.height != height or item.pre_prepare.view < 4]
        else:
            kept = [item for item in change.prepared if item.pre_prepare.height != height] + [last]
        kept.sort(key=lambda item: item.pre_prepare.height)
        carried.append(LAB.view_change(change.replica, VIEW, change.stable, kept))
    assert all(check_view_change(change, LAB.of[0]) is None for change in carried)
    for chosen in combinations(carried, 3):
        orders = {item.height: item for item in choose(chosen, LAB.of[0]).orders}
        assert orders[height].digest == last.pre_prepare.digest
