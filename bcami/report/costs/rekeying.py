"""What a change of a group costs, against its size: the strategies of this system and those of the literature."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

from bcami.kms.costs import height, lkh_batch, lkh_leave, star_leave
from bcami.report.document import Chart, Column, Measured, Range, Row, Section, Series, Table
from bcami.report.papers import rekeying as formula

SIZES: Final = (16, 64, 256, 1024, 4096, 16_384)
DEGREE: Final = 4
_BATCHES: Final = (1, 10, 100)
_BATCH_SIZE: Final = 1024


@dataclass(frozen=True, slots=True)
class Rekeyed:
    """One leave from a group, as this system did it."""

    keys: int
    """Wrapped keys."""
    messages: int
    sent_bytes: int
    cpu_us: Measured


@dataclass(frozen=True, slots=True)
class RekeyMeasured:
    """By size of the group; empty where nothing was measured."""

    flat: dict[int, Rekeyed] = field(default_factory=dict)
    lkh: dict[int, Rekeyed] = field(default_factory=dict)
    method: str = ""


def rekeying_section(found: RekeyMeasured, more: Sequence[Table] = ()) -> Section:
    """Return the comparison of strategies; `more` are tables that come after these."""
    items: list[Table | Chart] = [_leave_table(), _leave_chart(found), _bytes_table(), _batch_table(), _storage_table()]
    if found.flat or found.lkh:
        items.insert(1, _measured_table(found))
    return Section(
        "rekeying",
        "Rekeying strategies against the size of the group",
        (
            (
                "When a member leaves, the others need a key that it does not have. The KMS paper sends one message "
                "to each (“flat”); this system does that, and a logical key hierarchy of degree 4 (“lkh”). The other "
                "columns follow from the formulas of their sources, in wrapped keys; they are not implemented here."
            ),
        ),
        (*items, *more),
    )


def _leave_table() -> Table:
    rows = []
    for size in SIZES:
        fewest, most = formula.treekem_leave(size)
        rows.append(
            Row(
                (
                    size,
                    star_leave(size),
                    lkh_leave(size, 2),
                    lkh_leave(size, DEGREE),
                    formula.oft_leave(size),
                    Range(fewest, most),
                    round(formula.cs_cover(size, 1)),
                    formula.sd_cover(1),
                )
            )
        )
    return Table(
        "rekey_leave",
        "One member leaves: wrapped keys that the others need",
        (
            Column("members", "Members", "number"),
            Column("star", "flat: N − 1", "number"),
            Column("lkh2", "LKH, degree 2: 2h − 1", "number"),
            Column("lkh4", "LKH, degree 4: 4h − 1", "number"),
            Column("oft", "OFT: ≤ h + 1", "number"),
            Column("treekem", "MLS TreeKEM: h − 1 to 2h − 2", "recomputed"),
            Column("cs", "CS, first leaver", "number"),
            Column("sd", "SD, first leaver", "number"),
        ),
        tuple(rows),
        "RFC 2627, RFC 9420, Sherman and McGrew 2003, Naor, Naor and Lotspiech 2001",
        "h is the height of the tree. Keys differ in size: 24 bytes wrapped by AES-KW (flat, LKH, OFT, CS, SD), 80 "
        "bytes and a node key of 32 for a path secret of MLS. CS and SD grow with all who ever left; OFT's safety "
        "against collusion is refuted; TreeKEM needs no trusted server and heals after a compromise.",
    )


def _bytes_table() -> Table:
    wrapped = formula.AES_KW_BYTES
    rows = []
    for size in SIZES:
        most, nodes = formula.treekem_leave(size)[1], height(size, 2)
        rows.append(
            Row(
                (
                    size,
                    wrapped * star_leave(size),
                    wrapped * lkh_leave(size, DEGREE),
                    wrapped * formula.oft_leave(size),
                    formula.MLS_PATH_BYTES * most + formula.MLS_NODE_BYTES * nodes,
                    wrapped * round(formula.cs_cover(size, 1)),
                )
            )
        )
    return Table(
        "rekey_bytes",
        "One member leaves: bytes of the wrapped keys alone",
        (
            Column("members", "Members", "number"),
            Column("star", "flat", "number"),
            Column("lkh4", "LKH, degree 4", "number"),
            Column("oft", "OFT", "number"),
            Column("treekem", "MLS TreeKEM, at most", "number"),
            Column("cs", "CS", "number"),
        ),
        tuple(rows),
        text=f"{wrapped} bytes for a 128-bit key under AES-KW; in MLS suite 1, {formula.MLS_PATH_BYTES} for a path "
        f"secret and {formula.MLS_NODE_BYTES} for a node key. Headers, identities and signatures come on top in every "
        "scheme.",
    )


def _leave_chart(found: RekeyMeasured) -> Chart:
    numbers = tuple(float(size) for size in SIZES)
    series = [
        Series("flat, formula", "number", numbers, tuple(float(star_leave(n)) for n in SIZES), line="dashed"),
        Series("LKH 4, formula", "number", numbers, tuple(float(lkh_leave(n, 4)) for n in SIZES), line="dashed"),
        Series("OFT, formula", "number", numbers, tuple(float(formula.oft_leave(n)) for n in SIZES), line="dashed"),
        Series(
            "MLS TreeKEM, at most",
            "number",
            numbers,
            tuple(float(formula.treekem_leave(n)[1]) for n in SIZES),
            line="dashed",
        ),
    ]
    for name, by_size in (("flat, this system", found.flat), ("LKH 4, this system", found.lkh)):
        if by_size:
            sizes = tuple(float(size) for size in by_size)
            keys = tuple(float(item.keys) for item in by_size.values())
            series.append(Series(name, "measured", sizes, keys, line="none"))
    return Chart(
        "rekey_leave_chart",
        "Wrapped keys when one member leaves",
        "lines",
        "members of the group (log)",
        "wrapped keys (log)",
        tuple(series),
        caption="A tree turns N messages into a handful; points are counted on this system's messages.",
        x_log=True,
        y_log=True,
    )


def _measured_table(found: RekeyMeasured) -> Table:
    rows = [
        Row((name, size, item.keys, item.messages, item.sent_bytes, item.cpu_us), found.method)
        for name, by_size in (("flat", found.flat), ("lkh", found.lkh))
        for size, item in by_size.items()
    ]
    return Table(
        "rekey_measured",
        "One member leaves, measured on this system",
        (
            Column("strategy", "Strategy"),
            Column("members", "Members", "number"),
            Column("keys", "Wrapped keys", "number"),
            Column("messages", "Messages", "number"),
            Column("bytes", "Bytes", "number"),
            Column("cpu_us", "CPU time of the MDMS, µs", "measured"),
        ),
        tuple(rows),
        text="Both strategies on the running key management: keys, messages and bytes are counted on what it sends.",
    )


def _batch_table() -> Table:
    size = _BATCH_SIZE
    rows = [
        Row(
            (
                leavers,
                size,
                round(float(lkh_batch(size, 2, leavers)), 1),
                round(float(lkh_batch(size, DEGREE, leavers)), 1),
                round(formula.lkh_batch_worst(size, DEGREE, leavers), 1),
                round(formula.oft_batch(size, leavers), 1),
                round(formula.treekem_batch(size, leavers), 1),
                round(formula.cs_cover(size, leavers), 1),
                formula.sd_cover(leavers),
            )
        )
        for leavers in _BATCHES
    ]
    return Table(
        "rekey_batch",
        f"Many leave {size} members at once and are replaced: wrapped keys",
        (
            Column("leavers", "Leavers", "number"),
            Column("star", "flat: N", "number"),
            Column("lkh2", "LKH 2, mean", "number"),
            Column("lkh4", "LKH 4, mean", "number"),
            Column("lkh4_worst", "LKH 4, worst", "number"),
            Column("oft", "OFT, at most", "number"),
            Column("treekem", "TreeKEM, at most", "number"),
            Column("cs", "CS, about", "number"),
            Column("sd", "SD, at most", "number"),
        ),
        tuple(rows),
        "Li, Yang, Gouda and Lam 2001 (mean over which members leave); Naor, Naor and Lotspiech 2001",
        "One change of the tree for all of them. flat and LKH count the keys for those who take the places too; the "
        "others are bounds for the leavers alone. “Worst”: they lie as far apart in it as they can.",
    )


def _storage_table() -> Table:
    rows = [
        Row(
            (
                size,
                4,
                height(size, DEGREE) + 1,
                2 * height(size, 2) + 1,
                height(size, 2) + 1,
                2 * size - 1,
                formula.cs_member_keys(size),
                formula.sd_member_keys(size),
            )
        )
        for size in SIZES
    ]
    return Table(
        "rekey_storage",
        "Keys that a member stores",
        (
            Column("members", "Members", "number"),
            Column("star", "flat: values for each project", "number"),
            Column("lkh4", "LKH 4: h + 1", "number"),
            Column("oft", "OFT: h + 1 and h blinded", "number"),
            Column("treekem_private", "TreeKEM, private", "number"),
            Column("treekem_public", "TreeKEM, public: 2N − 1", "number"),
            Column("cs", "CS: log N + 1", "number"),
            Column("sd", "SD", "number"),
        ),
        tuple(rows),
        "RFC 2627, RFC 9420, Sherman and McGrew 2003, Naor, Naor and Lotspiech 2001",
        "For one group. A meter's memory is what it has least of; SD pays for its short messages here.",
    )
