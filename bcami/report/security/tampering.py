"""Ledger tampering: an operator changes what stands on his node's disk. What finds it is what `bcami verify` runs."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final

import lmdb
from msgspec.structs import replace

from bcami.bundled import find_bundled
from bcami.codec import encode
from bcami.endorsement.pool import hold
from bcami.ledger.audit import audit_ledger, inspect
from bcami.ledger.environment import DATA_FILE, MAP_BYTES
from bcami.ledger.lmdb_ledger import LmdbLedger
from bcami.ledger.memory import MemoryLedger
from bcami.ledger.position import POSITION_BYTES, PositionMark
from bcami.ledger.records import (
    BATCH_DECODER,
    BATCHES,
    BLOCKS,
    BODY_DECODER,
    CERTIFICATE_DECODER,
    CERTIFICATES,
    HEADER_DECODER,
    HEADERS,
    LEDGER_TABLES,
    STATE,
    Table,
    decoded,
    height_key,
    unpack_state,
)
from bcami.ledger.report import AuditReport
from bcami.model.reasons import Reason
from bcami.node.core.execution import ExecutedBlock, Executor
from bcami.node.core.world import WorldState
from bcami.processes.audit import HOOKS, audit_hooks
from bcami.report.security.attack import Account, Attack
from bcami.report.security.grounds import Grounds
from bcami.report.security.people import Town, town

TABLES_MAX: Final = len(LEDGER_TABLES) + 4


@contextmanager
def ledger_on_disk(grounds: Grounds, node: int) -> Iterator[Path]:
    """Write a node's chain into a ledger on disk, as the node itself would have; yield its folder."""
    with TemporaryDirectory(prefix="bcami-security-") as place:
        folder = Path(place) / "ledger"
        network, source = grounds.identities, grounds.ledger(node)
        empty = MemoryLedger(network.genesis)
        world = WorldState(empty)
        executor = Executor(network.roster, network.runtime, world, empty)
        with LmdbLedger(folder, network.genesis) as ledger:
            for height in range(1, source.height + 1):
                block, certificate = source.block(height), source.certificate(height)
                assert block is not None
                held = {}
                for stored in source.batches(height):
                    batch = hold(stored.batch, network.roster.chain)
                    held[batch.digest] = batch
                result = executor.execute(block.proposal, held.get)
                assert isinstance(result, ExecutedBlock)
                ledger.commit(result.commit, [] if certificate is None else [certificate])
                empty.commit(result.commit)
                world.durable(height, [key for key, _ in result.commit.writes])
        yield folder


def _audit(grounds: Grounds, folder: Path) -> AuditReport:
    """Audit as the child process of `bcami verify` does, in this one: no page is damaged here."""
    genesis = grounds.identities.genesis
    hooks = audit_hooks(genesis, Path(find_bundled("chaincode")))
    return inspect(folder, genesis, "node1", hooks, PositionMark(bytearray(POSITION_BYTES)), quick=False)


def rewrite(folder: Path, table: Table, key: bytes, change: Callable[[bytes], bytes]) -> None:
    """Change a record and give it a checksum that fits: the attacker knows the format."""
    environment = lmdb.open(str(folder), max_dbs=TABLES_MAX, map_size=MAP_BYTES, sync=False)
    with environment.begin(write=True, db=environment.open_db(table.name.encode())) as unit:
        stored = bytes(unit.get(key) or b"")
        unit.put(key, table.seal(key, change(table.unseal(key, stored))))
    environment.close()


def _keys(folder: Path, table: Table) -> list[bytes]:
    environment = lmdb.open(str(folder), max_dbs=TABLES_MAX, map_size=MAP_BYTES, readonly=True)
    with environment.begin(db=environment.open_db(table.name.encode(), create=False)) as unit:
        found = [bytes(key) for key, _ in unit.cursor()]
    environment.close()
    return found


def _with_reports(account: Account, where: Town) -> None:
    for _ in range(3):
        account.check("a report is committed", where.grounds.reason(0, where.home.report()) is Reason.VALID)
    where.grounds.settle()


def records_are_changed(seed: int) -> Account:
    """An operator changes records of his own node's ledger, checksums and all."""
    account = Account()
    with town(seed) as where:
        grounds = where.grounds
        _with_reports(account, where)
        with ledger_on_disk(grounds, 1) as folder:
            account.check("the audit passes before anything is changed", _audit(grounds, folder).ok)
        last = grounds.ledger(1).height
        account.does("is the operator of node 2, knows the format, and changes records with checksums that fit")
        unseen = False
        for what, tamper in _changes(grounds, last).items():
            with ledger_on_disk(grounds, 1) as folder:
                tamper(folder)
                report = _audit(grounds, folder)
                error = report.first_error
                unseen = (
                    not account.no(f"verify: {what}", None if error is None else f"found in {error.table}") or unseen
                )
                if error is not None:
                    account.does(f"verify names height {error.height}", error.reason)
        account.aim("change the ledger unseen", unseen)
    return account


