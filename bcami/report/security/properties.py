"""What is attacked: BC-AMI's F1 to F10 [BC-AMI Table 4], and what a backend has to stand beside them."""

from typing import Final, NamedTuple


class Property(NamedTuple):
    """One row of the verdicts."""

    key: str
    title: str
    printed: str
    """What Table 4 prints for the paper's own scheme; empty for what is not in it."""
    claim: str
    """What is claimed here."""


PROPERTIES: Final = (
    Property(
        "F1",
        "Perfect forward secrecy",
        "yes",
        "Secrecy of usage ends with the MDMS's period key and the meter's context of its open session, not with Pr: "
        "it is forward secrecy from the erasure of a period on, and no perfect one. That the session's key pair is "
        "ephemeral, as the paper argues, says nothing about reports that are sealed to another party's key.",
    ),
    Property(
        "F2",
        "Key replacement",
        "yes",
        "A meter's key changes only with signatures of its enrolment key and of the new key; the MDMS's only with a "
        "receipt that its holder's enrolment key signed for.",
    ),
    Property(
        "F3",
        "Message integrity",
        "yes",
        "What a meter sealed and signed is what the MDMS stores, or nothing; receipts and blocks prove themselves.",
    ),
    Property(
        "F4",
        "Authentication",
        "yes",
        "Only enrolled, unrevoked meters with an open session report; only the MDMS and the utility act as such.",
    ),
    Property(
        "F5",
        "Signature correctness",
        "yes",
        "One signature for one statement under one key: no second valid form, no signature for another purpose, no "
        "key that is none.",
    ),
    Property(
        "F6",
        "Man in the middle",
        "yes",
        "Whoever carries messages, a node included, learns no key and no usage and changes nothing unseen; it can "
        "delay, and be gone around.",
    ),
    Property(
        "F7",
        "Impersonation",
        "yes",
        "A HID proves nothing. Who has a meter's session key can use up its numbers, but seal no reading; who has "
        "its enrolment keys is the meter, until the utility revokes it.",
    ),
    Property(
        "F8",
        "Replay",
        "yes",
        "A transaction has one outcome for good, whoever sends it again, when, where, and in whichever batch; none "
        "counts in another network.",
    ),
    Property(
        "F9",
        "Byzantine fault tolerance",
        "yes",
        "With at most f = (n − 1)/3 Byzantine nodes no two certified blocks of one height differ, and all honest "
        "requests get their outcome. Above f nothing is claimed. The paper names PBFT, which as published stands f bad "
        "members as well; what falls is ordering as its section 4.2.3 words it.",
    ),
    Property(
        "F10",
        "51 % attack",
        "yes",
        "Computing power and invented identities count for nothing. But a majority of the members is more than f: "
        "the words “51 %” are about proof of work, and a permissioned quorum of 2f + 1 falls to more than a third. "
        "The paper claims to prevent it and therefore “falls”; here it is a limit that is said.",
    ),
    Property("HID", "Stolen HID", "", "A HID is public; with it alone nothing can be done."),
    Property(
        "DICTIONARY",
        "Dictionary attack on HIDs",
        "",
        "Without the utility's network key no HID is traced to a meter id. A HID is a pseudonym all the same: it "
        "stays, and what is under one HID is linked.",
    ),
    Property(
        "INSIDER",
        "Insider broadcast forgery",
        "",
        "A meter that has the group's keys cannot speak as the MDMS to others.",
    ),
    Property("MDMS-KEY", "Leaked MDMS key", "", "Everything of the period before its erasure; nothing after it."),
    Property(
        "NODE-KEY",
        "Leaked node key",
        "",
        "Its thief is one Byzantine node: he can contradict the node, which convicts it, and forge nothing else.",
    ),
    Property("SHARE", "Rogue key share", "", "No contributor, and not all of them, choose or learn a key."),
    Property("LEDGER", "Ledger tampering", "", "What was changed on a node's disk is found and named."),
    Property("MALLEATED", "Malleated signature", "", "There is no second signature, and the id does not cover it."),
    Property("CROSS", "Cross-network replay", "", "Everything signed names its chain."),
    Property(
        "WITHHOLD",
        "Concentrator that withholds",
        "",
        "A node that drops, delays or hides costs time: meters and the MDMS go to another.",
    ),
    Property(
        "DESYNC",
        "Desynchronisation of the key management",
        "",
        "After any pattern of loss, repetition, restart and restored backups both ends agree again, and nothing old "
        "is accepted.",
    ),
)
