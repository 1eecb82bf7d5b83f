"""Hooks for audits in tests: the meter signs everything; executing again gives what a list of headers says."""

from pathlib import Path

from bcami.ledger.report import AuditHooks
from bcami.model.genesis import Genesis
from bcami.model.reasons import Reason
from tests.unit.ledger.chain import METER, random_chain


def signed_by_meter(genesis: Genesis, chaincode: Path | None) -> AuditHooks:
    return AuditHooks(signers=lambda tx, read: (METER.public_key,))


def no_signer(genesis: Genesis, chaincode: Path | None) -> AuditHooks:
    return AuditHooks(signers=lambda tx, read: Reason.UNKNOWN_SESSION)


def signed_by_the_state(genesis: Genesis, chaincode: Path | None) -> AuditHooks:
    """The signer's key is what the state held below the block."""

    def signers(tx, read):
        entry = read(b"keys/" + tx.signer)
        return Reason.UNKNOWN_HID if entry is None else (entry.value,)

    return AuditHooks(signers=signers)


def executed_again(genesis: Genesis, chaincode: Path | None) -> AuditHooks:
    headers = [commit.block.header for commit in random_chain(8)]
    return AuditHooks(reexecute=lambda block, batches: headers[block.header.height - 1])


def crashes(genesis: Genesis, chaincode: Path | None) -> AuditHooks:
    raise RuntimeError("a bug of whoever made the hooks")
