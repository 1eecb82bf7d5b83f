"""Seeds that found something once, each with its story.

A seed means the same run only as long as nothing that it draws changes; a story stays true, so a seed whose run changed
is replaced by one that shows the same again (the ablation of the fix finds it) or by a directed test.
"""

import pytest

from bcami.faults.simulator.runner import run_seed

FIXED: dict[int, str] = {
    28: "a node whose ledger was rebuilt gave a lane number to a second batch",
    154: "a CHECKPOINT that was stored and never sent left after the ledger had been rebuilt",
    240: "blocks that a network reordered were thrown away but for the next one: a late node fell behind for ever",
    361: "a rebuilt replica left its view with proofs above its window, which all others refused: nobody moved",
    1657: "the same, and its VIEW-CHANGE stood until the next view, which never came",
    1986: "a replica whose catch-up ended as others left proved a height below its watermark, which all refused",
    2013: "the same with one collector's only batch",
    2325: "a primary whose ledger was rebuilt proposed again at a height that it had forgotten: equivocation",
    102648: "an oracle took a NEW-VIEW that a full disk refused, and that never left, for a view entered",
    103674: "a node whose payloads were pruned served what was left of a batch, under the number of the whole one",
    104045: "the same after another crash",
    107673: "a primary whose clock had been ahead kept proposing that time: no view could order anything for a day",
    109000: "an oracle did not count the certificate of a snapshot, which only a faulty node had had before",
    115194: "own transactions that weak refusals left out of blocks under a snapshot waited for ever at their node",
    119751: "after a snapshot a liar's claim began another one that no honest peer could give without this node's votes",
    130332: "an oracle took an own batch of before, which a rebuilt node had back from a peer and passed on, for a new one",
    134460: "an oracle asked for one height at all nodes, while a faulty one kept them busy with batches of its own",
    155635: "a ledger that was lost took the only certificate of its newest block along, and nobody could order the next",
    160438: "an oracle knew of a certificate only when it was saved, after the votes below it were given up with it",
    195203: "a certificate that came long before its block was dropped, and the block brought none: it had no answer",
    500975: "an oracle took a batch, which a node without its vote log gives to a peer that fetches it, for a new word",
}


@pytest.mark.parametrize("seed", FIXED, ids=lambda seed: f"{seed}-{FIXED[seed].replace(' ', '_')}")
def test_a_seed_that_failed_once_holds(seed: int) -> None:
    result = run_seed(seed)
    assert result.failure is None, f"{FIXED[seed]}: {result.failure}"
