"""Strategies of rekeying by the work that they make: joins, both ends' computing, the server's storage; and the schemes
that a review of key management reports on, with what is claimed of them.
"""

from collections.abc import Mapping
from typing import Final, NamedTuple

from bcami.kms.costs import height, lkh_keys, lkh_leave, star_leave
from bcami.report.costs.primitives import Asymmetric, Symmetric
from bcami.report.costs.rekeying import DEGREE, SIZES, RekeyMeasured
from bcami.report.document import Column, Measured, Row, Table
from bcami.report.papers import rekeying as formula
from bcami.report.papers import review
from bcami.report.papers.review import Claimed

MEMBERS: Final = 1024
"""Of the group that is priced."""
_SOURCES: Final = "RFC 2627, RFC 9420, Sherman and McGrew 2003, Naor, Naor and Lotspiech 2001"
_PRICED: Final = (
    "Counts of the formula times this machine's primitives (tables of symmetric primitives and of libraries). Spread: "
    "the same with the primitives' quartiles."
)
_HPKE: Final = "MLS suite 1 is on X25519; priced with this system's HPKE and ECDSA on secp256k1. An HKDF: two HMACs."


class _Work(NamedTuple):
    scheme: str
    words: str
    counts: Mapping[str, float]
    """By primitive."""


def strategy_tables(symmetric: Symmetric, asymmetric: Asymmetric, found: RekeyMeasured) -> tuple[Table, ...]:
    """Return the tables."""
    return _join_table(), _work_table(symmetric, asymmetric, found), _server_table(), _claims_table()


def _join_table() -> Table:
    rows = (
        ("flat", f"N unicasts: {MEMBERS}", "in the N"),
        ("LKH, one-way step", "0: old members step by a one-way function", f"h keys: {height(MEMBERS, DEGREE)}"),
        ("OFT", f"h blinded keys: {height(MEMBERS, 2)}", f"h + 1 keys: {height(MEMBERS, 2) + 1}"),
        ("MLS TreeKEM", "Add and Commit, no path needed", "1 HPKE seal and the tree: O(N) bytes"),
        ("CS", "0", f"h + 1 keys: {height(MEMBERS, 2) + 1}"),
        ("SD", "0", f"(h² + h)/2 + 1 keys: {round(formula.sd_member_keys(MEMBERS))}"),
    )
    return Table(
        "rekey_join",
        f"One member joins a group that then has N = {MEMBERS}",
        (
            Column("scheme", "Scheme"),
            Column("group", "Sent to the group"),
            Column("joiner", "Sent to the one who joins"),
        ),
        tuple(Row(row) for row in rows),
        _SOURCES,
        "A joiner must not read what was sent before it: the group's key changes here too. h is the height of the "
        "tree, of degree 4 for LKH and binary for the others.",
    )


def _server_work() -> tuple[_Work, ...]:
    h2, h4, star = height(MEMBERS, 2), height(MEMBERS, DEGREE), star_leave(MEMBERS)
    seals = formula.treekem_leave(MEMBERS)[1]
    flat = {"random": 2, "hmac": 2 * star, "hash": 2 * star, "xor": 3 * star, "seal": star}
    return (
        _Work("flat", "R + Kgen + (N − 1)(2 HMAC + 2H + 3XOR + E)", flat),
        _Work("LKH 4", "h Kgen + (4h − 1) E", {"random": h4, "wrap": lkh_leave(MEMBERS, DEGREE)}),
        _Work("OFT", "2h H + (h + 1) E", {"hash": 2 * h2, "wrap": formula.oft_leave(MEMBERS)}),
        _Work("MLS TreeKEM", "h HKDF + (2h − 2) HPKE + 1 signature", {"hmac": 2 * h2, "hpke_seal": seals, "sign": 1}),
        _Work("CS", "log₂ N E", {"wrap": h2}),
        _Work("SD", "1 E", {"wrap": formula.sd_cover(1)}),
    )


