"""The ledger on disk behaves as the one in memory, through any commits, repeats, prunings and reopenings."""

import tempfile
from pathlib import Path
from unittest.mock import patch

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bcami.ledger import index
from bcami.ledger.audit import inspect
from bcami.ledger.lmdb_ledger import LmdbLedger
from bcami.ledger.memory import MemoryLedger
from bcami.ledger.position import POSITION_BYTES, PositionMark
from bcami.ledger.report import AuditHooks
from bcami.ledger.store import Ledger
from bcami.model.chain import TransactionPlace
from bcami.model.reasons import Reason
from tests.unit.ledger.chain import GENESIS, ChainMaker, certify, signer, usage

KEYS = [b"a", b"a/1", b"a/2", b"b/\x00", b"b/\x00\x00", b"guard/1", b"system/1", b"k" * 480]

writes = st.dictionaries(st.sampled_from(KEYS), st.one_of(st.none(), st.binary(max_size=40)), max_size=4)
transactions = st.lists(
    st.tuples(st.integers(0, 3), st.integers(0, 12), st.sampled_from(["usage", "registration"])), max_size=6
)
blocks = st.tuples(st.just("block"), transactions, writes, st.booleans())
steps = st.one_of(
    blocks,
    blocks,
    st.tuples(st.just("again"), st.integers(0, 20)),
    st.tuples(st.just("certify"), st.integers(0, 20)),
    st.tuples(st.just("prune"), st.integers(0, 20)),
    st.tuples(st.just("reopen")),
)


def everything(ledger: Ledger, ids: list[bytes]) -> tuple:
    heights = range(ledger.height + 2)
    return (
        (ledger.height, ledger.head_hash, ledger.certified_height, ledger.pruned_to, ledger.lthash()),
        [
            (ledger.header(h), ledger.block(h), ledger.batches(h), ledger.certificate(h), ledger.bundle(h))
            for h in heights
        ],
        [(ledger.state(key), ledger.history(key), list(ledger.scan(key, 3))) for key in KEYS],
        list(ledger.scan(b"", 100)),
        [(ledger.place(tx_id), ledger.receipt(tx_id)) for tx_id in ids],
        [(ledger.by_signer(signer(n)), ledger.by_signer(signer(n), 2, TransactionPlace(3, 1))) for n in range(4)],
    )


@settings(max_examples=30, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(steps, min_size=1, max_size=18), st.integers(1, 12))
def test_the_ledger_on_disk_is_the_one_in_memory(script, pending):
    with tempfile.TemporaryDirectory() as folder, patch.object(index, "PENDING_MAX", pending):
        path, maker, model, commits, ids = Path(folder), ChainMaker(), MemoryLedger(GENESIS), [], [b"\x01" * 32]
        disk = LmdbLedger(path, GENESIS, map_bytes=1 << 28)
        try:
            for step in script:
                if step[0] == "reopen":
                    disk.close()
                    disk = LmdbLedger(path, GENESIS, map_bytes=1 << 28)
                for ledger in (model, disk):
                    apply(step, ledger, maker, commits)
                ids = sorted({*ids, *(outcome.transaction_id for c in commits for outcome in c.block.outcomes)})
            assert everything(disk, ids) == everything(model, ids)
        finally:
            disk.close()
        assert audit(path) is None


def apply(step: tuple, ledger: Ledger, maker: ChainMaker, commits: list) -> None:
    match step:
        case ("block", items, changes, certified):
            if ledger.height == len(commits):
                commits.append(made(maker, items, changes))
            commit = commits[-1]
            ledger.commit(commit, [certify(commit)] if certified else [])
        case ("again", place) if commits:
            ledger.commit(commits[place % len(commits)])
        case ("certify", place) if commits:
            ledger.put_certificates([certify(commits[place % len(commits)])])
        case ("prune", height):
            ledger.prune(min(height, ledger.certified_height))


def made(maker: ChainMaker, items: list, changes: dict):
    txs = [usage(signer(who), sequence, bytes([sequence]) * 5, contract=contract) for who, sequence, contract in items]
    reasons = [Reason.VALID if place % 3 else Reason.REPLAY for place in range(len(txs))]
    batches = 2 if len(txs) > 1 else 1
    return maker.commit(txs, changes, batches=batches, reasons=reasons or None)


def audit(path: Path):
    mark = PositionMark(bytearray(POSITION_BYTES))
    return inspect(path, GENESIS, "node", AuditHooks(), mark, quick=False).first_error
