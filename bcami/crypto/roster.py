"""Who the members are and how many of them make a quorum: all that a verifier needs beside the bytes."""

from dataclasses import dataclass
from typing import Self

from bcami.crypto.signatures import is_valid_public_key, verify
from bcami.errors import MalformedError
from bcami.model.genesis import Genesis, chain_id, members_hash
from bcami.model.quorum import Quorum


@dataclass(frozen=True, slots=True)
class Roster:
    """The member set of one epoch, derived from genesis."""

    genesis: Genesis
    chain: bytes
    epoch: int
    quorum: Quorum
    keys: tuple[bytes, ...]
    """Consensus keys by replica id."""
    names: tuple[str, ...]
    members_hash: bytes

    @classmethod
    def from_genesis(cls, genesis: Genesis) -> Self:
        """Return the roster. Raises MalformedError when a member's key is invalid or a key or name appears twice."""
        keys = tuple(member.consensus_key for member in genesis.members)
        names = tuple(member.name for member in genesis.members)
        for name, key in zip(names, keys, strict=True):
            if not is_valid_public_key(key):
                raise MalformedError(f"genesis: the consensus key of {name} is no point of secp256k1")
        if len(set(keys)) != len(keys) or len(set(names)) != len(names):
            raise MalformedError("genesis: two members share a name or a consensus key")
        return cls(
            genesis=genesis,
            chain=chain_id(genesis),
            epoch=genesis.epoch,
            quorum=Quorum(len(keys)),
            keys=keys,
            names=names,
            members_hash=members_hash(genesis.members),
        )

    def verify_by(self, replica: int, signature: bytes, digest: bytes) -> bool:
        """Tell whether this replica signed the digest; False for a replica that is none."""
        return 0 <= replica < len(self.keys) and verify(self.keys[replica], signature, digest)
