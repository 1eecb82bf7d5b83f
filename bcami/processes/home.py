"""Makes a network's home and reads back what is in it.

`create_home` is the only place where long-term keys are made: each node's consensus key together with its promise
store (a key without its store is dead: protocol 6.3), its contribution secret and TLS identity, the utility's keys, and
the MDMS's enrolment keys. Everything is made in a folder of its own and moved into place at the end, `network.toml`
last, so that a home is whole or none.
"""

import os
import secrets
import shutil
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import msgspec

from bcami import EXECUTION_VERSION
from bcami.bundled import find_bundled
from bcami.client.utility import UTILITY_KEY_KIND
from bcami.codec import Codec, encode
from bcami.config import Definition, Network, load_network, network_text
from bcami.contract.package import package_id
from bcami.crypto.hid import hid
from bcami.crypto.hpke import KemSecretKey, load_kem_secret
from bcami.crypto.keyfile import write_private
from bcami.crypto.keys import SecretKey, load_secret, load_secret_bytes, save_secret, save_secret_bytes
from bcami.crypto.tls import certificate_fingerprint, make_tls_identity
from bcami.errors import EnvironmentFault, InputError
from bcami.ledger.lmdb_promises import LmdbPromises
from bcami.model.genesis import GENESIS_BYTES_MAX, Genesis, Member, Parameters
from bcami.paths import HomePaths, NodePaths
from bcami.toml_file import unknown_key

CONSENSUS_KIND: Final = "consensus"
CONTRIBUTION_KIND: Final = "contribution"
NETWORK_KEY_KIND: Final = "hid network key"
MDMS_ENROLMENT_KIND: Final = "mdms enrolment"
MDMS_ENROLMENT_KEM_KIND: Final = "mdms enrolment kem"
MDMS_METER_ID: Final = "mdms"
"""The name under which the MDMS has its HID."""

_GENESIS_CODEC: Final[Codec[Genesis]] = Codec(Genesis, GENESIS_BYTES_MAX)
_PARTS: Final = ("certificates", "chaincode", "nodes", "mdms", "utility", "operator.token", "genesis.bin")


@dataclass(frozen=True, slots=True)
class UtilityKeys:
    """What the utility holds: it enrols, and it alone (with the MDMS) can tell an HID from a meter id."""

    signing: SecretKey
    network: bytes

    def __repr__(self) -> str:
        return "UtilityKeys()"


@dataclass(frozen=True, slots=True)
class NodeSecrets:
    """What one node holds."""

    consensus: SecretKey
    contribution: bytes

    def __repr__(self) -> str:
        return "NodeSecrets()"


@dataclass(frozen=True, slots=True)
class MdmsSecrets:
    """What the MDMS holds for as long as the network lives; its period keys are its own business."""

    enrolment: SecretKey
    enrolment_kem: KemSecretKey
    network: bytes

    def __repr__(self) -> str:
        return "MdmsSecrets()"


def create_home(
    home: HomePaths,
    definition: Definition,
    *,
    definition_file: Path | None = None,
    base_port: int | None = None,
    allow_faults: bool = False,
) -> Network:
    """Make a network's home: keys, stores, chaincode, genesis and addresses. Nothing that exists is overwritten."""
    network = definition.resolve(base_port)
    parameters = _parameters(definition, definition_file)
    _refuse_existing(home)
    home.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    staging = HomePaths(home.folder / f".init-{os.getpid()}")
    try:
        staging.folder.mkdir(mode=0o700)
        genesis = _make_parts(staging, network, parameters, allow_faults=allow_faults)
        write_private(staging.genesis, encode(genesis))
        write_private(staging.network, network_text(network).encode())
        for part in (*_PARTS, "network.toml"):
            (staging.folder / part).rename(home.folder / part)
    except OSError as error:
        raise EnvironmentFault(f"the home cannot be written: {error}", where=str(home.folder)) from None
    finally:
        shutil.rmtree(staging.folder, ignore_errors=True)
    return network


def load_genesis(home: HomePaths) -> Genesis:
    """Return the genesis of a home. Raises InputError when it is damaged."""
    try:
        return _GENESIS_CODEC.decode(home.genesis.read_bytes())
    except OSError as error:
        raise InputError(f"genesis cannot be read: {error.strerror}", where=str(home.genesis)) from None
    except InputError as error:
        raise InputError(
            f"genesis is damaged: {error.what}",
            where=str(home.genesis),
            do="copy genesis.bin from another member of the network",
        ) from None


def open_home(home: HomePaths) -> tuple[Network, Genesis]:
    """Return the addresses and the genesis of a home. Raises InputError when they are not of one network."""
    network, genesis = load_network(home), load_genesis(home)
    listed, pinned = [node.name for node in network.nodes], [member.name for member in genesis.members]
    if listed != pinned:
        raise InputError(
            f"network.toml lists {', '.join(listed)}; genesis pins {', '.join(pinned)}",
            where=str(home.network),
            likely="network.toml was edited: names and their order are fixed, addresses may change",
            do="restore names and order as genesis has them",
        )
    return network, genesis


def load_node_secrets(paths: NodePaths) -> NodeSecrets:
    return NodeSecrets(
        consensus=load_secret(paths.consensus_key, CONSENSUS_KIND),
        contribution=load_secret_bytes(paths.contribution_key, CONTRIBUTION_KIND),
    )


