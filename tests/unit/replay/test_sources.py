"""What is read under a path, what is ignored and why, and the message for each kind of unreadable input."""

import gzip
import zipfile
from pathlib import Path

import pytest

from bcami.errors import InputError
from bcami.replay.layouts import Layout, parse_layout
from bcami.replay.sources import discover
from bcami.replay.survey import survey
from tests.unit.replay.files import HALFHOURLY, HHBLOCK, UKPN, halfhour, readings_of, stream_of, write

ROW = halfhour("MAC000002", "2013-01-01 00:00:00", "0.1")


def refusal(path: Path, layout: Layout | None = None) -> str:
    with pytest.raises(InputError) as caught:
        discover(path, layout)
    assert caught.value.exit_code == 2
    assert caught.value.do
    return str(caught.value)


def test_a_folder_is_read_in_one_layout_in_natural_order(tmp_path: Path) -> None:
    for name in ("block_10.csv", "block_2.csv", "deeper/block_1.csv.gz"):
        write(tmp_path / name, HALFHOURLY, ROW)
    write(tmp_path / "hhblock" / "block_0.csv", HHBLOCK)
    write(tmp_path / "ukpn.csv", UKPN)
    write(tmp_path / "daily.csv", "LCLid,day,energy_median,energy_mean,energy_max,energy_count,energy_std,energy_sum")
    write(tmp_path / "README.md", "# about")
    write(tmp_path / "empty.csv")
    write(tmp_path / ".hidden.csv", HALFHOURLY, ROW)
    (tmp_path / "picture.csv").write_bytes(b"\x89PNG\0\0")
    with zipfile.ZipFile(tmp_path / "sheet.xlsx", "w") as archive:
        archive.writestr("a.xml", "<a/>")
    source = discover(tmp_path)
    assert source.layout is Layout.HALFHOURLY
    assert [file.name for file in source.files] == ["block_2.csv", "block_10.csv", "deeper/block_1.csv.gz"]
    assert {item.name: item.why for item in source.ignored} == {
        "hhblock/block_0.csv": "hhblock layout, while halfhourly is read (--layout hhblock reads it)",
        "ukpn.csv": "ukpn layout, while halfhourly is read (--layout ukpn reads it)",
        "daily.csv": "daily totals, no half-hourly readings",
        "README.md": "no known header (it starts with: # about)",
        "empty.csv": "the file is empty",
        ".hidden.csv": "a hidden file",
        "picture.csv": "a binary file, no CSV text",
        "sheet.xlsx": "an archive without CSV files",
    }
    assert [file.name for file in discover(tmp_path, Layout.HHBLOCK).files] == ["hhblock/block_0.csv"]
    assert [file.name for file in discover(tmp_path, Layout.UKPN).files] == ["ukpn.csv"]


def test_every_member_of_an_archive_is_a_file(tmp_path: Path) -> None:
    path = tmp_path / "set.zip"
    with zipfile.ZipFile(path, "w") as archive:
        for name in ("d/block_10.csv", "d/block_9.csv", "__MACOSX/._block_9.csv", "d/notes.pdf"):
            archive.writestr(name, f"{HALFHOURLY}\n{ROW.replace('MAC', name[-6:-4])}\n")
    source = discover(path)
    assert [file.name for file in source.files] == ["set.zip/d/block_9.csv", "set.zip/d/block_10.csv"]
    assert {item.why for item in source.ignored} == {"a hidden file", "no CSV file"}
    assert len(readings_of(stream_of(source))) == 2


def test_there_is_nothing(tmp_path: Path) -> None:
    assert "there is nothing at" in refusal(tmp_path / "no")
    assert "no file with half-hourly readings" in refusal(tmp_path)
    write(tmp_path / "README.md", "# about")
    assert "README.md: no known header" in refusal(tmp_path)


