"""What both ledgers promise."""

import msgspec
import pytest

from bcami.crypto.roster import Roster
from bcami.crypto.verification import verify_bundle, verify_receipt
from bcami.ledger.store import CommitRefused, LedgerCommit
from bcami.model.block import header_hash
from bcami.model.chain import STATE_KEY_BYTES_MAX, StateEntry, StateVersion, StoredBatch, TransactionPlace
from bcami.model.reasons import Reason
from tests.unit.ledger.chain import CHAIN, GENESIS, ChainMaker, certify, guard, random_chain, signer, usage

ROSTER = Roster.from_genesis(GENESIS)


def with_header(commit: LedgerCommit, **changes) -> LedgerCommit:
    header = msgspec.structs.replace(commit.block.header, **changes)
    return msgspec.structs.replace(commit, block=msgspec.structs.replace(commit.block, header=header))


def test_a_new_ledger_is_at_genesis(ledger):
    assert (ledger.height, ledger.certified_height, ledger.pruned_to) == (0, 0, 0)
    assert ledger.head_hash == CHAIN
    assert ledger.lthash() == bytes(2048)
    assert ledger.header(1) is None
    assert ledger.header(0) is None
    assert ledger.block(1) is None
    assert ledger.batches(1) == ()
    assert ledger.bundle(1) is None
    assert ledger.place(b"i" * 32) is None
    assert ledger.receipt(b"i" * 32) is None
    assert ledger.by_signer(b"s" * 32) == []
    assert ledger.state(b"nothing") is None


def test_a_committed_block_reads_back_as_it_was(ledger):
    for commit in random_chain(5):
        ledger.commit(commit)
        height = commit.block.header.height
        assert ledger.height == height
        assert ledger.head_hash == header_hash(commit.block.header)
        assert ledger.header(height) == commit.block.header
        assert ledger.block(height) == commit.block
        assert ledger.batches(height) == commit.batches
        assert ledger.lthash() == commit.lthash
        for key, value in commit.writes:
            assert ledger.state(key) == (None if value is None else StateEntry(value, height))


def test_a_block_without_transactions_and_writes_is_a_block(ledger):
    maker = ChainMaker()
    ledger.commit(maker.commit([]))
    ledger.commit(maker.commit([], {b"system/a": b"1"}))
    assert ledger.height == 2
    assert ledger.block(1).outcomes == ()


def test_committing_a_block_again_changes_nothing(ledger):
    first, second = random_chain(2)
    ledger.commit(first)
    ledger.commit(second)
    before = ledger.sizes()
    ledger.commit(second)
    ledger.commit(first)
    assert ledger.height == 2
    assert ledger.sizes() == before


def test_committing_again_takes_the_certificate_along(ledger):
    (commit,) = random_chain(1)
    ledger.commit(commit)
    ledger.commit(commit, [certify(commit)])
    assert ledger.certified_height == 1


def test_a_block_that_does_not_continue_the_chain_is_refused(ledger):
    first, second, third = random_chain(3)
    ledger.commit(first)
    with pytest.raises(CommitRefused, match="cannot follow block 1"):
        ledger.commit(third)
    with pytest.raises(CommitRefused, match="names another parent"):
        ledger.commit(with_header(second, previous=b"\x01" * 32))
    with pytest.raises(CommitRefused, match="another chain"):
        ledger.commit(with_header(second, chain=b"\x01" * 32))
    with pytest.raises(CommitRefused, match="cannot follow block 1"):
        ledger.commit(with_header(first, time_ms=77))
    assert ledger.height == 1
    ledger.commit(second)
    assert ledger.block(2) == second.block


def test_a_commit_that_is_not_whole_is_refused(ledger):
    (commit,) = random_chain(1)
    replace = msgspec.structs.replace
    for broken, why in (
        (replace(commit, batches=commit.batches[:1]), "not all are given"),
        (replace(commit, batches=commit.batches[::-1]), "another batch than it orders"),
        (replace(commit, lthash=b"short"), "LtHash of 5 bytes"),
        (replace(commit, writes=((b"b", b"1"), (b"a", b"1"))), "not sorted"),
        (replace(commit, writes=((b"a", b"1"), (b"a", b"2"))), "not sorted"),
        (replace(commit, writes=((b"", b"1"),)), "state key of 0 bytes"),
        (replace(commit, writes=((b"k" * (STATE_KEY_BYTES_MAX + 1), b"1"),)), "state key of 481 bytes"),
        (replace(commit, writes=((b"k", bytes(2**20 + 1)),)), "state value"),
        (with_header(commit, transaction_count=1), "counts other transactions"),
    ):
        with pytest.raises(CommitRefused, match=why):
            ledger.commit(broken)
    assert ledger.height == 0
    ledger.commit(commit)