def load_utility(home: HomePaths) -> UtilityKeys:
    return UtilityKeys(
        signing=load_secret(home.utility / "signing.key", UTILITY_KEY_KIND),
        network=load_secret_bytes(home.utility / "network.key", NETWORK_KEY_KIND),
    )


def load_mdms_secrets(home: HomePaths) -> MdmsSecrets:
    return MdmsSecrets(
        enrolment=load_secret(home.mdms / "enrolment.key", MDMS_ENROLMENT_KIND),
        enrolment_kem=load_kem_secret(home.mdms / "enrolment.kem", MDMS_ENROLMENT_KEM_KIND),
        network=load_secret_bytes(home.mdms / "network.key", NETWORK_KEY_KIND),
    )


def load_operator_token(home: HomePaths) -> str:
    try:
        return home.operator_token.read_text(encoding="ascii").strip()
    except OSError as error:
        raise InputError(
            f"the operator's token cannot be read: {error.strerror}", where=str(home.operator_token)
        ) from None


def _refuse_existing(home: HomePaths) -> None:
    present = [part for part in ("network.toml", *_PARTS) if (home.folder / part).exists()]
    if present:
        raise InputError(
            "a network lies here already and is not overwritten",
            where=f"{home.folder} ({', '.join(present)})",
            do=f"use it (bcami up), choose another --home, or delete {home.folder} with all its keys and ledgers",
        )


def _parameters(definition: Definition, definition_file: Path | None) -> Parameters:
    fields = {field.name for field in msgspec.structs.fields(Parameters)}
    place = definition_file or Path("parameters")
    for key in definition.parameters:
        if key not in fields:
            raise unknown_key(place, ("parameters", key), fields)
    given = {**msgspec.structs.asdict(Parameters()), **definition.parameters}
    ordered = [given[name] for name in Parameters.__struct_fields__]
    try:
        parameters = msgspec.convert(ordered, Parameters)
    except msgspec.ValidationError as error:
        raise InputError(f"a parameter is out of its range: {error}", where=f"{place}, [parameters]") from None
    if parameters.session_gap_ms >= parameters.period_grace_ms:
        raise InputError("session_gap_ms must be below period_grace_ms (protocol 2.5)", where=f"{place}, [parameters]")
    if parameters.view_timer_ms > parameters.view_timer_cap_ms:
        raise InputError("view_timer_ms must not be above view_timer_cap_ms", where=f"{place}, [parameters]")
    return parameters


def _make_parts(home: HomePaths, network: Network, parameters: Parameters, *, allow_faults: bool) -> Genesis:
    home.certificates.mkdir()
    members = tuple(_make_node(home, node.name) for node in network.nodes)
    shutil.copytree(find_bundled("chaincode"), home.chaincode, ignore=shutil.ignore_patterns("__pycache__", "*.pyc"))
    network_key = secrets.token_bytes(32)
    utility = _make_utility(home, network_key)
    enrolment, enrolment_kem = _make_mdms(home, network_key)
    write_private(home.operator_token, secrets.token_urlsafe(32).encode() + b"\n")
    return Genesis(
        network=network.name,
        created_ms=time.time_ns() // 1_000_000,
        epoch=0,
        members=members,
        utility_key=utility.public_key,
        mdms_hid=hid(network_key, MDMS_METER_ID),
        mdms_enrolment_key=enrolment.public_key,
        mdms_enrolment_kem_key=enrolment_kem.public_key,
        chaincode_package=package_id(home.chaincode),
        execution_version=EXECUTION_VERSION,
        parameters=parameters,
        faults_allowed=allow_faults,
    )


def _make_node(home: HomePaths, name: str) -> Member:
    paths = home.node(name)
    paths.folder.mkdir(parents=True, mode=0o700)
    consensus = SecretKey.generate(os.urandom(32))
    LmdbPromises.create(paths.promises, consensus.public_key)
    save_secret(paths.consensus_key, consensus, CONSENSUS_KIND)
    save_secret_bytes(paths.contribution_key, secrets.token_bytes(32), CONTRIBUTION_KIND)
    key_pem, certificate_pem = make_tls_identity(name)
    write_private(paths.tls_key, key_pem)
    home.certificate(name).write_bytes(certificate_pem)
    return Member(name, consensus.public_key, certificate_fingerprint(certificate_pem))


def _make_utility(home: HomePaths, network_key: bytes) -> SecretKey:
    home.utility.mkdir(mode=0o700)
    signing = SecretKey.generate(os.urandom(32))
    save_secret(home.utility / "signing.key", signing, UTILITY_KEY_KIND)
    save_secret_bytes(home.utility / "network.key", network_key, NETWORK_KEY_KIND)
    return signing


def _make_mdms(home: HomePaths, network_key: bytes) -> tuple[SecretKey, KemSecretKey]:
    home.mdms.mkdir(mode=0o700)
    enrolment, enrolment_kem = SecretKey.generate(os.urandom(32)), KemSecretKey.generate(os.urandom(32))
    save_secret(home.mdms / "enrolment.key", enrolment, MDMS_ENROLMENT_KIND)
    save_secret(home.mdms / "enrolment.kem", enrolment_kem, MDMS_ENROLMENT_KEM_KIND)
    save_secret_bytes(home.mdms / "network.key", network_key, NETWORK_KEY_KIND)
    return enrolment, enrolment_kem
