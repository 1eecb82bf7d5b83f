"""Makes meters: what a factory burns into one, and what the utility enrols of it (design D7 step 1)."""

from bcami.ami.records import FACTORY_CODEC, FactoryRecord
from bcami.client.issuance import Party
from bcami.crypto.hid import hid
from bcami.crypto.hpke import KemSecretKey
from bcami.crypto.keys import SECRET_ACCESS, SecretKey, export_secret
from bcami.crypto.roster import Roster
from bcami.model.registration import EnrolArgument
from bcami.model.signing import prefixed


def make_meter(meter_id: str, randomness: bytes) -> FactoryRecord:
    """Return a new meter's identity. `randomness` is at least 32 bytes of the factory's generator."""
    bound = prefixed(randomness) + meter_id.encode()
    return FactoryRecord(
        meter_id=meter_id,
        signing_secret=export_secret(SecretKey.generate(bound), SECRET_ACCESS),
        kem_secret=export_secret(KemSecretKey.generate(bound), SECRET_ACCESS),
    )


def party_of(record: FactoryRecord, network_key: bytes, roster: Roster) -> Party:
    """Return the meter's identity on the chain of `roster`."""
    return Party(
        hid=hid(network_key, record.meter_id),
        signing=SecretKey.from_scalar_bytes(record.signing_secret),
        kem=KemSecretKey.from_scalar_bytes(record.kem_secret),
        roster=roster,
    )


def enrolment_of(party: Party) -> EnrolArgument:
    """Return what the utility records of a meter."""
    return EnrolArgument(party.hid, party.signing.public_key, party.kem.public_key)


def encode_factory_record(record: FactoryRecord) -> bytes:
    return FACTORY_CODEC.encode(record)