@pytest.mark.parametrize(
    ("header", "said"),
    [
        ("LCLid,tstp", "missing column energy(kWh/hh) of the halfhourly layout (found: LCLid, tstp)"),
        ("LCLid,tstp,energy", "missing column energy(kWh/hh)"),
        ("LCLid,time,energy(kWh/hh)", "missing column tstp"),
        ("id,tstp,energy(kWh/hh)", "missing column LCLid"),
        ("LCLid,stdorToU,DateTime,Acorn,Acorn_grouped", "missing column KWH/hh (per half hour)"),
        (HHBLOCK.removesuffix(",hh_47"), "missing column hh_47 of the hhblock layout"),
        ("LCLid;tstp;energy(kWh/hh)", "wrong delimiter: the columns are separated by semicolons"),
        ("LCLid\ttstp\tenergy(kWh/hh)", "wrong delimiter: the columns are separated by tabs"),
        ("a,b,c", "no known header (it starts with: a, b, c)"),
        ("LCLid,day,energy_median,energy_sum", "daily totals"),
    ],
)
def test_a_header_that_does_not_fit_names_what_is_wrong(tmp_path: Path, header: str, said: str) -> None:
    path = write(tmp_path / "a.csv", header, ROW)
    assert said in refusal(path)
    assert "a.csv, line 1" in refusal(path)
    if "missing" in said or "delimiter" in said:
        assert said in refusal(tmp_path)


def test_a_near_name_is_suggested(tmp_path: Path) -> None:
    assert "rename the column 'energy(kwh/h)' to 'energy(kWh/hh)'" in refusal(
        write(tmp_path / "a.csv", "LCLid,tstp,energy(kWh/h)")
    )


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"", "the file is empty"),
        (b"\n\n", "the file is empty"),
        (f"{HALFHOURLY}\n{ROW}\n".encode("utf-16"), "wrong encoding: UTF-16"),
        (f"{HALFHOURLY}\n".encode("utf-16-le"), "wrong encoding: UTF-16"),
        (b"LCLid,tstp,energ\xefa(kWh/hh)\n", "wrong encoding: byte 0xef in the header is no UTF-8"),
        (b"SQLite format 3\0", "a binary file"),
        (f"{HALFHOURLY}\r{ROW}\r".encode(), "its lines end with CR alone"),
    ],
)
def test_bytes_that_are_no_csv_are_named(tmp_path: Path, data: bytes, said: str) -> None:
    path = tmp_path / "a.csv"
    path.write_bytes(data)
    assert said in refusal(path)
    packed = tmp_path / "a.csv.gz"
    packed.write_bytes(gzip.compress(data))
    assert said in refusal(packed)


def test_a_byte_order_mark_is_no_part_of_a_name(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_bytes(f"\ufeff{HALFHOURLY}\n{ROW}\n".encode())
    assert len(readings_of(stream_of(path))) == 1


def test_a_truncated_gzip_names_the_last_whole_line(tmp_path: Path) -> None:
    rows = [halfhour(f"MAC{n:06d}", "2013-01-01 00:00:00", f"0.{n * 7919 % 997:03d}") for n in range(20_000)]
    whole = gzip.compress("".join(row + "\n" for row in (HALFHOURLY, *rows)).encode())
    path = tmp_path / "a.csv.gz"
    for keep in (12, len(whole) // 2, len(whole) - 4):
        path.write_bytes(whole[:keep])
        with pytest.raises(InputError, match="breaks off") as caught:
            survey(discover(path))
        assert "a.csv.gz, line " in str(caught.value)
    assert "after line 20,001" in str(caught.value)
    path.write_bytes(whole[: len(whole) // 2] + b"\xff" * 50 + whole[len(whole) // 2 + 50 :])
    with pytest.raises(InputError, match="is damaged"):
        survey(discover(path))


def test_a_damaged_zip_is_named(tmp_path: Path) -> None:
    path = write(tmp_path / "a.zip", HALFHOURLY, *[ROW] * 5000)
    whole = path.read_bytes()
    path.write_bytes(whole[:100])
    assert "is damaged" in refusal(path)
    altered = bytearray(whole)
    altered[90:110] = bytes(20)
    path.write_bytes(altered)
    with pytest.raises(InputError, match="is damaged"):
        survey(discover(path))
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a.xml", "<a/>")
    assert "holds no CSV file" in refusal(path)


def test_an_unreadable_file_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path / "a.csv", HALFHOURLY, ROW)

    def denied(self: Path, *_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied", str(self))

    monkeypatch.setattr(Path, "open", denied)
    said = refusal(path)
    assert "Permission denied" in said
    assert "a.csv" in said


def test_a_line_without_end_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_bytes(f"{HALFHOURLY}\n{ROW}\n".encode() + b"x" * 9_000_000)
    with pytest.raises(InputError, match="longer than") as caught:
        survey(discover(path))
    assert "a.csv, line 3" in str(caught.value)


def test_layout_names() -> None:
    assert parse_layout("half-hourly") is Layout.HALFHOURLY
    assert parse_layout("UKPN") is Layout.UKPN
    with pytest.raises(InputError, match="nearest: hhblock"):
        parse_layout("hblocks")
