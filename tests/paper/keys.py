"""A roster whose signatures are hashes: fast, deterministic, and as easy to forge on purpose as a test needs."""

from dataclasses import dataclass
from hashlib import sha256

from bcami.model.batch import BatchCertificate, CertificateVote
from bcami.model.block import BlockCertificate, CheckpointVote, checkpoint_digest
from bcami.model.genesis import Parameters
from bcami.model.ids import NO_HASH
from bcami.model.quorum import Quorum
from bcami.model.reasons import Reason
from bcami.pbft.statements import Statements

CHAIN = sha256(b"tests/paper").digest()
EPOCH = 1


@dataclass(frozen=True)
class ToySigner:
    """Signs by hashing; whoever knows the replica id can do so."""

    replica: int

    @property
    def public_key(self) -> bytes:
        return b"\x02" + bytes([self.replica]) * 32

    def sign(self, digest: bytes) -> bytes:
        return sha256(bytes([self.replica]) + digest).digest() * 2


@dataclass(frozen=True)
class ToyGenesis:
    parameters: Parameters


@dataclass(frozen=True)
class ToyRoster:
    """Has the shape of `bcami.crypto.roster.Roster`."""

    genesis: ToyGenesis
    quorum: Quorum
    chain: bytes = CHAIN
    epoch: int = EPOCH
    members_hash: bytes = NO_HASH

    def verify_by(self, replica: int, signature: bytes, digest: bytes) -> bool:
        return 0 <= replica < self.quorum.n and ToySigner(replica).sign(digest) == signature


def roster_of(n: int, **parameters: int) -> ToyRoster:
    return ToyRoster(ToyGenesis(Parameters(**parameters)), Quorum(n))


def statements_of(roster: ToyRoster, replica: int) -> Statements:
    """Return what signs as this replica: a test is everybody."""
    return Statements(roster, replica, ToySigner(replica))


def batch(collector: int, number: int, salt: int = 0, count: int = 10) -> BatchCertificate:
    """Return a certificate that only looks like one; the replicas under test check it with `check`."""
    digest = sha256(f"batch/{collector}/{number}/{salt}".encode()).digest()
    return BatchCertificate(EPOCH, collector, number, digest, count, (CertificateVote(0, (), bytes(64)),))


def bad_batch(collector: int, number: int) -> BatchCertificate:
    return BatchCertificate(EPOCH, collector, number, NO_HASH, 10, (CertificateVote(0, (), bytes(64)),))


def check(certificate: BatchCertificate) -> Reason | None:
    return Reason.BAD_CERTIFICATE if certificate.batch_digest == NO_HASH else None


def block_certificate(roster: ToyRoster, height: int, header_hash: bytes, signers: list[int]) -> BlockCertificate:
    digest = checkpoint_digest(CHAIN, roster.epoch, height, header_hash)
    votes = tuple(CheckpointVote(replica, ToySigner(replica).sign(digest)) for replica in signers)
    return BlockCertificate(roster.epoch, height, header_hash, votes)