def test_the_longest_state_key_works_with_its_history(ledger):
    maker, key = ChainMaker(), b"k" * STATE_KEY_BYTES_MAX
    ledger.commit(maker.commit([], {key: b"1"}))
    ledger.commit(maker.commit([], {key: b"2"}))
    assert ledger.state(key) == StateEntry(b"2", 2)
    assert [version.value for version in ledger.history(key)] == [b"1", b"2"]
    assert ledger.state(b"k" * 2000) is None


def test_history_keeps_every_version_and_none_of_guards(ledger):
    maker = ChainMaker()
    ledger.commit(maker.commit([], {b"a/k": b"1", b"a/k2": b"x", b"guard/g": b"1", b"system/s": b"1"}))
    ledger.commit(maker.commit([], {b"a/k2": b"y"}))
    ledger.commit(maker.commit([], {b"a/k": None}))
    ledger.commit(maker.commit([], {b"a/k": b"3", b"guard/g": b"2"}))
    assert ledger.history(b"a/k") == [StateVersion(1, b"1"), StateVersion(3, None), StateVersion(4, b"3")]
    assert ledger.history(b"a/k2") == [StateVersion(1, b"x"), StateVersion(2, b"y")]
    assert ledger.history(b"guard/g") == []
    assert ledger.history(b"system/s") == []
    assert ledger.history(b"a/") == []
    assert ledger.state(b"guard/g") == StateEntry(b"2", 4)


def test_scan_yields_a_prefix_in_key_order(ledger):
    maker = ChainMaker()
    ledger.commit(maker.commit([], {b"m/b": b"2", b"m/a": b"1", b"m": b"0", b"n/a": b"3"}))
    assert [key for key, _ in ledger.scan(b"m/", 10)] == [b"m/a", b"m/b"]
    assert list(ledger.scan(b"m/", 1)) == [(b"m/a", StateEntry(b"1", 1))]
    assert [key for key, _ in ledger.scan(b"", 10)] == [b"m", b"m/a", b"m/b", b"n/a"]
    assert list(ledger.scan(b"zz", 10)) == []


def test_the_index_points_to_the_first_outcome(ledger):
    maker, tx = ChainMaker(), usage(signer(1), 1)
    first = maker.commit([tx])
    again = maker.commit([usage(signer(2), 1), tx], reasons=[Reason.VALID, Reason.REPLAY])
    ledger.commit(first)
    ledger.commit(again)
    ledger.put_certificates([certify(first), certify(again)])
    tx_id = first.block.outcomes[0].transaction_id
    assert ledger.place(tx_id) == TransactionPlace(1, 0)
    assert ledger.receipt(tx_id).outcome.reason is Reason.VALID
    # The signer did send it twice, and both are listed.
    assert ledger.by_signer(signer(1)) == [(2, 1, tx_id), (1, 0, tx_id)]


def test_the_first_of_two_equal_transactions_in_one_block_counts(ledger):
    maker, tx = ChainMaker(), usage(signer(1), 1)
    ledger.commit(maker.commit([tx, tx], reasons=[Reason.VALID, Reason.REPLAY]))
    assert ledger.place(ledger.block(1).outcomes[0].transaction_id) == TransactionPlace(1, 0)


def test_absent_transactions_leave_no_trace_in_the_indexes(ledger):
    maker = ChainMaker()
    commit = maker.commit([usage(signer(n), 1) for n in range(3)], refused=(1,))
    ledger.commit(commit)
    assert len(commit.block.outcomes) == 2
    assert ledger.by_signer(signer(1)) == []
    assert ledger.by_signer(signer(2)) == [(1, 1, commit.block.outcomes[1].transaction_id)]


def test_a_signers_transactions_come_newest_first_in_pages(ledger):
    maker, expected = ChainMaker(), []
    for height in range(1, 6):
        commit = maker.commit([usage(signer(n % 2), height * 10 + n) for n in range(4)])
        ledger.commit(commit)
        expected += [(height, n, commit.block.outcomes[n].transaction_id) for n in (1, 3)]
    expected.reverse()
    assert ledger.by_signer(signer(1)) == expected
    page, found = ledger.by_signer(signer(1), 3), []
    while page:
        found += page
        page = ledger.by_signer(signer(1), 3, TransactionPlace(*page[-1][:2]))
    assert found == expected


