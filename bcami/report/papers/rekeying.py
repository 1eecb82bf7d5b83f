"""How many wrapped keys a change of a group costs, by scheme: formulas of the literature, no measurement.

N members, d the degree of the tree, h = ceil(log_d N) its height, r members that leave at once. Sources: LKH [RFC 2627;
Wong, Gouda, Lam 1998], its batches [Li, Yang, Gouda, Lam 2001], OFT [Sherman, McGrew 2003], TreeKEM [RFC 9420], CS and
SD [Naor, Naor, Lotspiech 2001]. What this system does itself has its formulas in `bcami.kms.costs`.
"""

import math
from typing import Final

from bcami.kms.costs import height

AES_KW_BYTES: Final = 24
"""A 128-bit key wrapped by AES-KW [RFC 3394]."""
MLS_PATH_BYTES: Final = 32 + 48
"""A path secret in MLS suite 1 (X25519)."""
MLS_NODE_BYTES: Final = 32


def lkh_batch_worst(members: int, degree: int, leavers: int) -> float:
    """Wrapped keys when so many are replaced at once that lie as far apart as they can."""
    h = height(members, degree)
    return degree * leavers * (h - math.log(leavers, degree)) + degree * (leavers - 1) / (degree - 1)


def oft_leave(members: int) -> int:
    """At most so many wrapped keys; its collusion safety is refuted (Horng 2002; Ku, Chen 2003)."""
    return height(members, 2) + 1


def treekem_leave(members: int) -> tuple[int, int]:
    """Fewest and most HPKE seals on a full tree; up to N - 1 when many nodes are blank."""
    h = height(members, 2)
    return h - 1, 2 * h - 2


def oft_batch(members: int, leavers: int) -> float:
    """At most so many wrapped keys when so many leave at once [Sherman, McGrew 2003]; not counted on a tree here."""
    return leavers * (height(members, 2) - math.log2(leavers)) + 2 * leavers


def treekem_batch(members: int, leavers: int) -> float:
    """At most so many HPKE seals when so many leave a full tree at once."""
    return leavers * math.log2(members / leavers) + height(members, 2)


def cs_cover(members: int, revoked: int) -> float:
    """Complete subtree: ciphertexts, about, with so many revoked so far."""
    return revoked * math.log2(members / revoked) if revoked else 1.0


def sd_cover(revoked: int) -> int:
    """Subset difference: at most so many ciphertexts."""
    return max(1, 2 * revoked - 1)


def cs_member_keys(members: int) -> int:
    return height(members, 2) + 1


def sd_member_keys(members: int) -> float:
    log = height(members, 2)
    return (log * log + log) / 2 + 1
