"""What a contract may know of its network: facts of genesis, the same on every node."""

import msgspec

from bcami.errors import InputError
from bcami.model.genesis import Genesis, Parameters, chain_id, operator_id
from bcami.model.quorum import Quorum


class Network(msgspec.Struct, frozen=True):
    """Facts of genesis that contracts and their runtime decide by."""

    chain: bytes
    epoch: int
    member_keys: tuple[bytes, ...]
    """Consensus keys; a member's replica id is its place."""
    member_ids: tuple[bytes, ...]
    """Signer ids of the members, in the same order."""
    contributions_min: int
    """f + 1: one of so many contributors is honest (protocol 2.1)."""
    utility_id: bytes
    utility_key: bytes
    mdms_hid: bytes
    mdms_enrolment_key: bytes
    mdms_enrolment_kem_key: bytes
    parameters: Parameters


def network_from_genesis(genesis: Genesis) -> Network:
    """Return the facts of a genesis.

    Raises InputError when its parameters contradict each other (protocol 2.5).
    """
    parameters = genesis.parameters
    if parameters.session_gap_ms >= parameters.period_grace_ms:
        raise InputError(
            f"period_grace_ms ({parameters.period_grace_ms}) is not above session_gap_ms ({parameters.session_gap_ms})",
            likely="a meter could not open a new session before its MDMS period expires",
            do="make the grace longer than the gap and create the network anew",
        )
    return Network(
        chain=chain_id(genesis),
        epoch=genesis.epoch,
        member_keys=tuple(member.consensus_key for member in genesis.members),
        member_ids=tuple(operator_id(member.consensus_key) for member in genesis.members),
        contributions_min=Quorum(len(genesis.members)).weak,
        utility_id=operator_id(genesis.utility_key),
        utility_key=genesis.utility_key,
        mdms_hid=genesis.mdms_hid,
        mdms_enrolment_key=genesis.mdms_enrolment_key,
        mdms_enrolment_kem_key=genesis.mdms_enrolment_kem_key,
        parameters=parameters,
    )