def test_receipts_verify_with_genesis_alone(ledger):
    commits = random_chain(4)
    for commit in commits:
        ledger.commit(commit)
    assert ledger.receipt(commits[0].block.outcomes[0].transaction_id) is None
    ledger.put_certificates([certify(commit) for commit in commits])
    for commit in commits:
        for index, outcome in enumerate(commit.block.outcomes):
            receipt = ledger.receipt(outcome.transaction_id)
            assert (receipt.outcome, receipt.index) == (outcome, index)
            assert verify_receipt(receipt, ROSTER) is None
            forged = msgspec.structs.replace(receipt, outcome=msgspec.structs.replace(outcome, reason=Reason.REPLAY))
            assert verify_receipt(forged, ROSTER) is Reason.BAD_PROOF


def test_a_bundle_needs_its_certificate_and_verifies(ledger):
    previous = CHAIN
    for commit in random_chain(4):
        ledger.commit(commit)
        height = commit.block.header.height
        assert ledger.bundle(height) is None
        ledger.put_certificates([certify(commit)])
        assert verify_bundle(ledger.bundle(height), ROSTER, previous) is None
        previous = ledger.head_hash


def test_certificates_may_ride_along_with_a_commit(ledger):
    first, second = random_chain(2)
    ledger.commit(first)
    ledger.commit(second, [certify(first), certify(second)])
    assert ledger.certified_height == 2
    assert ledger.certificate(1) == certify(first)


def test_a_certificate_of_another_block_is_refused(ledger):
    first, second = random_chain(2)
    ledger.commit(first)
    with pytest.raises(CommitRefused, match="the ledger ends at block 1"):
        ledger.put_certificates([certify(second)])
    other = msgspec.structs.replace(certify(first), header_hash=b"\x02" * 32)
    with pytest.raises(CommitRefused, match="contradicts the block"):
        ledger.put_certificates([certify(first), other])
    with pytest.raises(CommitRefused, match="contradicts the block"):
        ledger.commit(second, [other])
    assert (ledger.height, ledger.certified_height) == (1, 0)
    assert ledger.certificate(1) is None


def test_pruning_drops_usage_payloads_and_nothing_else(ledger):
    commits = random_chain(12, transactions=10)
    for commit in commits:
        ledger.commit(commit, [certify(commit)] if commit.block.header.height <= 10 else [])
    with pytest.raises(CommitRefused, match="cannot prune up to block 11"):
        ledger.prune(11)
    ledger.prune(8)
    ledger.prune(3)
    assert ledger.pruned_to == 8
    previous = CHAIN
    for commit in commits[:10]:
        height = commit.block.header.height
        for stored, whole in zip(ledger.batches(height), commit.batches):
            check_pruned(stored, whole, height <= 8)
        assert verify_bundle(ledger.bundle(height), ROSTER, previous) is None
        previous = header_hash(commit.block.header)
        for outcome in commit.block.outcomes:
            assert verify_receipt(ledger.receipt(outcome.transaction_id), ROSTER) is None


def check_pruned(stored: StoredBatch, whole: StoredBatch, pruned: bool) -> None:
    arguments = [tx.argument for tx in stored.batch.transactions]
    expected = [b"" if pruned and tx.contract == "usage" else tx.argument for tx in whole.batch.transactions]
    assert arguments == expected
    assert bool(stored.leaves) == (arguments != [tx.argument for tx in whole.batch.transactions])


def test_a_pruned_batch_of_a_peer_can_be_committed(ledger):
    from bcami.ledger.rules import pruned_batch

    maker = ChainMaker()
    commit = maker.commit([usage(signer(1), 1)])
    ledger.commit(msgspec.structs.replace(commit, batches=(pruned_batch(commit.batches[0]),)))
    assert ledger.batches(1)[0].leaves


def test_guards_are_found(ledger):
    commits = random_chain(3)
    for commit in commits:
        ledger.commit(commit)
    assert any(ledger.state(guard(signer(n))) for n in range(4))
    assert {key[:6] for key, _ in ledger.scan(b"guard/", 100)} == {b"guard/"}


def test_sizes_name_the_tables(ledger):
    for commit in random_chain(3):
        ledger.commit(commit)
    sizes = ledger.sizes()
    assert sizes["blocks"].entries == 3
    assert sizes["batches"].entries == 6
    assert sizes["state"].stored_bytes > 0
