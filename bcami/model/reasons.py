"""Every "no" of the system under one name: in outcomes, refusals, metrics, API answers and tests."""

from collections.abc import Mapping
from enum import StrEnum
from types import MappingProxyType
from typing import Final


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

    # Evidence.
    NO_EQUIVOCATION = "no_equivocation"
    ALREADY_RECORDED = "already_recorded"

    # Symmetric key management (bcami.kms).
    WRONG_KEY = "wrong_key"
    WRONG_MODE = "wrong_mode"
    WRONG_KMS_EPOCH = "wrong_kms_epoch"
    EPOCH_NOT_ABOVE = "epoch_not_above"
    UNASKED = "unasked"
    OUT_OF_STEP = "out_of_step"
    EXPIRED = "expired"
    UNKNOWN_GROUP = "unknown_group"
    GROUP_EXISTS = "group_exists"
    ALREADY_MEMBER = "already_member"
    NOT_A_MEMBER = "not_a_member"
    MEMBER_CANNOT_SEND = "member_cannot_send"
    INCOMPATIBLE_PROJECT = "incompatible_project"
    CHANGES_SPENT = "changes_spent"

    # Private aggregation: what a contract, a meter or the head-end says no to.
    UNKNOWN_ROSTER = "unknown_roster"
    UNKNOWN_ROUND = "unknown_round"
    ROSTER_MISMATCH = "roster_mismatch"
    ROSTER_FIXED = "roster_fixed"
    MEMBER_TWICE = "member_twice"
    GROUP_TOO_SMALL = "group_too_small"
    GROUP_TOO_ALIKE = "group_too_alike"
    OTHER_GROUP = "other_group"
    INTERVAL_SPENT = "interval_spent"
    BUDGET_SPENT = "budget_spent"
    ROUND_NOT_ABOVE = "round_not_above"
    ROUND_ENDED = "round_ended"
    NOT_SETTLED = "not_settled"
    CONTRIBUTORS_GREW = "contributors_grew"
    CUT_OFF = "cut_off"
    ALREADY_REVEALED = "already_revealed"
    CONTRIBUTED_TWICE = "contributed_twice"
    NO_READING = "no_reading"
    READING_OUT_OF_RANGE = "reading_out_of_range"
    SUM_MISMATCH = "sum_mismatch"
    TOO_FEW_SHARES = "too_few_shares"
    WRONG_TOKEN = "wrong_token"  # noqa: S105  a reason's name
    KEY_SUM_MISMATCH = "key_sum_mismatch"
    RING_BROKEN = "ring_broken"
    TIMED_OUT = "timed_out"

    # Contract runtime.
    STEPS_EXCEEDED = "steps_exceeded"
    CONTRACT_FAULT = "contract_fault"

    # Node: admission and flow.
    QUEUE_FULL = "queue_full"
    RATE_LIMITED = "rate_limited"
    STALE_CHALLENGE = "stale_challenge"
    NOT_READY = "not_ready"
    AMNESIA = "amnesia"
    NOT_FOUND = "not_found"

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
    PRUNED = "pruned"


BUSY_REASONS: Final = frozenset(
    {
        Reason.QUEUE_FULL,
        Reason.RATE_LIMITED,
        Reason.NOT_READY,
        Reason.AMNESIA,
        Reason.OVER_QUOTA,
        Reason.BEHIND,
    }
)
"""These speak of the node, not of the transaction: they are not signed and never count towards abandoning it."""


def explain(reason: Reason) -> str:
    """Return what the reason means, as a sentence for a person."""
    return _SENTENCES[reason]


