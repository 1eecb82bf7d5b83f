"""The real London files: rows, households, rejects and energy as counted by others (the data's own README)."""

import gzip
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest

from bcami.replay.layouts import Layout
from bcami.replay.options import Filters, parse_moment
from bcami.replay.sources import discover
from bcami.replay.survey import survey
from tests.shared import shared_path
from tests.unit.replay.files import readings_of, stream_of, totals

HALF = ("data", "london", "halfhourly_dataset")
BLOCK_900 = {"layout": "halfhourly", "meters": 50, "readings": 839_398, "energy": 2_017_300_599_958, "rejects": {}}
BLOCK_901 = {"layout": "halfhourly", "meters": 50, "readings": 835_320, "energy": 1_699_388_739_944, "rejects": {}}
BLOCK_902 = {"layout": "halfhourly", "meters": 19, "readings": 12_766, "energy": 33_127_509_998, "rejects": {}}
HHBLOCK_900 = {"layout": "hhblock", "meters": 10, "readings": 3_576 * 48, "energy": 405_970_510_003, "rejects": {}}
NATIVE = {
    "layout": "ukpn",
    "meters": 1,
    "readings": 24_140,
    "energy": 60_956_720_007,
    "rejects": {"duplicate": 17, "null": 1},
}
SAMPLE = {
    "layout": "ukpn",
    "meters": 1,
    "readings": 17_445,
    "energy": 36_457_140_001,
    "rejects": {"duplicate": 12, "null": 1},
}
KWH = {  # what the README says, to four decimals
    "block_900": (BLOCK_900, "201730.0600"),
    "block_901": (BLOCK_901, "169938.8740"),
    "block_902": (BLOCK_902, "3312.7510"),
    "hhblock": (HHBLOCK_900, "40597.0510"),
    "native": (NATIVE, "6095.6720"),
    "sample": (SAMPLE, "3645.7140"),
}


@pytest.mark.parametrize(
    ("parts", "wanted"),
    [
        ((*HALF, "block_900.csv.gz"), BLOCK_900),
        ((*HALF, "block_901.csv.gz"), BLOCK_901),
        (("data", "london", "small"), BLOCK_902),
        (("data", "london", "hhblock_dataset", "block_900.csv.gz"), HHBLOCK_900),
        (("data", "london", "ukpn_original", "MAC000002_native.csv.gz"), NATIVE),
        (("data", "london", "ukpn_original", "UKPN-LCL-smartmeter-sample.csv.gz"), SAMPLE),
    ],
)
def test_counts_are_those_of_the_data(parts: tuple[str, ...], wanted: dict[str, Any]) -> None:
    assert totals(shared_path(*parts)) == wanted


@pytest.mark.parametrize("name", KWH)
def test_energy_rounds_to_what_others_computed(name: str) -> None:
    counted, said = KWH[name]
    assert f"{counted['energy'] / 10**7:.4f}" == said


def test_a_folder_is_the_sum_of_its_files() -> None:
    both = totals(shared_path(*HALF))
    assert both == {
        "layout": "halfhourly",
        "meters": 100,
        "readings": BLOCK_900["readings"] + BLOCK_901["readings"],
        "energy": BLOCK_900["energy"] + BLOCK_901["energy"],
        "rejects": {},
    }
    # block_902 is a part of block_900: every row of it is a duplicate.
    assert totals(shared_path("data", "london")) == {**both, "rejects": {"duplicate": 12_766}}


def test_what_is_no_reading_is_ignored_by_name() -> None:
    source = discover(shared_path("data", "london"))
    why = {item.name: item.why for item in source.ignored}
    assert why["daily_dataset/block_0.csv.gz"] == "daily totals, no half-hourly readings"
    assert why["tariffs/Tariffs.xlsx"] == "an archive without CSV files"
    assert why["weather_hourly_darksky.csv.gz"] == "weather, no readings"
    assert why["hhblock_dataset/block_900.csv.gz"].startswith("hhblock layout")
    hhblock = discover(source.path, Layout.HHBLOCK)
    assert [file.name for file in hhblock.files] == ["hhblock_dataset/block_900.csv.gz"]


def test_plain_gz_and_zip_are_the_same(tmp_path: Path) -> None:
    plain = shared_path("data", "london", "small", "halfhourly_dataset", "block_902.csv")
    data = plain.read_bytes()
    (tmp_path / "a.csv.gz").write_bytes(gzip.compress(data[:200_000]) + gzip.compress(data[200_000:]))
    with zipfile.ZipFile(tmp_path / "b.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("halfhourly_dataset/block_902.csv", data)
    for path in (plain, tmp_path / "a.csv.gz", tmp_path / "b.zip"):
        assert totals(path) == BLOCK_902


def test_first_meters_and_days() -> None:
    path = shared_path("data", "london", "small")
    found = survey(discover(path))
    assert len(found.meters) == 19
    from_s, to_s = parse_moment("2013-02-03", ""), parse_moment("2013-02-04", "")
    stream = stream_of(path, Filters(3, from_s, to_s))
    readings = readings_of(stream)
    assert {meter for meter, _, _ in readings} == set(found.meters[:3])
    assert {start_s for _, start_s, _ in readings} == set(range(from_s, to_s, 1800))


CHILD = """
import sys
from pathlib import Path
from bcami.replay.options import Filters
from bcami.replay.plan import reports_in_file_order, reports_in_time_order
from bcami.replay.readings import ReadingStream
from bcami.replay.rejects import RejectLog
from bcami.replay.sources import discover
from bcami.replay.survey import survey
source = discover(Path(sys.argv[1]))
survey(source)
stream = ReadingStream(source, Filters(), RejectLog())
reports = reports_in_file_order(stream, 48) if sys.argv[2] == "file" else reports_in_time_order(stream, 48, stream.meters.ids)
count = sum(1 for _ in reports)
peak = next(line for line in Path('/proc/self/status').read_text().splitlines() if line.startswith('VmHWM'))
print(count, int(peak.split()[1]) // 1024)  # unlike ru_maxrss it does not count what forked us
"""


@pytest.mark.parametrize("order", ["file", "time"])
def test_memory_stays_bounded(order: str, tmp_path: Path) -> None:
    path = shared_path(*HALF, "block_900.csv.gz")
    ran = subprocess.run(
        [sys.executable, "-c", CHILD, str(path), order], capture_output=True, text=True, check=True, timeout=120
    )
    reports, megabytes = (int(word) for word in ran.stdout.split())
    assert reports > 839_398 // 48
    assert megabytes < 250
