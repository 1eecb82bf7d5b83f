"""What a fleet keeps durably about its meters."""

from typing import Final

import msgspec

from bcami.codec import Codec
from bcami.crypto.secret_record import SecretRecord
from bcami.model.ids import U63, Hash
from bcami.model.transaction import TRANSACTION_BYTES_MAX
from bcami.units import KIB


class FactoryRecord(SecretRecord, frozen=True, array_like=True):
    """What the factory put into a meter."""

    meter_id: str
    signing_secret: Hash
    kem_secret: Hash


class Progress(msgspec.Struct, frozen=True, array_like=True):
    """How far a meter got; holds no secret."""

    is_enrolled: bool = False
    session_high: U63 = 0
    """Highest session number that it ever used, opened or not (protocol 2.3)."""


class SessionRecord(SecretRecord, frozen=True, array_like=True):
    """An open session."""

    number: U63
    period: U63
    """MDMS period that its reports are sealed to."""
    key: Hash
    """Pr."""
    kem_secret: Hash
    context: bytes
    """Sealing context."""


class ReportRecord(msgspec.Struct, frozen=True, array_like=True):
    """A sealed and signed report without a receipt: the bytes to send, and the plaintext to seal again (2.6)."""

    transaction: bytes
    report: bytes
    intended_ms: U63


class WaitingRecord(msgspec.Struct, frozen=True, array_like=True):
    """A report that was taken and not sealed yet."""

    report: bytes
    intended_ms: U63


FACTORY_CODEC: Final[Codec[FactoryRecord]] = Codec(FactoryRecord, KIB)
PROGRESS_CODEC: Final[Codec[Progress]] = Codec(Progress, KIB)
SESSION_CODEC: Final[Codec[SessionRecord]] = Codec(SessionRecord, KIB)
REPORT_CODEC: Final[Codec[ReportRecord]] = Codec(ReportRecord, 2 * TRANSACTION_BYTES_MAX)
WAITING_CODEC: Final[Codec[WaitingRecord]] = Codec(WaitingRecord, TRANSACTION_BYTES_MAX)
