"""What is read many rows at a time equals the definition, row by row; energy is that of `energy_from_text`."""

from datetime import UTC, datetime

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from bcami.replay.fields import FIELD_PADDING, energy_units
from bcami.replay.layouts import Columns, recognise
from bcami.replay.lines import Block, _split
from bcami.replay.meters import MeterIndex
from bcami.replay.rows import RowReject, read_block, read_row
from bcami.replay.seen import CONFLICT, DUPLICATE, NEW, SeenReadings
from bcami.units import energy_from_text

HALFHOURLY = recognise("LCLid,tstp,energy(kWh/hh)")
ACORN = recognise("LCLid,stdorToU,DateTime,KWH/hh (per half hour) ,Acorn")
SHORT = recognise("LCLid,day," + ",".join(f"hh_{slot}" for slot in range(48)))

number = st.one_of(
    st.from_regex(r" ?[+-]?[0-9]{1,10}(\.[0-9]{1,9})? {0,3}", fullmatch=True),
    st.text(alphabet="0123456789.+- ", max_size=12),
    st.sampled_from(["Null", " ", "", "nan", "1e3", "0x1", "٣", "1_0", " 0 ", "1.1799999", "0.50000000"]),
)
time = st.one_of(
    st.datetimes(datetime(1970, 1, 1), datetime(2099, 12, 31)).map(
        lambda moment: f"{moment:%Y-%m-%d} {moment.hour:02d}:{moment.minute // 30 * 30:02d}:00.0000000"
    ),
    st.datetimes(datetime(1965, 1, 1), datetime(2105, 12, 31)).map(lambda moment: f"{moment:%Y-%m-%d %H:%M:%S}"),
    st.datetimes(datetime(1965, 1, 1), datetime(2105, 12, 31)).map(lambda moment: f"{moment:%d/%m/%Y %H:%M:%S}"),
    st.from_regex(r"(19|20)[0-9]{2}-[0-3][0-9]-[0-3][0-9] [0-2][0-9]:[0-6]0:[0-6]0(\.0{6}[01])?", fullmatch=True),
    st.text(alphabet="0123456789-/: .T", max_size=28),
)
meter = st.one_of(st.sampled_from(["MAC000002", "MAC000003", " M", "", "x" * 33, "x" * 70, "é"]), st.text(max_size=5))
plain = st.tuples(meter, time, number).map(",".join)
line = st.one_of(plain, plain.map(lambda row: row + ","), plain.map(lambda row: f'"{row}'), st.text(max_size=40)).map(
    lambda row: row.replace("\n", "").replace("\r", "")
)


def block_of(lines: list[str]) -> Block:
    return _split("".join(row + "\n" for row in lines).encode(), 2, 0)


def check(lines: list[str], columns: object) -> None:
    assert isinstance(columns, Columns)
    block = block_of(lines)
    quick_meters, slow_meters = MeterIndex(), MeterIndex()
    quick = read_block(block, columns, quick_meters)
    readings, rejects = [], []
    for row in range(len(block.starts)):
        if not block.text(row).strip():
            continue
        result = read_row(block.text(row), columns, slow_meters)
        if isinstance(result, RowReject):
            known = "" if result.meter < 0 else slow_meters.ids[result.meter]
            rejects.append((row, result.reason, known, result.start_s, ""))
            continue
        for slot, cell in enumerate(result[1]):
            name = slow_meters.ids[result[0]]
            if cell.reason is None:
                readings.append((row, name, cell.start_s, cell.energy))
            else:
                column = f"hh_{slot}" if len(columns.values) > 1 else ""
                rejects.append((row, cell.reason, name, cell.start_s, column))
    found = zip(quick.row.tolist(), quick.meter.tolist(), quick.start_s.tolist(), quick.energy.tolist(), strict=True)
    assert [(row, quick_meters.ids[one], start_s, energy) for row, one, start_s, energy in found] == readings
    assert [
        (one.row, one.reason, "" if one.meter < 0 else quick_meters.ids[one.meter], one.start_s, one.column)
        for one in quick.rejects
    ] == rejects


@given(st.lists(line, min_size=1, max_size=8))
@settings(max_examples=400)
def test_half_hourly_rows(lines: list[str]) -> None:
    check(lines, HALFHOURLY)


@given(st.lists(st.tuples(meter, st.just("Std"), time, number, st.just("A")).map(",".join), min_size=1, max_size=6))
@settings(max_examples=150)
def test_ukpn_rows(lines: list[str]) -> None:
    check([row.replace("\n", "").replace("\r", "") for row in lines], ACORN)


@given(
    st.lists(
        st.tuples(
            st.sampled_from(["M1", "M2"]),
            st.sampled_from(["2013-01-01", "2012-02-29", "2013-02-29", "2013-01-01 00:00:00", "01/02/2013", "x"]),
            st.lists(number, min_size=1, max_size=4),
        ).map(lambda row: f"{row[0]},{row[1]},{','.join((row[2] * 48)[:48])}"),
        min_size=1,
        max_size=3,
    )
)
@settings(max_examples=100)
def test_wide_rows(lines: list[str]) -> None:
    check(lines, SHORT)


@given(st.lists(number, min_size=1, max_size=20))
@settings(max_examples=400)
def test_energy_equals_the_definition_wherever_it_is_read_quickly(texts: list[str]) -> None:
    data = [text.encode() for text in texts]
    ends = np.cumsum([len(text) + 1 for text in data]) - 1
    starts = ends - [len(text) for text in data]
    buffer = np.frombuffer(b",".join(data) + b"," + bytes(FIELD_PADDING), dtype=np.uint8)
    units, good = energy_units(buffer, starts, ends)
    for text, value, read in zip(texts, units.tolist(), good.tolist(), strict=True):
        if read:
            assert value == energy_from_text(text)


@given(
    st.lists(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 12), st.integers(-2, 2)), max_size=12), max_size=6)
)
@settings(max_examples=200)
def test_first_value_stays(chunks: list[list[tuple[int, int, int]]]) -> None:
    seen, model = SeenReadings(), {}
    start = int(datetime(2013, 1, 1, tzinfo=UTC).timestamp())
    # Slots lie around the end of a page of 4,096 half-hours.
    edge = (start // 1800 // 4096 + 1) * 4096 - 6
    for chunk in chunks:
        meter = np.array([one for one, _, _ in chunk], dtype=np.int32)
        start_s = np.array([(edge + slot) * 1800 for _, slot, _ in chunk], dtype=np.int64)
        energy = np.array([value for _, _, value in chunk], dtype=np.int64)
        expected = []
        for one, slot, value in chunk:
            first = model.setdefault((one, slot), None)
            expected.append(NEW if first is None else DUPLICATE if first == value else CONFLICT)
            if first is None:
                model[one, slot] = value
        assert seen.add(meter, start_s, energy).tolist() == expected
    seen.close()
