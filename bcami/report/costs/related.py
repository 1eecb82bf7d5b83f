"""Schemes that BC-AMI compares itself with: their published figures, and operation counts priced on this machine."""

from bcami.report.costs.backends import MULTIPLY, SIGN, BackendCosts
from bcami.report.costs.bc_ami import MeterCosts, OtherCosts
from bcami.report.document import Cell, Column, Row, Section, Table
from bcami.report.measuring import exact
from bcami.report.papers import bc_ami as paper


def related_section(backends: BackendCosts, meter: MeterCosts, others: OtherCosts) -> Section:
    """Return published figures and priced counts."""
    return Section(
        "related",
        "Related work",
        (
            (
                "BC-AMI compares itself with four schemes. Their times come from four papers with four machines, and "
                "count protocols that do different things: a key agreement once in a session (Tsai and Lo, Odelu, "
                "Kumar), a whole collection round (Uludag), and one report (BC-AMI). They are repeated here as "
                "published, and nothing of them was measured here."
            ),
            (
                "How many operations each of the four needs is not in BC-AMI, and in no other text that this report "
                "rests on. So they are not priced here, since a count that is guessed would give a price that is made "
                "up. Who has one of the four papers can multiply its counts with the prices of the table “ECDSA and "
                "ECDH on secp256k1 by library”. The second table does that for the protocols whose texts are at hand."
            ),
        ),
        (_published(), _priced(backends, meter, others)),
    )


def _published() -> Table:
    bits: dict[str, tuple[Cell, str]] = {
        "Kumar et al. 2019": (paper.KUMAR_BITS, "1376 bits and about 266 ms are in BC-AMI's section 2 as well."),
    }
    open_bits = "five figures for four schemes: " + ", ".join(str(value) for value in paper.FIGURE_8_BITS)
    rows = [
        Row(
            (name, value, bits.get(name, (None, ""))[0], round(value / paper.FIGURE_7_OWN_MS, 2)),
            "",
            bits[name][1] if name in bits else f"Bits: {open_bits}; which is whose cannot be resolved.",
        )
        for name, value in paper.FIGURE_7_MS.items()
    ]
    rows += [
        Row(
            (name, value, None, round(value / paper.FIGURE_7_OWN_MS, 2)),
            "",
            "From BC-AMI's section 2; its comparison leaves it out. A keyless signature scheme on a chain.",
        )
        for name, value in paper.SECTION_2_MS.items()
    ]
    rows.append(
        Row(
            ("BC-AMI", paper.FIGURE_7_OWN_MS, paper.FIGURE_8_OWN_BITS, 1),
            "",
            "The slowest of its five meters; the sum of what a meter stores.",
        )
    )
    return Table(
        "related_published",
        "Published on other hardware",
        (
            Column("scheme", "Scheme"),
            Column("ms", "Time, ms", "published"),
            Column("bits", "Communication, bit", "published"),
            Column("ratio", "Time over BC-AMI's", "number"),
        ),
        tuple(rows),
        f"{paper.CITATION}, 5.5 and Figures 7 and 8",
        "As BC-AMI repeats them from the four papers; none of the four is at hand.",
    )


def _priced(backends: BackendCosts, meter: MeterCosts, others: OtherCosts) -> Table:
    multiply = backends.found["coincurve", MULTIPLY].median
    sign = backends.found["coincurve", SIGN].median
    rows = [
        Row(
            (
                "BC-AMI by its words: encrypt to the MDMS's public key, sign",
                "2 multiplications (ECIES), 1 signature",
                exact(2 * multiply + sign),
            ),
            "Counts times coincurve's medians; no hashing, no encoding.",
            "The paper names no encryption scheme; an elliptic curve integrated scheme is the plainest for its keys.",
        ),
        Row(
            (
                "BC-AMI by its words, done by this system's code",
                "1 HPKE setup and seal, 1 signature, hashes",
                exact(others.encapsulated.median + meter.signature.median + others.hashes.median),
            ),
            "Sum of the measured parts.",
        ),
        Row(
            (
                "this system: encapsulation once in a session",
                "1 AES-GCM seal, 1 signature, hashes",
                meter.whole,
            ),
            "Meter.seal as a whole.",
        ),
        Row(
            (
                "a session of this system, spread over a day of 48 reports",
                "f + 1 = 2 shares opened, key combined, HPKE setup, 2 signatures",
                exact((others.draw.median + others.shares.median + others.register.median) / 48),
            ),
            "Sum of the measured parts over 48; the nodes' side of the shares included.",
        ),
    ]
    return Table(
        "related_priced",
        "Operation counts priced with this machine's primitives",
        (
            Column("scheme", "What a meter does"),
            Column("operations", "Operations"),
            Column("us", "CPU time, µs", "measured"),
        ),
        tuple(rows),
        text="BC-AMI's own protocol and this system's: the counts follow from their texts, the prices from this "
        "machine.",
    )
