"""Who takes part in a simulated network: keys, genesis, contracts. The same for every seed of a shape, and kept."""

from dataclasses import dataclass
from functools import lru_cache
from hashlib import sha256
from pathlib import Path

from bcami.bundled import find_bundled
from bcami.contract.package import Package, load_package
from bcami.contract.runtime import Runtime
from bcami.crypto.hpke import KemSecretKey
from bcami.crypto.keys import SecretKey
from bcami.crypto.roster import Roster
from bcami.crypto.signatures import Signer
from bcami.faults.simulator.events import START_MS
from bcami.faults.simulator.signing import signer_of
from bcami.model.genesis import Genesis, Member, Parameters, operator_id


def entropy(*words: object) -> bytes:
    """Return 32 bytes that depend on the words only."""
    return sha256(repr(words).encode()).digest()


@dataclass(frozen=True)
class Identities:
    """All secrets of one network."""

    consensus: tuple[Signer, ...]
    utility: Signer
    mdms: Signer
    mdms_kem: KemSecretKey
    genesis: Genesis
    roster: Roster
    runtime: Runtime
    real: bool
    """Signatures are ECDSA, else those of the stand-in."""

    @property
    def utility_id(self) -> bytes:
        return operator_id(self.utility.public_key)


@lru_cache(maxsize=1)
def _package() -> Package:
    return load_package(Path(find_bundled("chaincode")), None)


@lru_cache(maxsize=512)
def identities(nodes: int, parameters: Parameters, *, real: bool) -> Identities:
    """Return the network of a shape. The schemes use different keys: nothing checked in one counts in the other."""
    keys = [SecretKey.generate(entropy("consensus", i, real)) for i in range(nodes)]
    utility = SecretKey.generate(entropy("utility", real))
    mdms = SecretKey.generate(entropy("mdms", real))
    mdms_kem = KemSecretKey.generate(entropy("mdms-kem", real))
    genesis = Genesis(
        network="simulated",
        created_ms=START_MS,
        epoch=0,
        members=tuple(Member(f"node{i + 1}", key.public_key, bytes([i]) * 32) for i, key in enumerate(keys)),
        utility_key=utility.public_key,
        mdms_hid=entropy("mdms-hid"),
        mdms_enrolment_key=mdms.public_key,
        mdms_enrolment_kem_key=mdms_kem.public_key,
        chaincode_package=_package().package_id,
        execution_version=1,
        parameters=parameters,
        faults_allowed=True,
    )
    return Identities(
        consensus=tuple(signer_of(key, real=real) for key in keys),
        utility=signer_of(utility, real=real),
        mdms=signer_of(mdms, real=real),
        mdms_kem=mdms_kem,
        genesis=genesis,
        roster=Roster.from_genesis(genesis),
        runtime=Runtime(_package(), genesis),
        real=real,
    )
