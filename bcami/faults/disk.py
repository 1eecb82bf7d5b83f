"""A slow disk, as others see it: what rests on a promise leaves late. The node stays honest.

Writes come one after another, each of the same length. What is promised while one runs goes into the next one, as the
driver's group commit has it, and nothing that rests on a promise leaves before its write is over.
"""

from collections.abc import Sequence
from random import Random
from typing import TYPE_CHECKING, Annotated

import msgspec

from bcami.faults.behaviour import Behaviour, Options
from bcami.node.core.effects import Broadcast, Effect, Persist, Send

if TYPE_CHECKING:
    from bcami.faults.node import FaultyNode


class DiskOptions(Options, frozen=True, kw_only=True):
    ms: Annotated[int, msgspec.Meta(ge=1, le=10_000)] = 100
    """Length of one durable write."""


class SlowDisk(Behaviour[DiskOptions]):
    """Every durable write takes a long time; votes wait for it."""

    name = "slow_disk"
    family = "disk"
    claim = "a slow backup slows nobody; a slow primary is no worse than its disk"
    options_type = DiskOptions
    is_byzantine = False
    order = 3

    def __init__(self, options: DiskOptions, randomness: Random) -> None:
        super().__init__(options, randomness)
        self._running_until_ms = 0
        self._next_until_ms = 0

    def outgoing(self, node: "FaultyNode", effects: Sequence[Effect], now_ms: int) -> list[Effect]:
        result: list[Effect] = []
        for effect in effects:
            if isinstance(effect, Persist) and effect.puts:
                self._write(now_ms)
                result.append(effect)
            elif isinstance(effect, Send | Broadcast):
                result += self._wait(node, effect, now_ms)
            else:
                result.append(effect)
        return result

    def _write(self, now_ms: int) -> None:
        if self._next_until_ms <= now_ms:
            self._next_until_ms = now_ms + self.options.ms
            self._running_until_ms = self._next_until_ms
        elif self._next_until_ms == self._running_until_ms:
            self._next_until_ms += self.options.ms
        elif self._running_until_ms <= now_ms:
            self._running_until_ms = self._next_until_ms
            self._next_until_ms += self.options.ms

    def _wait(self, node: "FaultyNode", effect: Send | Broadcast, now_ms: int) -> list[Effect]:
        if self._next_until_ms <= now_ms:
            return [effect]
        peers = (effect.to,) if isinstance(effect, Send) else node.others
        self.acted += 1
        held = [node.hold_back(to, effect.message, self._next_until_ms) for to in peers]
        return [Send(to, effect.message) for to, is_held in zip(peers, held, strict=True) if not is_held]
