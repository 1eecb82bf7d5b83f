"""What the review of key management [Review] says of schemes that it reports on, for the report.

Only what the text at hand holds is here: claims in words, not one figure. Its Table 2, of approaches and techniques,
is lost in that text. Beside it were at hand the KMS paper, which restates the scheme of Liu et al., and the abstract of
eSKAMI. A key graph alone does not tell how a scheme rekeys: that of Liu et al. sends to each member.
"""

from typing import Final, NamedTuple

CITATION: Final = "a review of key management methods in advanced metering infrastructure environments"


class Claimed(NamedTuple):
    """One scheme."""

    scheme: str
    """Numbers are the review's references."""
    approach: str
    claim: str
    """As the review has it, shortened."""
    near: str = ""
    """Which strategy of the cost formulas it rekeys like, where a text tells: `flat`, `lkh`."""
    note: str = ""


_TREE: Final = "lkh"
_STAR: Final = "flat"

CLAIMS: Final = (
    Claimed(
        "Liu et al. 2013 (32)",
        "key graph; unicast, broadcast, multicast",
        "addresses key management of AMI; Wan et al. find desynchronisation and no scalability",
        _STAR,
        "The scheme that the KMS paper restates.",
    ),
    Claimed(
        "El-Hajjar and Hanzo (37)",
        "key graph; three processes for unicast, broadcast, multicast",
        "fits hybrid transmission",
    ),
    Claimed(
        "Wan et al. 2014 (47)",
        "identity-based cryptosystem and key tree",
        "stands desynchronisation; scalable",
        _TREE,
    ),
    Claimed("Kumar et al. (58)", "key graphs for several users", "Wan et al. find it open to denial of service"),
    Claimed(
        "Benmalek and Challal (53)",
        "technique of keys for several groups",
        "all three modes; fits large grids",
    ),
    Claimed(
        "Benmalek et al. (54), four schemes",
        "individual and batch rekeying",
        "all three modes, secured",
    ),
    Claimed(
        "Benmalek et al. (45)",
        "keys for several groups",
        "less storage than others, and little communication",
    ),
    Claimed(
        "Benmalek et al. (55), iVerSAMI",
        "key graph, another broadcast protocol",
        "more secure than VerSAMI, less storage and communication",
    ),
    Claimed(
        "eSKAMI (Benmalek and Challal 2015)",
        "one key graph for all groups, individual and batch rekeying",
        "83 % less storage at equal traffic",
        _TREE,
        "From its abstract, not from the review; the only figure that a text at hand gives. A key graph with "
        "individual and batch rekeying is a key hierarchy: counted like one.",
    ),
    Claimed(
        "Manjul and Mishra (56)",
        "elliptic curves in group communication",
        "least cost of rekeying; less computation and communication",
    ),
    Claimed(
        "Kumar et al. (57)",
        "session key of a meter and devices of a home",
        "no keys change when a meter joins or leaves",
    ),
    Claimed("Kamto et al. (51)", "Needham-Schroeder, elliptic curves, a trust anchor", "establishes a session key"),
    Claimed(
        "Wen et al. (52)",
        "physically unclonable function in the meter",
        "strong authentication by hardware; no change of the meter",
    ),
    Claimed("Yan et al. (50)", "binary authentication tree at the gateway", "authenticates many meters at once"),
    Claimed(
        "Thomas et al. (59)",
        "station-to-station protocol, signatures over SHA-1",
        "shared keys without unwanted threats",
        "",
        "SHA-1 collisions have been made since 2017: nobody should sign over it.",
    ),
    Claimed("Maharjan et al. (34)", "secure IP multicast", "delivers keys to several users from one centre"),
    Claimed("Parvez et al. (39)", "two servers, two levels of encryption", "no longer packets"),
    Claimed("Kiarie et al. (60)", "hash functions make the keys", "good for keys of 128 bits"),
)
