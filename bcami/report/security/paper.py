"""BC-AMI's protocol as sections 4.2.1 to 4.2.4 have it: a model of the PAPER, for the same attacks. Not this system.

What the paper says is done, and what it does not say is not done. Where it is silent and something has to be chosen,
the choice is the one that is kindest to it, and stands here:

* H is SHA-256 (the paper: "collision resistant one-way hash function").
* "Encrypted using the public key of MDMS" is HPKE with a fresh encapsulation for each report. (Table 2 says
  "Pr_SM(UD, τ)", under the sender's private key, which encrypts nothing; its text is followed.)
* The signature covers the ciphertext, its hash, the HID and τ, although Table 2 does not say what it covers.
* ECDSA is the standard one [FIPS 186-4]: (r, s) and (r, n - s) are both valid.
* Secure private channels are secure against outsiders; the concentrator relays over them (4.2.2), so it is an end.
* τ is not checked by the contract: 4.2.3 names HID and signature. `fresh_ms` adds the check that 5.4.3 may mean.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from typing import Final

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import Prehashed, encode_dss_signature

from bcami.crypto.hpke import KemSecretKey, OpenError, open_from, seal_to
from bcami.crypto.keys import SECRET_ACCESS, SecretKey, export_secret
from bcami.report.security.grounds import entropy

ORDER: Final = 0xFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFEBAAEDCE6AF48A03BBFD25E8CD0364141
"""Of the group of secp256k1."""


def hashed_identity(identity: str) -> bytes:
    """HID = H(ID) (4.2.1)."""
    return sha256(identity.encode()).digest()


@dataclass(frozen=True, slots=True)
class Transaction:
    """Table 2."""

    encapsulation: bytes
    sealed: bytes
    hash: bytes
    hid: bytes
    signature: bytes
    timestamp_ms: int

    @property
    def signed(self) -> bytes:
        parts = (self.encapsulation, self.sealed, self.hash, self.hid, self.timestamp_ms.to_bytes(8, "big"))
        return sha256(b"".join(parts)).digest()


@dataclass(slots=True)
class Contract:
    """The smart contract and its database (Algorithm 1; 4.2.3)."""

    seed: int
    identities: tuple[str, ...]
    fresh_ms: int | None = None
    """When set: how far τ may be from the contract's clock."""
    keys: dict[bytes, bytes] = field(default_factory=dict)
    """Pu by HID, broadcast to everybody (4.2.2)."""
    dealt: list[tuple[bytes, SecretKey]] = field(default_factory=list)
    """What every node that executed `registration()` has seen: Pr is a variable of Algorithm 1."""
    accepted: list[Transaction] = field(default_factory=list)

    def register(self, hid: bytes) -> SecretKey | None:
        """Algorithm 1: a key pair for whoever shows a stored HID; before each session again (4.2.2)."""
        if hid not in {hashed_identity(identity) for identity in self.identities}:
            return None
        pr = SecretKey.generate(entropy("paper", self.seed, hid, len(self.dealt)))
        self.dealt.append((hid, pr))
        self.keys[hid] = pr.public_key
        return pr

    def refuses(self, tx: Transaction, now_ms: int) -> str | None:
        """4.2.3: "checks the HID … and verifies the signature"; 5.4.2: altered content fails the signature."""
        if tx.hid not in self.keys:
            return "HID is not registered"
        if sha256(tx.sealed).digest() != tx.hash:
            return "hash of E(UD) does not fit"
        if self.fresh_ms is not None and abs(now_ms - tx.timestamp_ms) > self.fresh_ms:
            return "timestamp is not fresh"
        return None if is_signed(self.keys[tx.hid], tx.signature, tx.signed) else "signature does not verify"

    def submit(self, tx: Transaction, now_ms: int = 0) -> str | None:
        """Validate and append; return why not."""
        refused = self.refuses(tx, now_ms)
        if refused is None:
            self.accepted.append(tx)
        return refused


