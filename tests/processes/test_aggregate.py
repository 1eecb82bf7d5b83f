"""Private aggregation on a live network: right sums, few messages, and nobody saw a reading."""

import json
from pathlib import Path

from bcami.bundled import find_bundled
from bcami.cli.aggregate import _readings
from bcami.codec import encode
from bcami.replay.options import Filters
from bcami.replay.rejects import RejectLog
from tests.processes.cluster import Cluster

METERS = 24


def the_readings(rounds: int) -> list[int]:
    """Return every reading that is summed and is not too small to be told from chance."""
    filters = Filters(meters=METERS)
    held, intervals, _ = _readings(find_bundled("datasets/sample"), filters, rounds, False, RejectLog())
    values = [meter[start_s] for meter in held.values() for start_s in intervals if start_s in meter]
    return [value for value in values if value >= 2**17]


def forms(value: int) -> list[bytes]:
    """Return how a message would show a reading."""
    widths = [value.to_bytes(size, order) for size in (8, 16) for order in ("big", "little")]
    return [*widths, encode(value), str(value).encode()]


def leaks(messages: list[bytes], values: list[int]) -> list[int]:
    everything = b"|".join(messages)
    return [value for value in values if any(form in everything for form in forms(value))]


def seen(cluster: Cluster) -> list[dict[str, str]]:
    found = []
    for path in sorted(finished(cluster).glob("transcript*.jsonl")):
        lines = [json.loads(line) for line in path.read_text().splitlines()]
        found += [line if "bytes" in line else line | {"bytes": lines[line["same_as"] - 1]["bytes"]} for line in lines]
    return found


def finished(cluster: Cluster) -> Path:
    """Return the folder of the run that was not refused."""
    return next(cluster.home.runs.glob("*/summary.json")).parent


def test_masked(fresh: Cluster) -> None:
    cluster = fresh
    cluster.run("up", "--detach")
    told = cluster.json("aggregate", "sample", "--meters", str(METERS), "--rounds", "2", "--dropouts", "0.05")
    spent = cluster.run("aggregate", "sample", "--meters", str(METERS), "--rounds", "2", expect=2)
    assert "round 1 of street" in spent, "a second run knows what was summed"
    assert "--from 2012-12-18T04:30" in spent
    mixed = cluster.run("aggregate", "sample", "--meters", str(METERS), "--mode", "ring", "--rounds", "2", expect=2)
    assert "--from 2012-12-19T04:30" in mixed, "and that ring and masked sums do not go together"
    cluster.stop()
    assert (told["mode"], told["members"], told["dropped"]) == ("masked", METERS, 1)
    for item in told["rounds"]:
        assert item["reason"] == "valid"
        assert item["is_proven"]
        assert item["energy"] == item["true_energy"]
        assert item["contributors"] == METERS - 2, "one is gone, another has no reading"
    assert told["noes"] == {"meter": {"no_reading": 2}}
    assert len(told["left_out"]) == 4, "each with its reason, in each round"
    assert {(item["reason"], item["is_trial"]) for item in told["left_out"]} == {
        ("no_reading", False),
        ("timed_out", True),
    }
    assert told["messages_per_meter"] <= 3
    values = the_readings(2)
    assert len(values) > METERS
    transcript = seen(cluster)
    assert {line["kind"] for line in transcript} >= {
        "Contribution",
        "Reveal",
        "RoundCall",
        "RevealCall",
        "RosterNotice",
    }
    assert len({line["at"] for line in transcript}) == METERS, "the head-end, and all who are there"
    messages = [bytes.fromhex(line["bytes"]) for line in transcript]
    assert leaks(messages, values) == []
    counted = (finished(cluster) / "metrics.prom").read_text()
    assert 'bcami_aggregation_refused_total{party="meter",reason="no_reading"} 2.0' in counted
    assert 'bcami_aggregation_rounds_total{mode="masked",reason="valid"} 2.0' in counted
    assert leaks([*messages, encode(("here", values[0]))], values), "the search finds one that is there"


def test_ring(tmp_path: Path) -> None:
    cluster = Cluster(tmp_path / "home")
    told = cluster.json("aggregate", "sample", "--meters", "12", "--rounds", "2", "--mode", "ring")
    assert [item["reason"] for item in told["rounds"]] == ["valid", "valid"]
    assert all(item["energy"] == item["true_energy"] for item in told["rounds"])
    assert not any(item["is_proven"] for item in told["rounds"]), "nothing proves what a ring summed"
    transcript = seen(cluster)
    assert {line["kind"] for line in transcript} >= {"KeySum", "Delta", "Ciphertext", "TokenGrant", "FirstKey"}
    assert leaks([bytes.fromhex(line["bytes"]) for line in transcript], the_readings(2)) == []


def test_what_cannot_be(tmp_path: Path) -> None:
    cluster = Cluster(tmp_path / "home")
    assert "there is no mode" in cluster.run("aggregate", "sample", "--mode", "open", expect=2)
    assert "a ring adds no noise" in cluster.run("aggregate", "--mode", "ring", "--epsilon", "1", expect=2)
    assert "no list of group sizes" in cluster.run("aggregate", "--costs", "many", expect=2)


def test_costs_are_measured_without_a_network(tmp_path: Path) -> None:
    cluster = Cluster(tmp_path / "home")
    told = cluster.json("aggregate", "--costs", "10,40")
    small, large = told["groups"]
    assert (small["members"], large["members"]) == (10, 40)
    assert small["masked"]["messages_sent"] == large["masked"]["messages_sent"] == 2
    assert large["masked_dropouts"]["messages_sent"] == 3
    assert large["ring"]["messages_sent"] <= 2.2
    assert large["masked"]["bytes_sent"] > small["masked"]["bytes_sent"]
    assert ((cluster.home.runs / "latest").resolve() / "costs.png").stat().st_size > 10_000