def _member_work() -> tuple[_Work, ...]:
    h2, h4 = height(MEMBERS, 2), height(MEMBERS, DEGREE)
    return (
        _Work("flat", "2 HMAC + 2H + 3XOR + D", {"hmac": 2, "hash": 2, "xor": 3, "seal": 1}),
        _Work("LKH 4", "at most h D", {"wrap": h4}),
        _Work("OFT", "1 D + h H", {"wrap": 1, "hash": h2}),
        _Work("MLS TreeKEM", "1 HPKE + h HKDF + 1 verify", {"hpke_open": 1, "hmac": 2 * h2, "verify": 1}),
        _Work("CS", "1 D", {"wrap": 1}),
        _Work("SD", "1 D + at most h H", {"wrap": 1, "hash": h2}),
    )


def _work_table(symmetric: Symmetric, asymmetric: Asymmetric, found: RekeyMeasured) -> Table:
    prices = {
        **{name: getattr(symmetric, name) for name in ("hash", "hmac", "xor", "random", "seal", "wrap")},
        "hpke_seal": asymmetric.seal,
        "hpke_open": asymmetric.open,
        "sign": asymmetric.sign,
        "verify": asymmetric.verify,
    }
    running = {"flat": found.flat.get(MEMBERS), "LKH 4": found.lkh.get(MEMBERS)}
    rows = []
    for server, member in zip(_server_work(), _member_work(), strict=True):
        own = running.get(server.scheme)
        rows.append(
            Row(
                (
                    server.scheme,
                    server.words,
                    _price(server, prices),
                    None if own is None else own.cpu_us,
                    member.words,
                    _price(member, prices),
                ),
                _PRICED,
                _HPKE if "HPKE" in server.words else "",
            )
        )
    return Table(
        "rekey_work",
        f"One of N = {MEMBERS} members leaves: what both ends compute",
        (
            Column("scheme", "Scheme"),
            Column("server", "Server: formula"),
            Column("server_us", "Priced, µs", "measured"),
            Column("running_us", "Running, µs", "measured"),
            Column("member", "A member: formula"),
            Column("member_us", "Priced, µs", "measured"),
        ),
        tuple(rows),
        _SOURCES,
        "H is a hash, E and D wrap and unwrap a key, R and Kgen draw. The formulas count primitives alone; the running "
        "key management (flat and LKH only) encodes and authenticates messages as well.",
    )


def _price(work: _Work, prices: dict[str, Measured]) -> Measured:
    parts = [(count, prices[name]) for name, count in work.counts.items()]
    median, low, high = (
        sum(count * getattr(cost, point) for count, cost in parts) for point in ("median", "low", "high")
    )
    return Measured(median, low, high, min(cost.n for _, cost in parts))


def _server_table() -> Table:
    rows = tuple(Row((size, size, round(lkh_keys(size, DEGREE)), 2 * size - 1, 2 * size - 1, 1)) for size in SIZES)
    return Table(
        "rekey_server_storage",
        "Keys that the server stores for one group",
        (
            Column("members", "Members", "number"),
            Column("star", "flat: N", "number"),
            Column("lkh4", "LKH 4: (4N − 1)/3", "number"),
            Column("oft", "OFT: 2N − 1", "number"),
            Column("treekem", "TreeKEM: 2N − 1, public", "number"),
            Column("cs", "CS, SD: one seed", "number"),
        ),
        rows,
        _SOURCES,
        "With flat the members' own keys serve all groups, and a group adds 4 values. In TreeKEM there is no server: "
        "each member has the public tree.",
    )


def _keys_of(claimed: Claimed) -> int | None:
    return {"flat": star_leave(MEMBERS), "lkh": lkh_leave(MEMBERS, DEGREE)}.get(claimed.near)


def _claims_table() -> Table:
    names = {"flat": "flat", "lkh": "LKH", "": "no text tells"}
    rows = tuple(
        Row((item.scheme, item.approach, item.claim, names[item.near], _keys_of(item)), "", item.note)
        for item in review.CLAIMS
    )
    return Table(
        "rekey_claims",
        "Schemes for metering that a review reports on: published claims",
        (
            Column("scheme", "Scheme (the review's reference)"),
            Column("approach", "Approach"),
            Column("claim", "Claimed, as published"),
            Column("like", "Rekeys like"),
            Column("keys", f"Wrapped keys, one of {MEMBERS} leaves", "number"),
        ),
        rows,
        review.CITATION,
        "Claims are repeated as the review has them, and nothing of them was measured here. The text at hand gives no "
        "figures for them and no formulas, and its table of approaches is lost in it; so the last column is the "
        "formula of the strategy that a scheme's description amounts to, and stays empty where no text tells.",
    )
