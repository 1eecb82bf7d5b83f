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
    with pytest.raises(StopAsyncIteration):
        await next_of(stream)
    assert head_end.listeners == len(others)
    for other in others:
        assert other is not None
        head_end.leave(other)
        head_end.leave(other)
    assert head_end.listeners == head_end._subscribed == 0
    assert head_end._by_hid == {}


@in_loop
async def test_of_a_meters_streams_the_newest_hear_and_one_that_hears_for_nobody_ends() -> None:
    head_end = HeadEnd("run")
    fleet = head_end.admit({ONE, OTHER})
    streams = [head_end.admit({ONE}) for _ in range(5)]
    assert fleet is not None
    assert [stream is not None and stream.is_over for stream in streams] == [True, True, True, False, False]
    assert head_end.listeners == 1 + module.STREAMS_OF_METER_MAX
    head_end.put(item(ONE, "a"))
    head_end.put(item(OTHER, "b"))
    assert [len(stream.pending) for stream in (fleet, *streams) if stream is not None] == [1, 0, 0, 0, 1, 1]
    assert streams[4] is not None
    head_end.leave(streams[4])
    head_end.put(item(ONE, "c"))
    assert fleet.hears_for == 2, "it has the meter again"
    assert await texts(head_end.listen(fleet, None), 2) == ["b", "c"]
    head_end.shut_out(OTHER)
    assert not fleet.is_over
    head_end.shut_out(ONE)
    assert (fleet.is_over, head_end.listeners, head_end._subscribed, head_end._by_hid) == (True, 0, 0, {})


@pytest.mark.parametrize("limit", ["RING_OF_METER_MESSAGES_MAX", "RING_OF_METER_BYTES_MAX"])
@in_loop
async def test_a_meter_that_is_sent_very_much_takes_no_room_from_others(
    limit: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, limit, 2)
    head_end = HeadEnd("run", messages_max=5, bytes_max=5)
    fleet = head_end.admit({ONE, OTHER})
    assert fleet is not None
    for hid, text in ((OTHER, "a"), (b"", "g"), *((ONE, text) for text in "bcdefghijk")):
        head_end.put(item(hid, text))
    assert await texts(head_end.listen(fleet, None), 5) == ["a", "g", "Gap", "j", "k"]
    assert await texts(head_end.listen(fleet, "run-0"), 5) == ["Gap", "a", "g", "j", "k"]
    assert await texts(head_end.listen(fleet, "run-9"), 3) == ["Gap", "j", "k"]
    assert await texts(head_end.listen(fleet, "run-10"), 2) == ["j", "k"]
    other = head_end.admit({OTHER})
    assert other is not None
    assert await texts(head_end.listen(other, "run-0"), 2) == ["a", "g"], "no gap for others"
    for text in "lmnop":
        head_end.put(item(b"", text))
    assert (head_end._bytes, head_end._of_meter) == (5, {})
