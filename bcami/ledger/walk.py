"""Second pass of an audit: block by block, that everything stored says the same and is what a strong quorum signed."""

from typing import Final

from bcami.crypto import merkle
from bcami.crypto.lthash import LtHash, state_element
from bcami.crypto.roster import Roster
from bcami.crypto.signatures import verify
from bcami.crypto.verification import (
    executed_transactions,
    is_batch_of,
    is_pruned,
    verify_batch_certificate,
    verify_block_certificate,
)
from bcami.ledger import records
from bcami.ledger.index import folded_heights, slice_of
from bcami.ledger.records import (
    BATCHES,
    BLOCKS,
    CERTIFICATES,
    HEADERS,
    HISTORY,
    LINKS,
    META,
    SIGNERS,
    STATE,
    TRANSACTIONS,
    UNDO,
    height_key,
    height_of,
    pack_place,
    unpack_place,
)
from bcami.ledger.report import AuditError, AuditHooks
from bcami.ledger.rules import USAGE_CONTRACT
from bcami.ledger.snapshot import Snapshot
from bcami.ledger.store import has_history
from bcami.model.block import Header, header_hash, result_leaf
from bcami.model.chain import ChainBlock, StateEntry, StoredBatch
from bcami.model.consensus import proposal_digest
from bcami.model.reasons import Reason
from bcami.model.transaction import Transaction, argument_digest, transaction_id, transaction_leaf

STATE_CHUNK: Final = 4096


class ChainWalk:
    """The hash chain: what the quick audit walks, and the start of the full one."""

    def __init__(self, snapshot: Snapshot, roster: Roster) -> None:
        self.snapshot = snapshot
        self.roster = roster
        head = snapshot.meta(records.META_HEAD)
        self.height = height_of(head)
        self.head_hash = head[8:]
        self.certified = height_of(snapshot.meta(records.META_CERTIFIED))
        self.pruned = height_of(snapshot.meta(records.META_PRUNED))
        self.installed = height_of(snapshot.meta(records.META_SNAPSHOT))
        """Height of the snapshot below which nothing was executed here: keys of signers are not known there."""
        self.state_root = b""
        self.blocks_checked = 0

    def run(self) -> None:
        """Return when the blocks are one chain from genesis to the head. Raises AuditError for the first gap."""
        self.snapshot.mark.blocks_total = self.height
        previous, time_ms = self.roster.chain, self.roster.genesis.created_ms
        for height in range(1, self.height + 1):
            header = self.snapshot.header(height)
            self._check_header(header, height, previous, time_ms)
            previous, time_ms = header_hash(header), header.time_ms
            self.check_block(header, previous)
            self.blocks_checked = self.snapshot.mark.blocks = height
        if previous != self.head_hash:
            raise AuditError(META.name, self.height, "the head names another hash than the last header's")
        self._check_heights()
        self._check_lthash()

    def check_block(self, header: Header, own_hash: bytes) -> None:
        """Check the rest of a block; the quick audit does not."""

    def _check_header(self, header: Header, height: int, previous: bytes, time_ms: int) -> None:
        if header.height != height:
            raise AuditError(HEADERS.name, height, f"the header says height {header.height}")
        if header.chain != self.roster.chain or header.epoch != self.roster.epoch:
            raise AuditError(HEADERS.name, height, "the header is of another chain or epoch")
        if header.members_hash != self.roster.members_hash:
            raise AuditError(HEADERS.name, height, "the header names other members")
        if header.previous != previous:
            raise AuditError(HEADERS.name, height, "the header does not name the hash of the block below")
        if header.time_ms < time_ms:
            raise AuditError(HEADERS.name, height, "the block is older than the one below")

    def _check_heights(self) -> None:
        if self.certified > self.height or self.pruned > self.certified:
            raise AuditError(META.name, self.height, "certified and pruned heights contradict the head")
        if self.certified and self.snapshot.certificate(self.certified) is None:
            raise AuditError(CERTIFICATES.name, self.certified, "the record is missing")
        if self.installed > self.certified:
            raise AuditError(META.name, self.height, "the snapshot is above the newest certificate")
        if self.installed and self.snapshot.certificate(self.installed) is None:
            raise AuditError(CERTIFICATES.name, self.installed, "the snapshot has no certificate")
        if self.snapshot.entries[UNDO.name] != self.height - self.certified:
            raise AuditError(
                UNDO.name, self.height, "not exactly the blocks above the newest certificate can be undone"
            )

    def _check_lthash(self) -> None:
        stored = self.snapshot.meta(records.META_LTHASH)
        if len(stored) != len(LtHash().to_bytes()):
            raise AuditError(META.name, self.height, "the LtHash has a wrong length")
        self.state_root = LtHash(stored).root()
        if self.height and self.snapshot.header(self.height).state_root != self.state_root:
            raise AuditError(META.name, self.height, "the LtHash is not that of the last header")