def _changes(grounds: Grounds, last: int) -> dict[str, Callable[[Path], None]]:
    """Return ways to change the ledger, each with its name."""
    alone = grounds.ledger(1).certificate(last)
    assert alone is not None

    def batch(folder: Path) -> None:
        key = _keys(folder, BATCHES)[-1]

        def change(value: bytes) -> bytes:
            stored = decoded(BATCHES, key, value, BATCH_DECODER)
            tx = stored.batch.transactions[0]
            other = replace(tx, argument=bytes([tx.argument[0] ^ 1]) + tx.argument[1:])
            transactions = (other, *stored.batch.transactions[1:])
            return encode(replace(stored, batch=replace(stored.batch, transactions=transactions)))

        rewrite(folder, BATCHES, key, change)

    def outcome(folder: Path) -> None:
        def change(value: bytes) -> bytes:
            body = decoded(BLOCKS, height_key(last), value, BODY_DECODER)
            return encode(replace(body, outcomes=(replace(body.outcomes[0], reason=Reason.REPLAY), *body.outcomes[1:])))

        rewrite(folder, BLOCKS, height_key(last), change)

    def header(folder: Path) -> None:
        def change(value: bytes) -> bytes:
            found = decoded(HEADERS, height_key(last), value, HEADER_DECODER)
            return encode(replace(found, time_ms=found.time_ms + 1))

        rewrite(folder, HEADERS, height_key(last), change)

    def certificate(folder: Path) -> None:
        def change(value: bytes) -> bytes:
            found = decoded(CERTIFICATES, height_key(last), value, CERTIFICATE_DECODER)
            return encode(replace(found, votes=found.votes[:1]))

        rewrite(folder, CERTIFICATES, height_key(last), change)

    def state(folder: Path) -> None:
        key = next(key for key in _keys(folder, STATE) if key.startswith(b"registration/enrolments/"))

        def change(value: bytes) -> bytes:
            assert unpack_state(value).value
            return value[:-2] + bytes([value[-2] ^ 1]) + value[-1:]

        rewrite(folder, STATE, key, change)

    def one_bit(folder: Path) -> None:
        path = folder / DATA_FILE
        data = bytearray(path.read_bytes())
        place = data.rfind(where_hid(grounds))
        data[place + 3] ^= 1
        path.write_bytes(bytes(data))

    return {
        "a ciphertext": batch,
        "an outcome": outcome,
        "a block's time": header,
        "a certificate with fewer votes": certificate,
        "a customer's enrolment key in the world state": state,
        "one bit of the file, without a checksum": one_bit,
    }


def where_hid(grounds: Grounds) -> bytes:
    """Return bytes that stand in the newest batch."""
    ledger = grounds.ledger(1)
    return ledger.batches(ledger.height)[0].batch.transactions[0].signatures[0]


def older_ledger(seed: int) -> Account:
    """An operator puts an older, whole ledger back; and cuts the file short."""
    account = Account()
    with town(seed) as where:
        grounds = where.grounds
        with ledger_on_disk(grounds, 1) as older:
            _with_reports(account, where)
            report = _audit(grounds, older)
            account.does(
                "puts back a copy of the ledger from before the last reports", f"verify: {report.height} blocks, ok"
            )
            limit = (
                "an old, whole copy is a node that is behind: it passes by itself, shows its lower height, and gets "
                "the blocks from its peers at the next start; its vote log must not be old, which is protocol 6.3"
            )
            account.aim("hide the newest blocks on one node, until it starts", report.ok, limit)
        with ledger_on_disk(grounds, 1) as folder:
            path = folder / DATA_FILE
            path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
            genesis = grounds.identities.genesis
            cut = audit_ledger(folder, genesis, Path(find_bundled("chaincode")), name="node2", hooks=HOOKS)
            error = cut.first_error
            account.no(
                "verify: half of the file, in its child process", None if error is None else "found, reader died"
            )
            if error is not None:
                account.does("verify says", error.reason)
            account.aim("cut the file short unseen, or stop the auditor with it", cut.ok)
    return account


ATTACKS: Final = (
    Attack("LEDGER.1", "Records are changed", "a node's disk; the format, checksums included", records_are_changed),
    Attack("LEDGER.2", "An older ledger is put back, or the file is cut", "a node's disk", older_ledger),
)
