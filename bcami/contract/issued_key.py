"""The rule of a key that was issued without a dealer (design D7, protocol 2.2): for meters and the MDMS alike."""

from bcami.contract.context import Context, require
from bcami.model.reasons import Reason
from bcami.model.registration import MdmsRegisterArgument, RegisterArgument


def require_issued_key(
    ctx: Context, hid: bytes, session: int, argument: RegisterArgument | MdmsRegisterArgument
) -> None:
    """Reject unless the public key is the sum of the holder's own point and f+1 members' signed contributions."""
    contributions = argument.contributions
    require(len(contributions) >= ctx.network.contributions_min, Reason.BAD_CONTRIBUTION)
    last = -1
    for contribution in contributions:
        require(contribution.replica > last, Reason.BAD_CONTRIBUTION)
        last = contribution.replica
        signed = ctx.is_contribution_of_member(contribution, hid, session, argument.request_hash)
        require(signed, Reason.BAD_CONTRIBUTION)
    points = (argument.own_point, *(contribution.point for contribution in contributions))
    require(ctx.point_sum(points) == argument.public_key, Reason.KEY_MISMATCH)
    require(ctx.is_kem_key(argument.kem_key), Reason.BAD_ARGUMENT)
    # One key, one use (protocol 1.3): what signs must not be what HPKE encapsulates to.
    require(argument.kem_key[1:33] != argument.public_key[1:], Reason.BAD_ARGUMENT)