class FullWalk(ChainWalk):
    """Everything: what was signed, and that state, history and indexes say what the blocks say."""

    def __init__(self, snapshot: Snapshot, roster: Roster, hooks: AuditHooks) -> None:
        super().__init__(snapshot, roster)
        self._hooks = hooks
        self._folded = folded_heights(snapshot.meta(records.META_FOLDED))
        self._newest: dict[bytes, bytes] = {}
        self._lanes = [0] * roster.quorum.n
        self._first_outcomes = 0
        self._batches = 0
        self.transactions_checked = 0
        self.signatures_checked = 0
        self.executed_to = 0

    def run(self) -> None:
        super().run()
        self._check_totals()
        self._check_signers()
        self._check_state()
        self._check_history()

    def check_block(self, header: Header, own_hash: bytes) -> None:
        height, body = header.height, self.snapshot.body(header.height)
        block = ChainBlock(header, body.proposal, body.executed, body.outcomes)
        self._check_certificate(height, own_hash)
        batches = self._check_proposal(block)
        transactions = self._check_outcomes(block, batches)
        self._check_index(block)
        self._check_links(height, transactions)
        self._check_signatures(height, block, transactions)
        if self._hooks.reexecute is not None and self.pruned == 0 and self.installed == 0:
            if self._hooks.reexecute(block, batches) != header:
                raise AuditError(STATE.name, height, "executing the block again gives another header")
            self.executed_to = height

    def _check_certificate(self, height: int, own_hash: bytes) -> None:
        certificate = self.snapshot.certificate(height)
        if certificate is None:
            return
        if certificate.height != height or certificate.header_hash != own_hash:
            raise AuditError(CERTIFICATES.name, height, "the certificate is of another header")
        refused = verify_block_certificate(certificate, self.roster)
        if refused is not None:
            raise AuditError(CERTIFICATES.name, height, f"the certificate does not verify: {refused}")

    def _check_proposal(self, block: ChainBlock) -> tuple[StoredBatch, ...]:
        """Check the proposal, and return its executed batches: each the next of its lane (protocol 4.2)."""
        header, proposal = block.header, block.proposal
        height = header.height
        if proposal_digest(self.roster.chain, self.roster.epoch, proposal) != header.proposal_digest:
            raise AuditError(BLOCKS.name, height, "the proposal does not have the digest in the header")
        if header.time_ms < proposal.time_ms:
            raise AuditError(HEADERS.name, height, "the block is older than its proposal")
        executed = []
        for place, certificate in enumerate(proposal.certificates):
            refused = verify_batch_certificate(certificate, self.roster)
            if refused is not None:
                raise AuditError(BLOCKS.name, height, f"batch certificate {place} does not verify: {refused}")
            if certificate.number == self._lanes[certificate.collector] + 1:
                self._lanes[certificate.collector] += 1
                executed.append(place)
        if tuple(executed) != block.executed:
            raise AuditError(BLOCKS.name, height, "not exactly the next batches of each lane were executed")
        batches = tuple(self.snapshot.batch(height, place) for place in range(len(executed)))
        for place, stored in zip(executed, batches, strict=True):
            if not is_batch_of(stored, proposal.certificates[place], self.roster.chain):
                raise AuditError(BATCHES.name, height, f"batch {place} is not the one that was endorsed")
        self._batches += len(batches)
        return batches

    def _check_outcomes(self, block: ChainBlock, batches: tuple[StoredBatch, ...]) -> list[Transaction]:
        header, height = block.header, block.header.height
        transactions = [tx for _, _, tx in executed_transactions(block, batches, self.roster.quorum)]
        if not len(transactions) == len(block.outcomes) == header.transaction_count:
            raise AuditError(BLOCKS.name, height, "the block has not one outcome for each executed transaction")
        leaves = []
        for index, (tx, outcome) in enumerate(zip(transactions, block.outcomes, strict=True)):
            self.snapshot.mark.at(BATCHES, height)
            tx_id = transaction_id(tx, self.roster.chain, self.roster.epoch)
            if tx_id != outcome.transaction_id:
                raise AuditError(BLOCKS.name, height, f"outcome {index} is of another transaction")
            self._check_argument(tx, height, index)
            leaves.append(transaction_leaf(tx_id, tx.signatures))
        if merkle.root(leaves) != header.transactions_root:
            raise AuditError(BATCHES.name, height, "the transactions do not give the root in the header")
        results = [result_leaf(outcome, index) for index, outcome in enumerate(block.outcomes)]
        if merkle.root(results) != header.results_root:
            raise AuditError(BLOCKS.name, height, "the outcomes do not give the results root in the header")
        self.transactions_checked += len(transactions)
        return transactions

    def _check_argument(self, tx: Transaction, height: int, index: int) -> None:
        if is_pruned(tx):
            if height > self.pruned or tx.contract != USAGE_CONTRACT:
                raise AuditError(BATCHES.name, height, f"the payload of transaction {index} is gone, but not pruned")
        elif argument_digest(tx.argument) != tx.argument_hash:
            raise AuditError(BATCHES.name, height, f"transaction {index} does not have the hash of its argument")

    def _check_index(self, block: ChainBlock) -> None:
        """Check that the index points each id to its first outcome, as far as it is folded."""
        height = block.header.height
        for index, outcome in enumerate(block.outcomes):
            tx_id, here = outcome.transaction_id, pack_place(height, index)
            place = self.snapshot.get(TRANSACTIONS, tx_id[: records.ID_BYTES], height)
            if place == here:
                self._first_outcomes += 1
            elif place is None:
                if height <= self._folded[slice_of(tx_id)]:
                    raise AuditError(TRANSACTIONS.name, height, f"the place of transaction {index} is missing")
            elif len(place) != records.PLACE_BYTES or place > here:
                raise AuditError(TRANSACTIONS.name, height, f"the index does not point to transaction {index}")
            else:
                first = unpack_place(place)
                outcomes = self.snapshot.body(first.height).outcomes if first.height else ()
                if first.index >= len(outcomes) or outcomes[first.index].transaction_id != tx_id:
                    raise AuditError(TRANSACTIONS.name, height, f"the index does not point to transaction {index}")

    def _check_links(self, height: int, transactions: list[Transaction]) -> None:
        links = []
        for index, tx in enumerate(transactions):
            links.append(self._newest.get(tx.signer, records.NO_PLACE))
            self._newest[tx.signer] = pack_place(height, index)
        if self.snapshot.required(LINKS, height_key(height), height) != b"".join(links):
            raise AuditError(LINKS.name, height, "the links are not those of the block's signers")

    def _check_signatures(self, height: int, block: ChainBlock, transactions: list[Transaction]) -> None:
        """Check who signed; keys come from the state below the block, as its endorsers had it."""
        signers = self._hooks.signers
        if signers is None or height <= self.installed:
            return
        for index, (tx, outcome) in enumerate(zip(transactions, block.outcomes, strict=True)):
            self.snapshot.mark.at(BATCHES, height)
            if is_pruned(tx):
                continue
            keys = signers(tx, lambda key: self._state_at(key, height - 1))
            if isinstance(keys, Reason):
                if outcome.reason is Reason.VALID:
                    raise AuditError(BATCHES.name, height, f"transaction {index} is valid, but has no signer: {keys}")
                continue
            signed = outcome.transaction_id
            if len(keys) != len(tx.signatures) or not all(
                verify(key, signature, signed) for key, signature in zip(keys, tx.signatures, strict=True)
            ):
                raise AuditError(BATCHES.name, height, f"a signature of transaction {index} does not verify")
            self.signatures_checked += len(keys)

    def _state_at(self, key: bytes, height: int) -> StateEntry | None:
        """Return what a key held after a block; keys without history give what they hold now."""
        if not has_history(key):
            value = self.snapshot.get(STATE, key, 0)
            return None if value is None else records.unpack_state(value)
        prefix = records.history_prefix(key)
        cursor = self.snapshot.txn.cursor(self.snapshot.dbs[HISTORY.name])
        there = cursor.set_range(prefix + height_key(height + 1))
        there = cursor.prev() if there else cursor.last()
        if not there or not cursor.key().startswith(prefix):
            return None
        written = height_of(cursor.key()[len(prefix) :])
        _, version = records.unpack_version(written, HISTORY.unseal(cursor.key(), cursor.value()))
        return None if version.value is None else StateEntry(version.value, written)

    # What belongs to no single block.

    def _check_totals(self) -> None:
        if self.snapshot.entries[BATCHES.name] != self._batches:
            raise AuditError(BATCHES.name, self.height, "there are batches that no block executed")
        if self.snapshot.entries[TRANSACTIONS.name] != self._first_outcomes:
            raise AuditError(TRANSACTIONS.name, self.height, "the index has places of no transaction")

    def _check_signers(self) -> None:
        seen = 0
        for signer, place in self.snapshot.rows(SIGNERS):
            seen += 1
            if self._newest.get(signer) != place:
                raise AuditError(SIGNERS.name, height_of(place), f"{signer.hex()} has another newest transaction")
        if seen != len(self._newest):
            raise AuditError(SIGNERS.name, self.height, f"{len(self._newest) - seen} signers are missing")

    def _check_state(self) -> None:
        """Recompute state root and size, and compare with the last header (design D5)."""
        lthash, size = LtHash(), 0
        elements: list[bytes] = []
        for key, value in self.snapshot.rows(STATE):
            entry = records.unpack_state(value)
            if not 1 <= entry.height <= self.height:
                raise AuditError(STATE.name, self.height, f"{key.hex()} was written by block {entry.height}")
            size += len(key) + len(entry.value)
            elements.append(state_element(key, entry.value, entry.height))
            if len(elements) == STATE_CHUNK:
                lthash.update(elements, ())
                elements.clear()
        lthash.update(elements, ())
        expected = 0 if self.height == 0 else self.snapshot.header(self.height).state_bytes
        if lthash.root() != self.state_root:
            raise AuditError(STATE.name, self.height, "the world state does not give the state root of the last header")
        if size != expected:
            raise AuditError(STATE.name, self.height, f"the world state has {size} bytes, the header says {expected}")

    def _check_history(self) -> None:
        """Check that versions are chained without a gap, and that the newest one is what the world state holds."""
        prefix, newest, value = b"", 0, None
        with_history = 0
        for row, data in self.snapshot.rows(HISTORY):
            height = height_of(row[-8:])
            before, version = records.unpack_version(height, data)
            if row[:-8] != prefix:
                with_history += self._check_newest(prefix, newest, value)
                newest = 0
            if before != newest or not 1 <= height <= self.height:
                raise AuditError(HISTORY.name, height, f"the version before {row[2:-8].hex()} is missing or wrong")
            prefix, newest, value = row[:-8], height, version.value
        with_history += self._check_newest(prefix, newest, value)
        held = sum(1 for key, _ in self.snapshot.rows(STATE) if has_history(key))
        if held != with_history:
            raise AuditError(HISTORY.name, self.height, f"{held - with_history} keys of the world state have none")

    def _check_newest(self, prefix: bytes, newest: int, value: bytes | None) -> int:
        """Return 1 when the world state rightly holds the key, 0 when it rightly does not."""
        if not prefix:
            return 0
        held = self.snapshot.get(STATE, prefix[2:], newest)
        expected = None if value is None else records.pack_state(value, newest)
        if held != expected:
            raise AuditError(HISTORY.name, newest, f"the newest version of {prefix[2:].hex()} is not the world state's")
        return 0 if held is None else 1