def is_signed(public_key: bytes, signature: bytes, digest: bytes) -> bool:
    """Tell whether the 64 bytes r, s are an ECDSA signature by this key [FIPS 186-4]."""
    key = ec.EllipticCurvePublicKey.from_encoded_point(ec.SECP256K1(), public_key)
    encoded = encode_dss_signature(int.from_bytes(signature[:32], "big"), int.from_bytes(signature[32:], "big"))
    try:
        key.verify(encoded, digest, ec.ECDSA(Prehashed(hashes.SHA256())))
    except InvalidSignature:
        return False
    return True


def malleated(signature: bytes) -> bytes:
    """Return (r, n - s)."""
    return signature[:32] + (ORDER - int.from_bytes(signature[32:], "big")).to_bytes(32, "big")


def kem_of(key: SecretKey) -> KemSecretKey:
    """Return the same pair for encryption: the paper has one pair for both (4.2.2, 4.2.3)."""
    return KemSecretKey.from_scalar_bytes(export_secret(key, SECRET_ACCESS))


def report(key: SecretKey, hid: bytes, mdms_key: bytes, usage: bytes, timestamp_ms: int) -> Transaction:
    """Create a transaction (4.2.3)."""
    encapsulation, sealed = seal_to(mdms_key, b"", b"", usage, entropy("paper report", hid, usage, timestamp_ms))
    bare = Transaction(encapsulation, sealed, sha256(sealed).digest(), hid, b"", timestamp_ms)
    return Transaction(encapsulation, sealed, bare.hash, hid, key.sign(bare.signed), timestamp_ms)


def read(tx: Transaction, key: SecretKey) -> bytes | None:
    """Decrypt (4.2.4); None when the key is another one."""
    try:
        return open_from(tx.encapsulation, kem_of(key), b"", b"", tx.sealed)
    except OpenError:
        return None


@dataclass(slots=True)
class Paper:
    """A network of the paper with registered meters and an MDMS."""

    contract: Contract
    meters: dict[bytes, SecretKey]
    mdms: SecretKey

    @property
    def hid(self) -> bytes:
        return next(iter(self.meters))

    @property
    def mdms_key(self) -> bytes:
        return kem_of(self.mdms).public_key

    def report(self, usage: bytes, timestamp_ms: int = 0) -> Transaction:
        return report(self.meters[self.hid], self.hid, self.mdms_key, usage, timestamp_ms)


def network(seed: int, *, fresh_ms: int | None = None) -> Paper:
    """Set up phases 1 and 2 for two meters and the MDMS."""
    names = ("MAC000002", "MAC000003", "MDMS")
    contract = Contract(seed, names, fresh_ms)
    pairs = {hashed_identity(name): contract.register(hashed_identity(name)) for name in names}
    found = {hid: key for hid, key in pairs.items() if key is not None}
    mdms = found.pop(hashed_identity("MDMS"))
    return Paper(contract, found, mdms)


class Ordering:
    """The ordering phase as 4.2.3 words it: a candidate from the leader, audit, results sent to all with a hash and
    compared, 2f + 1 responses to the leader, final.

    The paper names PBFT, and PBFT as published [CL02] stands a bad leader. Its own words do not: they have no views and
    no other leader, do not say that a node answers for one candidate of a place only, and leave nothing that a third
    party could check afterwards.
    """

    def __init__(self, nodes: int, leader: int = 0) -> None:
        self.nodes = nodes
        self.leader = leader
        self.chains: list[list[bytes]] = [[] for _ in range(nodes)]

    @property
    def needed(self) -> int:
        """2f + 1."""
        return 2 * ((self.nodes - 1) // 3) + 1

    def propose(self, by: int, block: bytes, shown: Sequence[int], told: Sequence[int], colluding: int = 1) -> int:
        """Carry a candidate through the phase; return the responses that the leader obtains.

        `shown`: honest nodes that get it, and answer when 2f + 1 results have one hash. `told`: those to which it is
        announced as final, once it is. `colluding`: nodes that say what the leader wants, itself among them.
        """
        if by != self.leader:
            return 0
        alike = len(shown) + colluding
        responses = alike if alike >= self.needed else colluding
        if responses >= self.needed:
            for node in told:
                self.chains[node].append(block)
        return responses