_SENTENCES: Final[Mapping[Reason, str]] = MappingProxyType(
    {
        Reason.VALID: "accepted and applied",
        Reason.MALFORMED: "the request or message is not in the form that it must have",
        Reason.OVERSIZED: "it is larger than allowed",
        Reason.WRONG_CHAIN: "it was made for another network: its chain id is not this one's",
        Reason.UNKNOWN_CONTRACT: "no contract of this name is installed",
        Reason.UNKNOWN_FUNCTION: "the contract has no such function",
        Reason.BAD_ARGUMENT: "the argument is not one that the function takes",
        Reason.HASH_MISMATCH: "the argument is not the one whose hash was signed: it was altered on the way",
        Reason.BAD_SIGNATURE: (
            "a signature does not verify with the key on the chain; signatures cover the chain id too, so a "
            "transaction that was signed for another network also fails here"
        ),
        Reason.TIMESTAMP_AHEAD: "the timestamp is ahead of this node's clock by more than clock_skew_ms allows",
        Reason.UNKNOWN_HID: "no meter is enrolled under this HID",
        Reason.REVOKED_HID: "the utility has revoked this HID",
        Reason.NOT_AUTHORIZED: "the asker may not do this",
        Reason.ALREADY_ENROLLED: "this HID is enrolled already; an enrolment never changes",
        Reason.UNKNOWN_SESSION: "no session of this number was ever opened",
        Reason.SESSION_CLOSED: "the session was followed by a newer one",
        Reason.SESSION_NOT_ABOVE: "the session number is not above the current one",
        Reason.SESSION_TOO_SOON: "the last session was opened less than session_gap_ms ago",
        Reason.REPLAY: "this sequence number was used before",
        Reason.SEQUENCE_TOO_OLD: "the sequence number has left the replay window",
        Reason.BAD_CONTRIBUTION: "a key contribution is not of a member of this network or for another request",
        Reason.KEY_MISMATCH: "the key is not the one that it must be: the parts do not add up to it",
        Reason.UNKNOWN_PERIOD: "the MDMS never opened a period of this number",
        Reason.PERIOD_EXPIRED: "the MDMS's period is over, and so is its grace: open a new session",
        Reason.HEIGHT_NOT_ABOVE: "the acknowledged height is not above the last one",
        Reason.NO_EQUIVOCATION: "the two statements do not contradict each other",
        Reason.ALREADY_RECORDED: "evidence about this statement of this member is on the chain already",
        Reason.WRONG_KEY: "it does not open with the key that this side has: altered, or made under another key",
        Reason.WRONG_MODE: "a message of this type does not go this way (unicast, broadcast, multicast; up, down)",
        Reason.WRONG_KMS_EPOCH: "it is of another epoch of the MDMS's symmetric keys: bootstrap again",
        Reason.EPOCH_NOT_ABOVE: "an epoch of the MDMS's symmetric keys never falls",
        Reason.UNASKED: "it answers no request of this meter",
        Reason.OUT_OF_STEP: "it is under another version of the key: a rekeying was missed, catch up",
        Reason.EXPIRED: "the time in which it was to be obeyed is over",
        Reason.UNKNOWN_GROUP: "no demand-response project has this number",
        Reason.GROUP_EXISTS: "a demand-response project of this number was published before",
        Reason.ALREADY_MEMBER: "the meter takes part in this project already",
        Reason.NOT_A_MEMBER: "the meter takes no part in this project, or in this round",
        Reason.MEMBER_CANNOT_SEND: "only the MDMS sends to a group; a member talks to the MDMS alone",
        Reason.INCOMPATIBLE_PROJECT: "the meter takes part in a project that excludes this one: leave that first",
        Reason.CHANGES_SPENT: "the meter joined and left so often that it must wait before it does so again",
        Reason.UNKNOWN_ROSTER: "no roster of this number is on the chain, or it is not fixed yet",
        Reason.UNKNOWN_ROUND: "no round of this number was started",
        Reason.ROSTER_MISMATCH: "the roster is not the one that the chain has",
        Reason.ROSTER_FIXED: "the roster is fixed: nothing is added to it",
        Reason.MEMBER_TWICE: "a member is named twice, or the HIDs do not rise",
        Reason.GROUP_TOO_SMALL: "so few contributors would not hide a single one",
        Reason.GROUP_TOO_ALIKE: "the sums of two such alike groups would tell what a few members used",
        Reason.OTHER_GROUP: "the meter was in a sum over another group within a day: the two could differ by a few",
        Reason.INTERVAL_SPENT: "the meter has given its reading of this interval to a sum already",
        Reason.BUDGET_SPENT: "the meter's privacy budget for this time is used up",
        Reason.ROUND_NOT_ABOVE: "the round's number is not above the last one: it is stale",
        Reason.ROUND_ENDED: "the round has ended",
        Reason.NOT_SETTLED: "who contributed is not settled yet, or not counted completely",
        Reason.CONTRIBUTORS_GREW: "the new set of contributors is not within the one before",
        Reason.CUT_OFF: "so few of the meter's neighbours contributed that its reading could be told",
        Reason.ALREADY_REVEALED: "the meter revealed the other secret about that member: never both",
        Reason.CONTRIBUTED_TWICE: "the meter contributed to this round before, with other bytes",
        Reason.NO_READING: "the meter has no reading of this interval",
        Reason.READING_OUT_OF_RANGE: "the reading is outside of what the round can sum",
        Reason.SUM_MISMATCH: "the sum does not open the contributors' commitments",
        Reason.TOO_FEW_SHARES: "fewer secrets were revealed than are needed to take off the masks",
        Reason.WRONG_TOKEN: "no member of the ring has this token",
        Reason.KEY_SUM_MISMATCH: "the sum of keys is not that of the keys in use: the result is outside of its range",
        Reason.RING_BROKEN: "the ring did not come round: a member or a link failed",
        Reason.TIMED_OUT: "the time for it is over",
        Reason.STEPS_EXCEEDED: "the contract took more steps than are allowed",
        Reason.CONTRACT_FAULT: "the contract itself broke; its operator finds the place in the node's log",
        Reason.QUEUE_FULL: "this node's queue is full: try again later, or another node",
        Reason.STALE_CHALLENGE: "the challenge was used already, is too old, or was never given",
        Reason.RATE_LIMITED: "too many requests: try again later",
        Reason.NOT_READY: "this node cannot do this now",
        Reason.AMNESIA: (
            "this node has lost its vote log, so its key is dead: it follows the chain and serves reads, and takes in, "
            "endorses and votes for nothing any more; ask another node"
        ),
        Reason.NOT_FOUND: "this node knows nothing under this address",
        Reason.WRONG_EPOCH: "it is for another epoch",
        Reason.WRONG_VIEW: "it is for another view",
        Reason.NOT_PRIMARY: "the sender is not the primary of that view",
        Reason.UNKNOWN_REPLICA: "the sender is no such member",
        Reason.OUTSIDE_WATERMARKS: "the height is outside of the window of accepted heights",
        Reason.EQUIVOCATION: "it contradicts what the same member signed before",
        Reason.DUPLICATE: "it was here before",
        Reason.BAD_DIGEST: "the digest is not the one of the data",
        Reason.BAD_CERTIFICATE: "the certificate does not hold",
        Reason.BAD_PROOF: "the proof does not hold",
        Reason.BAD_TIME: "the proposed time is outside of what this node's clock allows",
        Reason.TOO_LARGE: "it is larger than a proposal may be",
        Reason.OVER_QUOTA: "there is as much of its kind as is kept already",
        Reason.BEHIND: "this node has not reached that height yet",
        Reason.PRUNED: "the peer has dropped the payloads of the block, as it may after the MDMS has them",
        Reason.STALE: "it is about something that is over",
    }
)
