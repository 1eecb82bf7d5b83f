"""Figures of BC-AMI [Islam22]: Islam, Rahman, Mahmud, Sifat, Cho, "A Blockchain-Enabled Distributed Advanced Metering
Infrastructure Secure Communication (BC-AMI)", Appl. Sci. 2022, 12, 7274.
"""

from typing import Final, NamedTuple

CITATION: Final = "Islam et al., BC-AMI, Appl. Sci. 2022, 12, 7274"
HARDWARE: Final = (
    "HP ProBook 440 G7, Intel Core i5-10210U at 1.60 GHz, 8 GB, Windows 10, Hyperledger Fabric in Docker, JavaScript"
)
"""5.1. It prints `i5-102100U`; there is no such processor."""

OPERATIONS: Final = ("timestamp", "encryption", "signature")
"""5.3.2: T_τ, T_tx, T_sign."""
TABLE_3: Final[dict[str, tuple[float, float, float] | None]] = {
    "SM1": None,
    "SM2": None,
    "SM3": None,
    "SM4": None,
    "SM5": (0.01, 4.01, 4.94),
}
"""Milliseconds for OPERATIONS. The text at hand has the column of SM5 only; of the others the totals survive."""
TABLE_3_TOTAL_MS: Final = {"SM1": 20.59, "SM2": 8.02, "SM3": 13.34, "SM4": 13.52, "SM5": 8.96}
"""5.3.2, Figure 6."""


class StorageTerm(NamedTuple):
    """A term of the sum in 5.3.1."""

    symbol: str
    what: str
    bits: int


STORAGE_BITS: Final = (
    StorageTerm("L_sign", "ECDSA signature", 512),
    StorageTerm("L_Pu,SM", "public key of the meter", 257),
    StorageTerm("L_Pr,SM", "private key of the meter", 256),
    StorageTerm("L_Pu,MS", "public key of the MDMS", 257),
    StorageTerm("L_τ", "timestamp", 64),
)
STORAGE_TOTAL_BITS: Final = 1346
STORAGE_TOTAL_KB: Final = 0.16825
"""Printed as “Kb”; 1346 bits are 168.25 bytes, so it must be kB."""
METER_STORAGE_KB: Final = 3.0
"""Storage of a meter that 5.3.1 assumes; printed as “3 Kb”, taken from its reference [17]."""

FIGURE_7_MS: Final = {
    "Tsai and Lo 2015": 55.98,
    "Uludag et al. 2016": 158.06,
    "Odelu et al. 2017": 32.16,
    "Kumar et al. 2019": 266.0,
}
"""5.5: time cost of other schemes, each from its own paper and hardware."""
FIGURE_7_OWN_MS: Final = 20.59
SECTION_2_MS: Final = {"Zhang et al. 2019": 46.21}
"""Section 2, of its reference [17]: what a meter takes for the functions of that scheme; not in its comparison."""
FIGURE_8_BITS: Final = (1376, 2240, 6144, 1538, 1376)
"""5.5: five figures for four schemes, “respectively”; only Kumar = 1376 is certain (its section 2)."""
FIGURE_8_OWN_BITS: Final = 1346
KUMAR_BITS: Final = 1376

BLOCK_KWH: Final = {1: 424_552.0, 2: 365_857.0, 3: 252_237.9, 4: 244_846.1, 5: 290_359.9}
"""5.3.2: `total record` of Block1 … Block5."""
SPREADSHEET_ROWS: Final = 1_048_576
"""5.3.2: rows of each block; it is 2^20, the row limit of a spreadsheet, header row included."""
CUT_KWH: Final = {1: 424_552.8, 2: 365_856.9, 3: 252_238.7, 4: 244_848.6, 5: 290_359.4}
"""Kaggle's block_1 … block_5 cut after 1,048,575 data rows, reconstructed from Kaggle's daily files within 2.5 kWh:
what the paper must have summed. The true totals are in TRUE_KWH."""
CUT_TOLERANCE_KWH: Final = 2.5
TRUE_KWH: Final = {0: 550_961.679, 1: 593_858.709, 2: 541_483.280, 3: 354_889.084, 4: 334_956.914, 5: 395_851.613}
"""Sum of Kaggle's daily totals of the same blocks, Null readings left out."""
