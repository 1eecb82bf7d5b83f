"""Every number that the report calls printed stands in the paper's text, where that is at hand."""

import re
from collections.abc import Iterable

import pytest

from bcami.report.papers import bc_ami, kms
from tests.shared import shared_path


def text_of(name: str) -> str:
    """Return the text without the gaps between thousands and the marks of mathematics."""
    text = shared_path("seeds", name).read_text(encoding="utf-8")
    return re.sub(r"(?<=\d),(?=\d{3}\b)", "", text)


def missing(numbers: Iterable[float | str], text: str) -> list[str]:
    """Return which of the numbers the text does not have as numbers of their own."""
    shown = [number if isinstance(number, str) else f"{number:.10g}" for number in numbers]
    return [word for word in shown if not re.search(rf"(?<![\d.]){re.escape(word)}(?!\d|\.\d)", text)]


@pytest.fixture(scope="module")
def bc_ami_text() -> str:
    return text_of("bc-ami.txt")


@pytest.fixture(scope="module")
def kms_text() -> str:
    return text_of("kms.txt")


def test_bc_ami(bc_ami_text: str) -> None:
    columns = [column for column in bc_ami.TABLE_3.values() if column is not None]
    numbers = [
        *(value for column in columns for value in column),
        *bc_ami.TABLE_3_TOTAL_MS.values(),
        *(term.bits for term in bc_ami.STORAGE_BITS),
        bc_ami.STORAGE_TOTAL_BITS,
        bc_ami.STORAGE_TOTAL_KB,
        bc_ami.METER_STORAGE_KB,
        *bc_ami.FIGURE_7_MS.values(),
        bc_ami.FIGURE_7_OWN_MS,
        *bc_ami.FIGURE_8_BITS,
        bc_ami.FIGURE_8_OWN_BITS,
        *bc_ami.BLOCK_KWH.values(),
        *bc_ami.SECTION_2_MS.values(),
    ]
    assert missing(numbers, bc_ami_text) == []
    assert "10,48,576" in shared_path("seeds", "bc-ami.txt").read_text(encoding="utf-8")


def test_kms(kms_text: str) -> None:
    pairs = [
        *kms.TABLE_10_US.values(),
        *kms.TABLE_11_US.values(),
        *kms.TABLE_12_MS,
    ]
    spans = [f"{low:g}–{high:g}" for low, high in pairs]
    numbers = [*kms.TABLE_8_KB.values(), *kms.TABLE_8_TEXT_KB.values(), *kms.TABLE_13_MS, kms.PACKAGE_UNITS]
    assert missing([*spans, *numbers, *kms.LINK_MBPS], kms_text) == []
    for row in kms.TABLE_12_MS:
        assert kms_text.count("–".join(f"{value:g}" for value in row)) == 3, "the same for each number of projects"
    for low, high in kms.CONCLUSION_US.values():
        assert f"{low:g} to {high:g} microseconds" in kms_text
    for words in ("2n + 2m + 2", "n + m + 1", "4 + m, 4 + 2m", "2, 2 + m"):
        assert words in kms_text, "Table 7"


def test_a_number_that_is_not_in_the_text_is_found() -> None:
    assert missing([1.4, 55.98], "1.41 and 155.98") == ["1.4", "55.98"]
