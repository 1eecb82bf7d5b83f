"""Every "no" of the system under one name: in outcomes, refusals, metrics, API answers and tests."""

from enum import StrEnum


class Reason(StrEnum):
    """Why something was refused (before ordering) or rejected (an outcome in a block)."""

    VALID = "valid"
    """Not a no: the outcome of a transaction whose effects were applied."""

    # The form of a transaction.
    MALFORMED = "malformed"
    OVERSIZED = "oversized"
    WRONG_CHAIN = "wrong_chain"
    UNKNOWN_CONTRACT = "unknown_contract"
    UNKNOWN_FUNCTION = "unknown_function"
    BAD_ARGUMENT = "bad_argument"
    HASH_MISMATCH = "hash_mismatch"
    BAD_SIGNATURE = "bad_signature"
    TIMESTAMP_AHEAD = "timestamp_ahead"

    # Who signs.
    UNKNOWN_HID = "unknown_hid"
    REVOKED_HID = "revoked_hid"
    NOT_AUTHORIZED = "not_authorized"
    ALREADY_ENROLLED = "already_enrolled"

    # Sessions and replay.
    UNKNOWN_SESSION = "unknown_session"
    SESSION_CLOSED = "session_closed"
    SESSION_NOT_ABOVE = "session_not_above"
    SESSION_TOO_SOON = "session_too_soon"
    REPLAY = "replay"
    SEQUENCE_TOO_OLD = "sequence_too_old"

    # Key issuance.
    BAD_CONTRIBUTION = "bad_contribution"
    KEY_MISMATCH = "key_mismatch"
    UNKNOWN_PERIOD = "unknown_period"
    PERIOD_EXPIRED = "period_expired"

    # MDMS acknowledgement.
    HEIGHT_NOT_ABOVE = "height_not_above"

    # Contract runtime.
    STEPS_EXCEEDED = "steps_exceeded"
    CONTRACT_FAULT = "contract_fault"

    # Node: admission and flow.
    QUEUE_FULL = "queue_full"
    RATE_LIMITED = "rate_limited"
    NOT_READY = "not_ready"

    # Consensus, endorsement and transport messages.
    WRONG_EPOCH = "wrong_epoch"
    WRONG_VIEW = "wrong_view"
    NOT_PRIMARY = "not_primary"
    UNKNOWN_REPLICA = "unknown_replica"
    OUTSIDE_WATERMARKS = "outside_watermarks"
    EQUIVOCATION = "equivocation"
    DUPLICATE = "duplicate"
    BAD_DIGEST = "bad_digest"
    BAD_CERTIFICATE = "bad_certificate"
    BAD_PROOF = "bad_proof"
    BAD_TIME = "bad_time"
    TOO_LARGE = "too_large"
    OVER_QUOTA = "over_quota"
    BEHIND = "behind"
    STALE = "stale"
