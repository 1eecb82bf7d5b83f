"""Talks to the MDMS's head-end over HTTP: messages up, an event stream down (bcami.kms.wire, subscription)."""

import asyncio
from base64 import b64decode
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any, Final, NamedTuple

import httpx
import msgspec

from bcami.codec import encode
from bcami.errors import MalformedError
from bcami.kms.subscription import CHALLENGE_BYTES, Subscription
from bcami.kms.wire import (
    DOWN_ITEM,
    EPOCH_EVENT,
    EVENT_TEXT_MAX,
    GAP_EVENT,
    LEFT_OUT,
    LEFT_OUT_EVENT,
    MESSAGE_EVENT,
    DownItem,
)
from bcami.model.api import PROOF_CODEC, TransactionProof
from bcami.model.reasons import Reason

_CONNECT_S: Final = 3.0
_ANSWER_S: Final = 10.0
_QUIET_S: Final = 30.0
"""A stream without a sign of life for so long is lost: the head-end gives one every ten seconds."""
_FIELD_CHARACTERS_MAX: Final = 256
_FIELDS: Final = frozenset({"event", "data", "id"})


Subscribe = Callable[[bytes], Subscription]
"""Has meters sign a challenge; called in a thread."""


class HeadEndUnavailable(Exception):
    """The head-end gave no usable answer; trying again later is the remedy."""


class StreamEvent(NamedTuple):
    """One event: a proof, a message, meters that are left out, or (none of these) a gap."""

    proof: TransactionProof | None = None
    item: DownItem | None = None
    place: str = ""
    """Where to go on after a message."""
    left_out: tuple[tuple[bytes, Reason], ...] = ()
    """Meters that the stream is not for, and why."""


class HeadEndClient:
    """One MDMS's head-end."""

    def __init__(self, url: str, *, transport: httpx.AsyncBaseTransport | None = None) -> None:
        """`transport` replaces the network in tests."""
        self.url = url
        self._http = httpx.AsyncClient(
            base_url=url,
            transport=transport,
            timeout=httpx.Timeout(_ANSWER_S, connect=_CONNECT_S),
            headers={"accept-encoding": "identity"},
            trust_env=False,
        )

    async def close(self) -> None:
        await self._http.aclose()

    async def send(self, messages: Sequence[bytes]) -> dict[Reason, int]:
        """Bring messages up; return what the MDMS refused. Raises HeadEndUnavailable."""
        try:
            answer = await self._http.post("/v1/kms/messages", content=encode(tuple(messages)))
        except httpx.HTTPError as error:
            raise HeadEndUnavailable(f"{self.url}: {type(error).__name__}") from None
        if answer.status_code != httpx.codes.OK:
            raise HeadEndUnavailable(f"{self.url}: HTTP {answer.status_code}")
        try:
            told = msgspec.json.decode(answer.content, type=dict[str, Any])
            return msgspec.convert(told.get("refused"), dict[Reason, int])
        except msgspec.MsgspecError:
            raise HeadEndUnavailable(f"{self.url}: an answer of another form") from None

    async def _challenge(self) -> bytes:
        try:
            answer = await self._http.post("/v1/kms/challenge")
        except httpx.HTTPError as error:
            raise HeadEndUnavailable(f"{self.url}: {type(error).__name__}") from None
        if answer.status_code != httpx.codes.OK:
            raise HeadEndUnavailable(f"{self.url}: HTTP {answer.status_code}")
        try:
            challenge = bytes.fromhex(msgspec.json.decode(answer.content, type=dict[str, Any])["challenge"])
        except (ValueError, KeyError, TypeError, msgspec.MsgspecError):
            challenge = b""
        if len(challenge) != CHALLENGE_BYTES:
            raise HeadEndUnavailable(f"{self.url}: no challenge")
        return challenge

    async def listen(self, subscribe: Subscribe, after: str = "") -> AsyncIterator[StreamEvent]:
        """Yield what comes for the meters that sign, going on after a place. Raises HeadEndUnavailable when it ends."""
        challenge = await self._challenge()
        body = encode(await asyncio.to_thread(subscribe, challenge))
        headers = {"accept": "text/event-stream"}
        if after:
            headers["last-event-id"] = after
        try:
            async with self._http.stream(
                "POST",
                "/v1/kms/stream",
                content=body,
                headers=headers,
                timeout=httpx.Timeout(_ANSWER_S, connect=_CONNECT_S, read=_QUIET_S),
            ) as response:
                if response.status_code != httpx.codes.OK:
                    raise HeadEndUnavailable(f"{self.url}: HTTP {response.status_code}")
                async for fields in _events(response.aiter_text()):
                    yield self._event(fields)
        except httpx.HTTPError as error:
            raise HeadEndUnavailable(f"{self.url}: {type(error).__name__}") from None
        raise HeadEndUnavailable(f"{self.url}: the stream ended")

    def _event(self, fields: dict[str, str]) -> StreamEvent:
        kind = fields.get("event", "")
        if kind == GAP_EVENT:
            return StreamEvent()
        try:
            data = b64decode(fields.get("data", ""), validate=True)
            if kind == LEFT_OUT_EVENT:
                return StreamEvent(left_out=LEFT_OUT.decode(data))
            if kind == EPOCH_EVENT:
                return StreamEvent(proof=PROOF_CODEC.decode(data))
            if kind == MESSAGE_EVENT:
                return StreamEvent(item=DOWN_ITEM.decode(data), place=fields.get("id", "")[:_FIELD_CHARACTERS_MAX])
        except (ValueError, MalformedError):
            raise HeadEndUnavailable(f"{self.url}: an event that does not decode") from None
        raise HeadEndUnavailable(f"{self.url}: an event of an unknown kind")


async def _events(texts: AsyncIterator[str]) -> AsyncIterator[dict[str, str]]:
    """Yield the fields of each event. Raises HeadEndUnavailable on one that is longer than any may be."""
    fields: dict[str, str] = {}
    rest = ""
    async for text in texts:
        *lines, rest = (rest + text).split("\n")
        if len(rest) > EVENT_TEXT_MAX:
            raise HeadEndUnavailable("an event of more bytes than any may have")
        for line in lines:
            if line:
                name, _, value = line.partition(":")
                if name in _FIELDS:  # else a comment: a sign of life
                    fields[name] = value.removeprefix(" ")
            elif fields:
                yield fields
                fields = {}
