"""Scenario files: what ships is good, and what is wrong is told with file, line and key."""

from pathlib import Path
from random import Random

import pytest

from bcami.bundled import find_bundled
from bcami.errors import InputError
from bcami.faults.catalogue import BEHAVIOURS
from bcami.faults.scenario import PROCESS_KINDS, draw_nodes, load_scenario, resolve_options, title_of

SHIPPED = sorted((find_bundled("network") / "scenarios").glob("*.toml"))
GOOD = """title = "t"
claim = "c"
seed = 3

[load]
rate_per_s = 10
for_s = 20

[[fault]]
at_s = 5
for_s = 2
kind = "kill"
on = "primary"

[[fault]]
at_s = 8
for_s = 2
kind = "loss"
on = "node2"
share = 0.5
peers = ["node3"]

[expect]
pause_s_max = 2
evidence = ["node1"]
"""


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_a_shipped_scenario_is_good_and_says_what_it_claims(path: Path) -> None:
    scenario = load_scenario(path)
    assert scenario.title
    assert scenario.claim
    assert title_of(path) == scenario.title
    assert scenario.first_fault_s >= 5, "there is a baseline"
    assert scenario.load.for_s - scenario.last_end_s >= 4, "there is time to see the recovery"


def test_every_family_has_a_scenario() -> None:
    shown = {fault.kind for path in SHIPPED for fault in load_scenario(path).fault}
    families = {kind.family for kind in BEHAVIOURS.values()}
    assert {BEHAVIOURS[name].family for name in shown if name in BEHAVIOURS} == families
    assert shown >= set(PROCESS_KINDS)
    assert any(load_scenario(path).nodes == 7 for path in SHIPPED)


def test_a_good_file_is_read(tmp_path: Path) -> None:
    path = tmp_path / "s.toml"
    path.write_text(GOOD)
    scenario = load_scenario(path)
    assert scenario.fault[0].on == ("primary",)
    assert scenario.fault[1].options == {"share": 0.5, "peers": ["node3"]}
    assert not scenario.fault[0].is_byzantine
    assert (scenario.first_fault_s, scenario.last_end_s) == (5, 10)
    assert load_scenario(path, 7).names[-1] == "node7"


@pytest.mark.parametrize(
    ("old", "new", "line", "what", "hint"),
    [
        ('kind = "kill"', 'kind = "kil"', 12, "nothing is called 'kil'", "did you mean 'kill'"),
        ('kind = "loss"', 'kind = "los"', 18, "nothing is called 'los'", "did you mean 'loss'"),
        ("share = 0.5", "shares = 0.5", 20, "unknown option 'shares'", "did you mean 'share'"),
        ("share = 0.5", "share = 1.5", 20, "options of loss", ""),
        ('peers = ["node3"]', 'peers = ["node33"]', 21, "no node is called 'node33'", "did you mean 'node3'"),
        ('on = "primary"', 'on = "primry"', 13, "no node is called 'primry'", ""),
        ('on = "node2"', 'on = "node9"', 19, "no node is called 'node9'", ""),
        ('on = "node2"', "", 18, "key 'on' is missing", ""),
        ("at_s = 8", "at_s = -8", 16, "greater than or equal to 0", ""),
        ('for_s = 2\nkind = "kill"', 'kind = "kill"', 9, "key 'for_s' is missing", ""),
        ('for_s = 2\nkind = "loss"', 'for_s = 0\nkind = "loss"', 17, "greater than 0", ""),
        ("rate_per_s", "rate_per_second", 5, "key 'rate_per_s' is missing", "rename 'rate_per_second'"),
        ("pause_s_max", "pause_max_s", 24, "unknown key 'pause_max_s'", "did you mean 'pause_s_max'"),
        ('evidence = ["node1"]', 'evidence = ["node0"]', 25, "no node is called 'node0'", ""),
        ("for_s = 20", "for_s = 9", 1, "after the load", ""),
        ("seed = 3", "seed = three", 3, "not valid TOML", ""),
        ('title = "t"\n', "", 1, "key 'title' is missing", ""),
        ('on = "primary"', 'on = "primary"\nwhen = 3', 14, "unknown key 'when'", ""),
    ],
)
def test_what_is_wrong_is_told_with_file_line_and_key(
    tmp_path: Path, old: str, new: str, line: int, what: str, hint: str
) -> None:
    path = tmp_path / "s.toml"
    assert old in GOOD
    path.write_text(GOOD.replace(old, new, 1))
    with pytest.raises(InputError) as caught:
        load_scenario(path)
    assert what in caught.value.what
    assert caught.value.where == f"{path}:{line}"
    assert hint in caught.value.do


@pytest.mark.parametrize("groups", ['[["node1"]]', '[["node1"], ["node1", "node2"]]', '[["node1"], ["node8"]]'])
def test_a_partition_needs_two_groups_of_different_nodes(tmp_path: Path, groups: str) -> None:
    path = tmp_path / "s.toml"
    path.write_text(GOOD.replace('kind = "kill"\non = "primary"', f'kind = "partition"\ngroups = {groups}'))
    with pytest.raises(InputError) as caught:
        load_scenario(path)
    assert caught.value.where == f"{path}:13"


def test_a_missing_file_is_told(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such file"):
        load_scenario(tmp_path / "none.toml")


def test_words_for_nodes() -> None:
    names = ("node1", "node2", "node3", "node4")

    def drawn(*words: str) -> list[str]:
        return draw_nodes(words, names, "node2", Random(1))

    assert drawn("primary") == ["node2"]
    assert drawn("all") == list(names)
    assert drawn("node4", "node1") == ["node1", "node4"]
    assert drawn("backup")[0] in {"node1", "node3", "node4"}
    assert len(drawn("any 3")) == 3
    assert drawn("any 2") == drawn("any 2"), "the seed decides"
    assert len(drawn("any 9")) == 4


def test_options_that_name_nodes_and_meters_are_resolved() -> None:
    names = ("node1", "node2")
    assert resolve_options({"peers": ["node2", 0]}, names, bytes) == {"peers": [1, 0]}
    assert resolve_options({"collector": "node2"}, names, bytes) == {"collector": 1}
    assert resolve_options({"meter": 7}, names, lambda meter: bytes([meter])) == {"signer": "07"}
    assert resolve_options({"meter": "M"}, names, lambda meter: meter.encode()) == {"signer": "4d"}
