"""The contract API: all that a file of a chaincode package may import."""

from bcami.contract.api import Contract, Record, query, submit
from bcami.contract.context import Context, found, require
from bcami.contract.issued_key import require_issued_key
from bcami.contract.state import HASH, NUMBER, ONLY, Map, View, pair
from bcami.model.evidence import RECORDS_PER_REPLICA_MAX as EVIDENCE_PER_MEMBER_MAX
from bcami.model.evidence import Evidence, EvidenceRecord
from bcami.model.ids import NO_HASH, U63, Hash, KemKey, PublicKey
from bcami.model.reasons import Reason
from bcami.model.registration import (
    AcknowledgeArgument,
    Acknowledgement,
    ContributionAnswer,
    ContributionRequest,
    EnrolArgument,
    Enrolment,
    MdmsRegisterArgument,
    MeterState,
    Period,
    RegisterArgument,
    RevokeArgument,
    Session,
)
from bcami.model.report import READING_BYTES, READINGS_MAX

__all__ = [
    "EVIDENCE_PER_MEMBER_MAX",
    "HASH",
    "NO_HASH",
    "NUMBER",
    "ONLY",
    "READINGS_MAX",
    "READING_BYTES",
    "U63",
    "AcknowledgeArgument",
    "Acknowledgement",
    "Context",
    "Contract",
    "ContributionAnswer",
    "ContributionRequest",
    "EnrolArgument",
    "Enrolment",
    "Evidence",
    "EvidenceRecord",
    "Hash",
    "KemKey",
    "Map",
    "MdmsRegisterArgument",
    "MeterState",
    "Period",
    "PublicKey",
    "Reason",
    "Record",
    "RegisterArgument",
    "RevokeArgument",
    "Session",
    "View",
    "found",
    "pair",
    "query",
    "require",
    "require_issued_key",
    "submit",
]
