"""A scenario: a load, faults that always end, and what must hold. Readable TOML, checked whole before anything starts.

    [[fault]]
    at_s  = 8              seconds after the load began
    for_s = 6              every fault ends
    kind  = "mute"         a behaviour (bcami fault list), or kill, pause, partition
    on    = "primary"      a node's name, primary, backup, all, "any 2" (drawn by the seed), or a list of these
    …                      any other key is an option of the kind

`kill` ends the process (kill -9) and starts it again when its time is over; `pause` stops and continues it (SIGSTOP);
`partition` cuts every link between its `groups`.
"""

import re
import tomllib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from random import Random
from typing import Annotated, Any, Final, Self

from pydantic import Field, model_validator

from bcami.errors import InputError
from bcami.faults.catalogue import BEHAVIOURS, make_behaviour
from bcami.model.quorum import Quorum
from bcami.toml_file import Record, line_of, load_record, nearest, read_text

KILL: Final = "kill"
PAUSE: Final = "pause"
PARTITION: Final = "partition"
PROCESS_KINDS: Final[Mapping[str, str]] = {
    KILL: 'kill -9; started again when the time is over. on = "all" is a site that loses power',
    PAUSE: "SIGSTOP; continued when the time is over",
    PARTITION: "cuts every link between the groups of nodes in `groups`",
}
NODE_OPTIONS: Final = ("peers", "collector")
"""Options that name nodes."""
_WORD: Final = re.compile(r"primary|backup|all|any [1-9]\d*|[a-z][a-z0-9_-]*")

_Seconds = Annotated[float, Field(ge=0, le=3_600)]
_Length = Annotated[float, Field(gt=0, le=3_600)]
_Percent = Annotated[float, Field(ge=0, le=1_000)]


class LoadPlan(Record):
    """Meters that report, at a steady rate: the schedule never waits for an answer."""

    meters: Annotated[int, Field(ge=1, le=10_000)] = 40
    rate_per_s: Annotated[float, Field(gt=0, le=100_000)]
    for_s: _Length
    join_meters: Annotated[int, Field(ge=0, le=10_000)] = 0
    """So many more meters get their keys and sessions while the load runs …"""
    join_at_s: _Seconds = 0.0
    """… from this moment on."""


class PlannedFault(Record):
    """One fault of the timeline."""

    at_s: _Seconds
    for_s: _Length
    kind: str
    on: Annotated[tuple[str, ...], Field(strict=False)] = ()
    groups: Annotated[tuple[Annotated[tuple[str, ...], Field(strict=False)], ...], Field(strict=False)] = ()
    options: dict[str, Any] = Field(default_factory=dict)

    @model_validator(mode="before")
    @classmethod
    def _gather_options(cls, data: Any) -> Any:
        """Let `on` be one word, and take every key that is not ours for an option of the kind."""
        if not isinstance(data, dict):
            return data
        own = {key: value for key, value in data.items() if key in cls.model_fields}
        if isinstance(own.get("on"), str):
            own["on"] = [own["on"]]
        return {**own, "options": {key: value for key, value in data.items() if key not in own}}

    @property
    def end_s(self) -> float:
        return self.at_s + self.for_s

    @property
    def is_byzantine(self) -> bool:
        """True when the node itself lies; dead, slow or cut-off nodes are honest."""
        return self.kind in BEHAVIOURS and BEHAVIOURS[self.kind].is_byzantine


class Expectations(Record):
    """What must hold beside what always must: no fork, ledgers that verify, nothing acknowledged lost, readings that
    reconcile, no honest node halted or accused.
    """

    pause_s_max: _Seconds | None = None
    """Longest time without a commit, from the first fault to the end of the load."""
    resume_s_max: _Seconds | None = None
    """From the end of the last fault to the next commit."""
    in_step_s_max: _Seconds | None = None
    """From a restarted node's first answer to its being level with the others."""
    during_percent_min: _Percent | None = None
    """Throughput from the first fault to the end of the last, in per cent of before."""
    after_percent_min: _Percent | None = None
    """Throughput from a second after the last fault to the end of the load, in per cent of before."""
    view_changed_s_max: _Seconds | None = None
    """From the first fault until a strong quorum is in a higher view."""
    view_changes_min: Annotated[int, Field(ge=0)] | None = None
    view_changes_max: Annotated[int, Field(ge=0)] | None = None
    evidence: Annotated[tuple[str, ...], Field(strict=False)] = ()
    """Nodes against which evidence must be held; `faulty` stands for every node that was told to lie."""


class Scenario(Record):
    """One file of network/scenarios/."""

    title: str
    claim: str
    nodes: Annotated[int, Field(ge=1, le=31)] = 4
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 1
    load: LoadPlan
    fault: Annotated[tuple[PlannedFault, ...], Field(strict=False, min_length=1)]
    expect: Expectations = Expectations()

    @model_validator(mode="after")
    def _ends_in_time(self) -> Self:
        late = [item for item in self.fault if item.end_s > self.load.for_s]
        if late:
            raise ValueError(
                f"fault {late[0].kind!r} ends at {late[0].end_s:g} s, after the load ({self.load.for_s:g} s): "
                "nobody would see whether the network recovers"
            )
        return self

    @property
    def first_fault_s(self) -> float:
        return min(item.at_s for item in self.fault)

    @property
    def last_end_s(self) -> float:
        return max(item.end_s for item in self.fault)

    @property
    def quorum(self) -> Quorum:
        return Quorum(self.nodes)

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(f"node{i + 1}" for i in range(self.nodes))


