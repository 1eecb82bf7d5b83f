"""Makes the bundled sample: synthetic readings in the exact layout, and with the quirks, of the Kaggle set.

    python datasets/make_sample.py [FOLDER]        (default: datasets/sample)

The same bytes come out on every machine: fixed seed, integers only. Nothing in it is of a real household; ids begin
with MAC9, which the real set does not have. What is imitated, with the real counts in datasets/README.md:

* `tstp` with seven zeros behind the seconds; one blank before and behind every value; LF line ends; sorted by id, time;
* about one `Null` row per household around 18-19 December 2012, with a time off the half-hour grid, and no blanks;
* values as the source's floats print: 0.13 and not 0.130, 0 for zero, and some of seven decimals (1.1799999);
* missing half-hours, singly and in stretches, and households that begin late or end early;
* no duplicates: Kaggle's files have none (the UK Power Networks originals do).
"""

import random
import sys
from collections.abc import Iterator
from datetime import datetime, timedelta
from pathlib import Path

SEED = 20121218
HOUSEHOLDS = 36
FIRST = datetime(2012, 12, 18)  # noqa: DTZ001 - the source's times carry no zone
HALF_HOURS = 96
HALF_HOUR = timedelta(minutes=30)

DAY_SHAPE = (62, 52, 46, 43, 42, 46, 63, 95, 104, 92, 87, 88, 95, 93, 88, 92, 112, 152, 178, 180, 170, 154, 124, 90)
"""Percent of the daily mean for each hour of a winter day."""
ACORN = (("ACORN-A", "Affluent"), ("ACORN-E", "Affluent"), ("ACORN-H", "Comfortable"), ("ACORN-Q", "Adversity"))


def readings(rng: random.Random) -> Iterator[tuple[datetime, str]]:
    """Yield the times and value texts of one household."""
    mean_wh = rng.randrange(90, 520)
    begins = rng.randrange(1, 24) if rng.randrange(12) == 0 else 0
    ends = HALF_HOURS - (rng.randrange(1, 24) if rng.randrange(12) == 0 else 0)
    gap_at, gap_length = (rng.randrange(HALF_HOURS), rng.choice((1, 1, 1, 2, 6))) if rng.randrange(3) == 0 else (0, 0)
    away = rng.randrange(18) == 0
    null_after = rng.randrange(12, 84) if rng.randrange(8) else -1
    for slot in range(begins, ends):
        time = FIRST + slot * HALF_HOUR
        if not gap_at <= slot < gap_at + gap_length:
            yield time, f" {value_text(rng, 0 if away and slot > 30 else load_wh(rng, mean_wh, slot))} "
        if slot == null_after:
            yield time + timedelta(seconds=rng.randrange(61, 1739)), "Null"


def load_wh(rng: random.Random, mean_wh: int, slot: int) -> int:
    """Return watt-hours in one half-hour: the shape of the day, noise, and now and then a kettle or an oven."""
    base = mean_wh * DAY_SHAPE[slot // 2 % 24] * rng.randrange(60, 141) // 10_000
    return base + (rng.randrange(200, 1500) if rng.randrange(25) == 0 else 0)


def value_text(rng: random.Random, watt_hours: int) -> str:
    """Return kWh as the source prints it; one in a hundred larger values shows the float that it once was."""
    if watt_hours >= 1000 and rng.randrange(4) == 0:
        units = watt_hours * 10_000 - 1
        return f"{units // 10_000_000}.{units % 10_000_000:07d}"
    text = f"{watt_hours // 1000}.{watt_hours % 1000:03d}".rstrip("0").rstrip(".")
    return text or "0"


def make_sample(folder: Path) -> None:
    """Write halfhourly_dataset/block_0.csv and informations_households.csv under the folder."""
    rng = random.Random(SEED)
    rows = ["LCLid,tstp,energy(kWh/hh)"]
    households = ["LCLid,stdorToU,Acorn,Acorn_grouped,file"]
    numbers = sorted(rng.sample(range(900_000, 999_999), HOUSEHOLDS))
    for number in numbers:
        meter = f"MAC{number:06d}"
        rows += [f"{meter},{time:%Y-%m-%d %H:%M:%S}.0000000,{value}" for time, value in readings(rng)]
        acorn, group = rng.choice(ACORN)
        households.append(f"{meter},{'ToU' if rng.randrange(5) == 0 else 'Std'},{acorn},{group},block_0")
    block = folder / "halfhourly_dataset" / "block_0.csv"
    block.parent.mkdir(parents=True, exist_ok=True)
    block.write_bytes(("\n".join(rows) + "\n").encode())
    # The real table ends its lines with CRLF.
    (folder / "informations_households.csv").write_bytes(("\r\n".join(households) + "\r\n").encode())


if __name__ == "__main__":
    make_sample(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent / "sample")
