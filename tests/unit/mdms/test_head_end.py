"""The ring of messages and its streams: resumed where they ended, told of gaps, bounded."""

import asyncio
import functools
from collections.abc import AsyncIterator, Callable, Coroutine
from typing import Any

import pytest

from bcami.kms.wire import DownItem
from bcami.mdms import head_end as module
from bcami.mdms.head_end import Epoch, HeadEnd, Heard, Message
from tests import virtual


def in_loop(test: Callable[..., Coroutine[Any, Any, None]]) -> Callable[..., None]:
    """Run a test in an event loop of its own."""

    @functools.wraps(test)
    def run(**given: Any) -> None:
        virtual.run(test(**given))

    return run


ONE, OTHER = b"\x01" * 32, b"\x02" * 32


def listen(head_end: HeadEnd, after: str | None) -> AsyncIterator[Heard | None]:
    listener = head_end.admit({ONE})
    assert listener is not None
    return head_end.listen(listener, after)


async def next_of(stream: AsyncIterator[Heard | None]) -> Heard | None:
    return await anext(stream)


def item(hid: bytes, text: str) -> DownItem:
    return DownItem(hid, 0, text.encode())


async def texts(stream: AsyncIterator[Heard | None], count: int) -> list[str]:
    heard = [await next_of(stream) for _ in range(count)]
    return [h.item.message.decode() if isinstance(h, Message) else type(h).__name__ for h in heard]


@in_loop
async def test_a_stream_hears_its_meters_and_every_group_from_now_on() -> None:
    head_end = HeadEnd("run")
    head_end.put(item(ONE, "before"))
    head_end.open_epoch(b"proof")
    stream = listen(head_end, None)
    assert await next_of(stream) == Epoch(b"proof")
    for hid, text in ((ONE, "a"), (OTHER, "not for us"), (b"", "group"), (ONE, "b")):
        head_end.put(item(hid, text))
    assert await texts(stream, 3) == ["a", "group", "b"]
    head_end.stop()
    with pytest.raises(StopAsyncIteration):
        await next_of(stream)


@in_loop
async def test_a_stream_goes_on_where_another_ended() -> None:
    head_end = HeadEnd("run")
    stream = listen(head_end, None)
    waiting = asyncio.ensure_future(next_of(stream))
    await asyncio.sleep(0)
    for text in "abc":
        head_end.put(item(ONE, text))
    heard = await waiting
    assert isinstance(heard, Message)
    assert await texts(listen(head_end, heard.name), 2) == ["b", "c"]


@pytest.mark.parametrize("place", ["otherrun-1", "run-99", "run-", "", "run-" + "9" * 40, "run-²"])
@in_loop
async def test_a_place_that_means_nothing_here_is_a_gap(place: str) -> None:
    head_end = HeadEnd("run")
    head_end.put(item(ONE, "a"))
    assert await texts(listen(head_end, place), 2) == ["Gap", "a"]


@pytest.mark.parametrize("limits", [{"messages_max": 2}, {"bytes_max": 2}])
@in_loop
async def test_a_reader_that_falls_behind_the_ring_is_told(limits: dict[str, int]) -> None:
    head_end = HeadEnd("run", **limits)
    head_end.put(item(ONE, "a"))
    stream = listen(head_end, "run-0")
    assert await texts(stream, 1) == ["a"]
    for text in "bcd":
        head_end.put(item(ONE, text))
    assert await texts(stream, 3) == ["Gap", "c", "d"]


@in_loop
async def test_a_new_epoch_is_told_to_streams_that_are_open() -> None:
    head_end = HeadEnd("run")
    head_end.open_epoch(b"first")
    stream = listen(head_end, None)
    assert await next_of(stream) == Epoch(b"first")
    head_end.put(item(ONE, "under old keys"))
    head_end.open_epoch(b"second")
    assert await next_of(stream) == Epoch(b"second")
    head_end.put(item(ONE, "under new keys"))
    assert await texts(stream, 1) == ["under new keys"]


@in_loop
async def test_a_reader_that_does_not_read_is_bounded_and_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PENDING_MAX", 2)
    monkeypatch.setattr(module, "PENDING_OF_METER_MAX", 0)
    head_end = HeadEnd("run")
    stream = listen(head_end, None)
    for text in "abcde":
        head_end.put(item(b"", text))
    assert await texts(stream, 2) == ["Gap", "e"]


@in_loop
async def test_a_message_for_one_meter_is_no_work_for_the_streams_of_others() -> None:
    head_end = HeadEnd("run")
    others = [head_end.admit({bytes([number]) * 32}) for number in range(2, 9)]
    stream = listen(head_end, None)
    head_end.put(item(ONE, "a"))
    assert await texts(stream, 1) == ["a"]
    assert all(other is not None and not other.pending and not other.wanted.is_set() for other in others)
    head_end.shut_out(ONE)
    head_end.put(item(ONE, "revoked"))
    head_end.put(item(b"", "group"))
    assert await texts(stream, 1) == ["group"]
    for other in others:
        assert other is not None
        head_end.leave(other)
    assert head_end.listeners == 1