def load_scenario(path: Path, nodes: int | None = None) -> Scenario:
    """Return a scenario, for another number of nodes when one is given. Raises InputError (file, line, key)."""
    scenario = load_record(path, Scenario)
    if nodes is not None:
        scenario = scenario.model_copy(update={"nodes": nodes})
    text = read_text(path)
    for place, fault in enumerate(scenario.fault):
        _check_fault(path, text, place, fault, scenario)
    for word in scenario.expect.evidence:
        if word != "faulty":
            _check_name(f"{path}:{line_of(text, ('expect', 'evidence'))}", word, scenario)
    return scenario


def _check_fault(path: Path, text: str, place: int, fault: PlannedFault, scenario: Scenario) -> None:
    def where(key: str) -> str:
        return f"{path}:{line_of(text, ('fault', place, key))}"

    if fault.kind not in BEHAVIOURS and fault.kind not in PROCESS_KINDS:
        hint = nearest(fault.kind, [*BEHAVIOURS, *PROCESS_KINDS])
        raise InputError(f"nothing is called {fault.kind!r}", where=where("kind"), do=hint or "bcami fault list")
    for word in fault.on:
        if not _WORD.fullmatch(word):
            raise InputError(f"{word!r} names no node", where=where("on"), do='a name, primary, backup, all, "any 2"')
        if not re.fullmatch(r"primary|backup|all|any \d+", word):
            _check_name(where("on"), word, scenario)
    if fault.kind == PARTITION:
        _check_groups(where("groups"), fault, scenario)
    elif not fault.on:
        raise InputError("key 'on' is missing", where=where("kind"), do='say on = "primary", or a node\'s name')
    _check_options(where, fault, scenario)


def _check_groups(where: str, fault: PlannedFault, scenario: Scenario) -> None:
    listed = [name for group in fault.groups for name in group]
    for name in listed:
        _check_name(where, name, scenario)
    if len(fault.groups) < 2 or len(set(listed)) != len(listed):
        raise InputError("a partition has at least two groups, and no node in two of them", where=where)


def _check_options(where: Any, fault: PlannedFault, scenario: Scenario) -> None:
    if fault.kind in PROCESS_KINDS:
        for key in fault.options:
            raise InputError(f"unknown key {key!r}", where=where(key), do=nearest(key, PlannedFault.model_fields))
        return
    for key in NODE_OPTIONS:
        value = fault.options.get(key, ())
        for name in [value] if isinstance(value, str) else value:
            if isinstance(name, str):
                _check_name(where(key), name, scenario)
    meter = fault.options.get("meter")
    if isinstance(meter, int) and not 0 <= meter < scenario.load.meters:
        raise InputError(f"the load has the meters 0 to {scenario.load.meters - 1}", where=where("meter"))
    try:
        make_behaviour(fault.kind, resolve_options(fault.options, scenario.names, _no_hid), 0)
    except InputError as error:
        guilty = next((key for key in fault.options if f"{key!r}" in str(error) or f"$.{key}" in str(error)), "kind")
        raise InputError(error.what, where=where(guilty), do=error.do) from None


def _check_name(where: str, name: str, scenario: Scenario) -> None:
    if name not in scenario.names:
        hint = nearest(name, scenario.names) or f"nodes: {scenario.names[0]} to {scenario.names[-1]}"
        raise InputError(f"no node is called {name!r}", where=where, do=hint)


def resolve_options(options: Mapping[str, Any], names: Sequence[str], hid_of: Callable[[Any], bytes]) -> dict[str, Any]:
    """Return the options as a behaviour takes them: replica ids for nodes, the HID in hex for a `meter`.

    A meter is an id, or its number among those of the load, from 0. Raises InputError for a node that there is not.
    """

    def replica(name: Any) -> Any:
        if not isinstance(name, str):
            return name
        if name not in names:
            raise InputError(f"no node is called {name!r}", do=nearest(name, names) or f"nodes: {', '.join(names)}")
        return names.index(name)

    found = dict(options)
    for key in NODE_OPTIONS:
        value = found.get(key)
        if value is not None:
            found[key] = [replica(item) for item in value] if isinstance(value, list | tuple) else replica(value)
    if "meter" in found:
        found["signer"] = hid_of(found.pop("meter")).hex()
    return found


def draw_nodes(words: Sequence[str], names: Sequence[str], primary: str, randomness: Random) -> list[str]:
    """Return the nodes that the words of `on` mean now, in the order of the nodes."""
    chosen: set[str] = set()
    for word in words:
        backups = [name for name in names if name != primary]
        if word == "primary":
            chosen.add(primary)
        elif word == "backup":
            chosen.add(randomness.choice(backups))
        elif word == "all":
            chosen.update(names)
        elif word.startswith("any "):
            chosen.update(randomness.sample(list(names), min(len(names), int(word.removeprefix("any ")))))
        else:
            chosen.add(word)
    return [name for name in names if name in chosen]


def _no_hid(_meter: str | int) -> bytes:
    return bytes(32)


def title_of(path: Path) -> str:
    """Return a scenario file's title, for a list."""
    return str(tomllib.loads(read_text(path)).get("title", ""))
