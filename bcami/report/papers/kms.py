"""Figures and formulas of the KMS paper [Abdullah23]: Abdullah et al., Appl. Sci. 2023, 13, 8990, a restatement of Liu,
Chen, Zhu, Zhang, He, IEEE TIE 60(10), 2013.

n meters, m demand-response projects; keys, counters and values have 128 bits each; an operation on 128 bits at a given
rate takes 128 / rate (its 9.1).
"""

from typing import Final

CITATION: Final = "Abdullah et al., KMS, Appl. Sci. 2023, 13, 8990"
BLOCK_BITS: Final = 128
METER_MBPS: Final = (10.0, 50.0)
"""9.1: embedded cipher chips."""
SERVER_MBPS: Final = (50.0, 1000.0)
"""9.1: a cryptographic coprocessor."""
RANDOM_MBPS: Final = 1000.0
LINK_MBPS: Final = (155.0, 622.0)
"""9.2: SDH."""

TABLE_8_KB: Final = {5: 0.448, 10: 0.768, 15: 1.088}
"""Storage of a meter, by m."""
TABLE_8_TEXT_KB: Final = {20: 1.4}
"""Section 10; m = 20 is in no table, and above the fifteen that section 9 allows."""

TABLE_10_US: Final = {"unicast": (7.68, 38.4), "broadcast": (5.12, 25.6), "multicast": (12.8, 38.4)}
TABLE_11_US: Final = {"unicast": (0.384, 7.68), "broadcast": (0.256, 5.12)}
OPERATIONS: Final = {"unicast": 3, "broadcast": 2, "multicast": 5}
"""Table 9: HMAC + 2 H; 2 H; both. An XOR is left out, an HMAC counts as one hash."""

TABLE_12_GROUPS: Final = (1000, 2000, 3000, 5000, 10_000)
TABLE_12_PROJECTS: Final = (5, 10, 15)
TABLE_12_MS: Final = ((0.38, 6.98), (0.69, 14.33), (1.12, 22.95), (1.89, 37.87), (3.75, 75.74))
"""By N_G; the same in all three rows of N_p."""
TABLE_13_MS: Final = (2.48, 4.96, 7.44, 12.39, 24.77)
PACKAGE_UNITS: Final = 384
"""9.2 says 384 bytes; the printed times follow from 384 bits."""

CONCLUSION_US: Final = {"meter": (5.0, 38.0), "server": (0.3, 5.0)}


def server_counts(n: int, m: int) -> dict[str, int]:
    """Return the keys, counters and values that the server keeps (Table 7)."""
    return {"keys": 2 * n + 2 * m + 2, "counters": n + m + 1, "values": n + m + 1}


def meter_counts(projects: int) -> dict[str, int]:
    """Return what a meter of that many projects keeps: only its own projects' keys, which Table 6 forgets."""
    return {"keys": 4 + 2 * projects, "counters": 2 + projects, "values": 2 + projects}


def bytes_of(counts: dict[str, int]) -> int:
    return sum(counts.values()) * BLOCK_BITS // 8


def operation_us(mbps: float, bits: int = BLOCK_BITS) -> float:
    """Return the microseconds that one operation takes at a rate of Mb/s."""
    return bits / mbps


def mode_us(mode: str, rates_mbps: tuple[float, float]) -> tuple[float, float]:
    """Return the fastest and the slowest time of a session in a mode."""
    slow, fast = (OPERATIONS[mode] * operation_us(rate) for rate in rates_mbps)
    return fast, slow


def multicast_server_ms(group: int, projects: int) -> tuple[float, float]:
    """Return Table 9's formula for the server: (R + Kgen) N_p + (HMAC + 2 H) N_G + 2 H m, with m = N_p."""
    found = []
    for rate in reversed(SERVER_MBPS):
        one = operation_us(rate)
        fresh = (operation_us(RANDOM_MBPS) + one) * projects
        found.append((fresh + 3 * one * group + 2 * one * projects) / 1000)
    return found[0], found[1]


def distribution_ms(group: int, bits: int, mbps: float) -> float:
    """Return the time to send one package to each of a group."""
    return group * bits / mbps / 1000
