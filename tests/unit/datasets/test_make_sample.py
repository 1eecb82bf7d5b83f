"""The committed sample is what its generator makes, in Kaggle's layout and with its quirks."""

import re
import runpy
from pathlib import Path

from bcami.replay.sources import discover
from bcami.replay.survey import survey
from tests.shared import REPOSITORY
from tests.unit.replay.files import totals

SAMPLE = REPOSITORY / "datasets" / "sample"
FILES = ("halfhourly_dataset/block_0.csv", "informations_households.csv")


def test_the_generator_makes_the_same_bytes(tmp_path: Path) -> None:
    runpy.run_path(str(REPOSITORY / "datasets" / "make_sample.py"))["make_sample"](tmp_path)
    for name in FILES:
        assert (tmp_path / name).read_bytes() == (SAMPLE / name).read_bytes(), name


def test_what_it_holds() -> None:
    found = survey(discover(SAMPLE))
    assert (len(found.meters), found.rows) == (36, 3408)
    assert totals(SAMPLE) == {
        "layout": "halfhourly",
        "meters": 36,
        "readings": 3375,
        "energy": 10_934_639_981,
        "rejects": {"null": 33},
    }


def test_every_row_has_the_form_of_the_original() -> None:
    data = (SAMPLE / FILES[0]).read_bytes().decode("ascii")
    header, *rows = data.removesuffix("\n").split("\n")
    assert header == "LCLid,tstp,energy(kWh/hh)"
    form = re.compile(
        r"MAC9\d{5},2012-12-1[89] ([0-2]\d:[03]0:00\.0{7}, (0|[1-9]\d?)(\.\d{0,6}[1-9])? |\d\d:\d\d:\d\d\.0{7},Null)"
    )
    assert all(form.fullmatch(row) for row in rows)
    assert rows == sorted(rows)
    assert any(row.endswith(", 0 ") for row in rows)
    assert any(re.search(r"\.\d{7} $", row) for row in rows)
    off_grid = [row for row in rows if row.endswith("Null") and not re.search(r":[03]0:00\.0", row)]
    assert len(off_grid) == 33
    households = (SAMPLE / FILES[1]).read_bytes()
    assert households.count(b"\r\n") == households.count(b"\n") == 37
