"""The MDMS's side of key issuance: opens a period the way a meter opens a session (design D7, protocol 2.5).

HOME/mdms/enrolment.key, enrolment.kem    made at `init`, named in genesis
HOME/mdms/periods/opening.key             a registration under way
HOME/mdms/periods/<number>.key            an open period's keys, until the MDMS erases them
"""

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final, NamedTuple

import msgspec

from bcami.client.courier import Courier, Settlement
from bcami.client.issuance import (
    ISSUANCE_CODEC,
    ContributionPolicy,
    Draft,
    IssuanceRecord,
    Party,
    Prepared,
    Share,
    draw,
    issue,
    prepare_mdms,
)
from bcami.client.nodes import NodeClient
from bcami.client.reads import weak_read
from bcami.client.secrets import SecretRecord
from bcami.codec import Codec
from bcami.crypto.hpke import KemSecretKey, load_kem_secret
from bcami.crypto.keys import SecretKey, load_secret, load_secret_bytes, save_secret_bytes
from bcami.crypto.roster import Roster
from bcami.errors import EnvironmentFault, InputError, MalformedError
from bcami.model.ids import U63, Hash
from bcami.model.reasons import Reason
from bcami.units import KIB

MDMS_SIGNING_KIND: Final = "mdms_enrolment"
MDMS_KEM_KIND: Final = "mdms_enrolment_kem"
OPENING_KIND: Final = "mdms_opening"
PERIOD_KIND: Final = "mdms_period"
_ATTEMPTS: Final = 8


class PeriodKeys(NamedTuple):
    """An open period with its private keys."""

    number: int
    signing: SecretKey
    """Signs acknowledgements."""
    kem: KemSecretKey
    """Opens what meters encapsulated."""


class _PeriodRecord(SecretRecord, frozen=True, array_like=True):
    number: U63
    signing: Hash
    kem: Hash


_PERIOD_CODEC: Final[Codec[_PeriodRecord]] = Codec(_PeriodRecord, KIB)


def load_mdms(home: Path, roster: Roster) -> Party:
    """Return the MDMS's identity from HOME/mdms. Raises InputError when its keys are not the ones genesis names."""
    folder, genesis = home / "mdms", roster.genesis
    signing = load_secret(folder / "enrolment.key", MDMS_SIGNING_KIND)
    kem = load_kem_secret(folder / "enrolment.kem", MDMS_KEM_KIND)
    if (signing.public_key, kem.public_key) != (genesis.mdms_enrolment_key, genesis.mdms_enrolment_kem_key):
        raise InputError(
            "the MDMS's enrolment keys are not the ones that genesis names",
            where=str(folder),
            likely="the keys are of another network",
            do="check --home",
        )
    return Party(genesis.mdms_hid, signing, kem, roster)


class PeriodFolder:
    """HOME/mdms/periods: what is durable of the MDMS's periods. Files are 0600 and written whole or not at all."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)

    def numbers(self) -> list[int]:
        """Return the periods whose keys are here, ascending."""
        return sorted(int(path.stem) for path in self._folder.glob("*.key") if path.stem.isdecimal())

    def load(self, number: int) -> PeriodKeys:
        """Return a period's keys. Raises InputError when they are missing or damaged."""
        path = self._path(number)
        try:
            record = _PERIOD_CODEC.decode(load_secret_bytes(path, PERIOD_KIND))
            signing, kem = SecretKey.from_scalar_bytes(record.signing), KemSecretKey.from_scalar_bytes(record.kem)
        except (MalformedError, ValueError):
            raise InputError(
                "the key file of an MDMS period is damaged", where=str(path), do="restore it from the MDMS backup"
            ) from None
        return PeriodKeys(record.number, signing, kem)

    def erase(self, number: int) -> None:
        """Delete a period's keys, once all that was sealed to it is durably stored (protocol 2.5)."""
        self._path(number).unlink(missing_ok=True)

    def opening(self) -> IssuanceRecord | None:
        """Return the registration under way, if there is one."""
        path = self._folder / "opening.key"
        return ISSUANCE_CODEC.decode(load_secret_bytes(path, OPENING_KIND)) if path.exists() else None

    def save_opening(self, record: IssuanceRecord) -> None:
        save_secret_bytes(self._folder / "opening.key", ISSUANCE_CODEC.encode(record), OPENING_KIND, replace=True)

    def finish(self, prepared: Prepared) -> PeriodKeys:
        """Make an open period's keys durable, then forget how they came about; again after a crash between the two."""
        record = _PeriodRecord(prepared.session, prepared.key, prepared.kem_secret)
        save_secret_bytes(self._path(record.number), _PERIOD_CODEC.encode(record), PERIOD_KIND, replace=True)
        (self._folder / "opening.key").unlink(missing_ok=True)
        return self.load(record.number)

    def _path(self, number: int) -> Path:
        return self._folder / f"{number}.key"


async def open_period(
    party: Party,
    folder: PeriodFolder,
    nodes: Sequence[NodeClient],
    courier: Courier,
    *,
    clock_ms: Callable[[], int],
    randomness: Callable[[int], bytes] = os.urandom,
    policy: ContributionPolicy | None = None,
) -> PeriodKeys:
    """Open the next MDMS period, or bring the one under way to its end; its keys are durable afterwards.

    Raises EnvironmentFault when the nodes refuse, IssuanceRefused when too few contribute.
    """
    reason = Reason.NOT_READY
    for _ in range(_ATTEMPTS):
        record = folder.opening()
        if record is None or reason is not Reason.NOT_READY:
            used = max([*folder.numbers(), record.session if record else 0])
            number = max(used, await _chain_period(party, nodes)) + 1
            record = draw(party, number, randomness(32))
            folder.save_opening(record)
        prepared, settlement = await _issue(party, record, folder, nodes, courier, clock_ms, policy)
        if settlement.is_final and settlement.reason is Reason.VALID:
            return folder.finish(prepared)
        reason = settlement.reason
    raise EnvironmentFault(
        f"the nodes do not register a new MDMS period: {reason}",
        likely="this MDMS is not the one that genesis names, or another one runs with its keys",
        do="see `bcami status` and the log of a node",
    )


async def _issue(
    party: Party,
    record: IssuanceRecord,
    folder: PeriodFolder,
    nodes: Sequence[NodeClient],
    courier: Courier,
    clock_ms: Callable[[], int],
    policy: ContributionPolicy | None,
) -> tuple[Prepared, Settlement]:
    async def save(stored: IssuanceRecord) -> None:
        folder.save_opening(stored)

    async def prepare(draft: Draft, shares: Sequence[Share]) -> Prepared:
        return prepare_mdms(party, draft, shares, clock_ms())

    async def settle(encoded: bytes, transaction_id: bytes) -> Settlement:
        return await courier.settle(encoded, transaction_id)

    return await issue(party, record, nodes=nodes, first=0, save=save, prepare=prepare, settle=settle, policy=policy)


async def _chain_period(party: Party, nodes: Sequence[NodeClient]) -> int:
    """Return the number of the period that the chain shows, by weak equal answers; 0 for none."""
    key = b"mdms/current/" + party.hid
    agreed = await weak_read(nodes, lambda node: node.state(key), weak=party.roster.quorum.weak)
    return 0 if agreed.value is None else msgspec.msgpack.decode(agreed.value, type=int)
