"""Talks to the gateway of one node over HTTP, in msgpack.

What the node says is decoded strictly and is not believed: see receipts.py, reads.py and periods.py. A node that
cannot be used just now, for whatever cause, is one exception, `NodeUnavailable`, since the remedy is always the same:
wait, or ask another.
"""

import asyncio
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import nullcontext
from importlib.util import find_spec
from types import TracebackType
from typing import Any, Final, NamedTuple, Self, TypeVar

import httpx
import msgspec

from bcami.codec import Codec, encode
from bcami.errors import MalformedError
from bcami.model.api import (
    CHAIN_HEADER,
    PROOF_CODEC,
    QUERY_CODEC,
    RELEASE_CODEC,
    SUBMIT_ANSWER_CODEC,
    CertifiedHeader,
    QueryAnswer,
    RefusalSignature,
    ReleaseAnswer,
    SubmitAnswer,
    TransactionProof,
)
from bcami.model.chain import BUNDLE_BYTES_MAX, BlockBundle
from bcami.model.genesis import GENESIS_BYTES_MAX, Genesis
from bcami.model.reasons import Reason
from bcami.model.registration import ContributionAnswer, ContributionRequest
from bcami.model.transaction import Transaction
from bcami.units import KIB, MIB

if find_spec("sniffio") is None:
    # httpcore tries to import it at every request; to be told at once that it is not there saves 0.4 ms each time.
    sys.modules["sniffio"] = None  # type: ignore[assignment]

T = TypeVar("T")


class _RefusalForm(msgspec.Struct):
    reason: str
    replica: int | None = None
    signature: str | None = None


MSGPACK: Final = "application/msgpack"
_HEADERS: Final = {"accept": MSGPACK, "content-type": MSGPACK, "accept-encoding": "identity"}
_CONNECT_S: Final = 3.0
_ANSWER_S: Final = 10.0
_BULK_S: Final = 60.0
"""For answers of many megabytes."""
_GRACE_S: Final = 2.0
"""What is added to a wait that the node was asked to make itself."""
_QUICK_REQUESTS_MAX: Final = 8
"""Requests at a time that a node answers at once: more wait here, cheaply, and not in the connection pool."""
_SMALL_BYTES_MAX: Final = MIB
"""For answers whose records have no larger limit of their own."""
_WHOLE_REQUEST: Final = {400: Reason.MALFORMED, 413: Reason.OVERSIZED, 422: Reason.MALFORMED}

_GENESIS: Final[Codec[Genesis]] = Codec(Genesis, GENESIS_BYTES_MAX)
_BUNDLE: Final[Codec[BlockBundle]] = Codec(BlockBundle, BUNDLE_BYTES_MAX)
_HEADER: Final[Codec[CertifiedHeader]] = Codec(CertifiedHeader, 256 * KIB)
_CONTRIBUTION: Final[Codec[ContributionAnswer]] = Codec(ContributionAnswer, KIB)


class RequestRefusal(NamedTuple):
    """A node's no to a whole request: it is well, and does not take what was sent."""

    reason: Reason
    """`malformed` or `oversized`."""
    body: bytes
    """What was sent."""
    signed: RefusalSignature | None
    """The node's signature, to be checked with `refusals.signer_of_request_refusal`."""


class NodeUnavailable(Exception):
    """The node gave no usable answer: not reached, too slow, busy (429, 503), failing, or talking nonsense."""

    def __init__(self, node: str, what: str, *, retry_after_ms: int = 0, refuses: RequestRefusal | None = None) -> None:
        super().__init__(f"{node}: {what}")
        self.node = node
        self.what = what
        self.retry_after_ms = retry_after_ms
        """How long the node asked to be left alone; 0 when it did not say."""
        self.refuses = refuses
        """Set when the node itself is well and turned down the request as a whole."""


class NodeClient:
    """One node's gateway."""

    def __init__(
        self, url: str, *, chain: bytes | None = None, transport: httpx.AsyncBaseTransport | None = None
    ) -> None:
        """With `chain` each request says which network it means, and a node of another one turns it away.

        `transport` replaces the network in tests.
        """
        self.url = url
        self._quick = asyncio.Semaphore(_QUICK_REQUESTS_MAX)
        self._http = httpx.AsyncClient(
            base_url=url,
            transport=transport,
            headers=_HEADERS if chain is None else {**_HEADERS, CHAIN_HEADER: chain.hex()},
            timeout=httpx.Timeout(None, connect=_CONNECT_S),
            limits=httpx.Limits(max_connections=64, max_keepalive_connections=64),
            trust_env=False,
        )

    def __repr__(self) -> str:
        return f"NodeClient({self.url})"

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        await self._http.aclose()

    async def genesis(self) -> Genesis:
        """Return what the node calls genesis: to show, or to compare with the one that is trusted."""
        return await self._get(_GENESIS, "/v1/genesis")

    async def submit(
        self, transactions: Sequence[Transaction], *, wait: str = "commit", timeout_ms: int = 10_000
    ) -> SubmitAnswer:
        return await self.submit_encoded([encode(tx) for tx in transactions], wait=wait, timeout_ms=timeout_ms)

    async def submit_encoded(
        self, transactions: Sequence[bytes], *, wait: str = "commit", timeout_ms: int = 10_000
    ) -> SubmitAnswer:
        """Send stored transactions, byte by byte as they are, in one request; return one result for each, in order.

        Raises NodeUnavailable.
        """
        body = encode([msgspec.Raw(data) for data in transactions])
        response = await self._request(
            "POST",
            "/v1/transactions",
            content=body,
            params={"wait": wait, "timeout_ms": timeout_ms},
            answer_s=timeout_ms / 1000 + _GRACE_S,
            is_quick=False,
            bytes_max=SUBMIT_ANSWER_CODEC.bytes_max,
        )
        answer = self._decode(SUBMIT_ANSWER_CODEC, self._good(response))
        if len(answer.results) != len(transactions):
            raise NodeUnavailable(self.url, f"{len(answer.results)} results to {len(transactions)} transactions")
        return answer

    async def transaction(self, transaction_id: bytes) -> SubmitAnswer | None:
        """Return what the node knows of a transaction; None when it does not know the id."""
        response = await self._request(
            "GET", f"/v1/transactions/{transaction_id.hex()}", bytes_max=SUBMIT_ANSWER_CODEC.bytes_max
        )
        if response.status_code == httpx.codes.NOT_FOUND:
            return None
        return self._decode(SUBMIT_ANSWER_CODEC, self._good(response))

    async def contribute(self, request: ContributionRequest) -> ContributionAnswer | Reason:
        """Return the node's contribution to a key, or why it refuses one."""
        response = await self._request("POST", "/v1/contribute", content=encode(request))
        if response.is_client_error and response.status_code != httpx.codes.TOO_MANY_REQUESTS:
            return self._reason(response)
        return self._decode(_CONTRIBUTION, self._good(response))

    async def period(self) -> TransactionProof | None:
        """Return the registration of the newest MDMS period, for periods.verify_period; None before the first."""
        response = await self._request("GET", "/v1/period")
        if response.status_code == httpx.codes.NOT_FOUND:
            return None
        return self._decode(PROOF_CODEC, self._good(response))

    async def block(self, height: int) -> BlockBundle | None:
        response = await self._request("GET", f"/v1/blocks/{height}", answer_s=_BULK_S, bytes_max=_BUNDLE.bytes_max)
        if response.status_code == httpx.codes.NOT_FOUND:
            return None
        return self._decode(_BUNDLE, self._good(response))

    async def header(self, height: int) -> CertifiedHeader | None:
        response = await self._request("GET", f"/v1/headers/{height}")
        if response.status_code == httpx.codes.NOT_FOUND:
            return None
        return self._decode(_HEADER, self._good(response))

    async def released(self, after: int, limit: int) -> ReleaseAnswer:
        """Return released blocks above height `after`, at most `limit` (design D11)."""
        return await self._get(RELEASE_CODEC, "/v1/released", {"after": after, "limit": limit}, _BULK_S)

    async def query(self, contract: str, function: str, argument: bytes, *, at_least: int = 0) -> QueryAnswer:
        """Return one node's answer: a hint (protocol 5.6); reads.weak_read asks enough nodes to believe it."""
        path = f"/v1/query/{contract}/{function}"
        return await self._get(QUERY_CODEC, path, {"argument": argument.hex(), "at_least": at_least})

    async def state(self, key: bytes, *, at_least: int = 0) -> QueryAnswer:
        return await self._get(QUERY_CODEC, f"/v1/state/{key.hex()}", {"at_least": at_least})

    async def status(self) -> dict[str, Any]:
        response = await self._request("GET", "/v1/status", headers={"accept": "application/json"})
        return self._json(self._good(response))

    async def events(self, after: int) -> AsyncIterator[dict[str, Any]]:
        """Yield one record for each block certified above `after` (height, hash, transactions, time_ms), as it comes.

        Raises NodeUnavailable when the stream ends; resume with the last height that was seen.
        """
        try:
            async with self._http.stream(
                "GET",
                "/v1/events",
                params={"after": after},
                headers={"accept": "text/event-stream"},
            ) as response:
                async for line in response.aiter_lines():
                    if line.startswith("data:"):
                        yield self._json(line.removeprefix("data:").encode())
        except httpx.HTTPError as error:
            raise NodeUnavailable(self.url, f"event stream: {type(error).__name__}") from None
        raise NodeUnavailable(self.url, "the event stream ended")

    async def _get(
        self, codec: Codec[T], path: str, params: dict[str, Any] | None = None, answer_s: float = _ANSWER_S
    ) -> T:
        response = await self._request("GET", path, params=params, answer_s=answer_s, bytes_max=codec.bytes_max)
        return self._decode(codec, self._good(response))

    async def _request(
        self,
        method: str,
        path: str,
        *,
        answer_s: float = _ANSWER_S,
        is_quick: bool = True,
        bytes_max: int = _SMALL_BYTES_MAX,
        **options: Any,
    ) -> httpx.Response:
        """Return the answer, whole, within `answer_s`: a node that lets single bytes drip is silent too."""
        try:
            async with (
                asyncio.timeout(answer_s),
                self._quick if is_quick else nullcontext(),
                self._http.stream(method, path, **options) as response,
            ):
                return await self._whole(response, bytes_max)
        except TimeoutError:
            raise NodeUnavailable(self.url, f"{method} {path}: no answer within {answer_s:g} s") from None
        except httpx.HTTPError as error:
            raise NodeUnavailable(self.url, f"{method} {path}: {type(error).__name__} {error}".rstrip()) from None

    async def _whole(self, response: httpx.Response, bytes_max: int) -> httpx.Response:
        """Return the answer with its content, as it came: a node cannot fill this process's memory."""
        if response.headers.get("content-encoding", "identity") != "identity":
            raise NodeUnavailable(self.url, "an answer in an encoding that was not asked for")
        content = bytearray()
        async for part in response.aiter_bytes():
            content += part
            if len(content) > bytes_max:
                raise NodeUnavailable(self.url, f"an answer of more than {bytes_max} bytes")
        headers = {"retry-after": response.headers.get("retry-after", "")}
        return httpx.Response(response.status_code, headers=headers, content=bytes(content), request=response.request)

    def _good(self, response: httpx.Response) -> bytes:
        if response.status_code == httpx.codes.OK:
            return response.content
        what = f"{response.request.method} {response.request.url.path}: HTTP {response.status_code}"
        if response.status_code == httpx.codes.BAD_REQUEST and self._is_of_another_chain(response):
            raise NodeUnavailable(self.url, f"{what}: it serves another network than the one that is meant")
        raise NodeUnavailable(
            self.url,
            what,
            retry_after_ms=retry_after_ms(response.headers.get("retry-after")),
            refuses=_request_refusal(response),
        )

    @staticmethod
    def _is_of_another_chain(response: httpx.Response) -> bool:
        """Such a node says nothing about the transaction: its no must never let one be abandoned."""
        try:
            return bool(msgspec.json.decode(response.content).get("reason") == Reason.WRONG_CHAIN)
        except (msgspec.MsgspecError, AttributeError):
            return False

    def _decode(self, codec: Codec[T], data: bytes) -> T:
        try:
            return codec.decode(data)
        except MalformedError as error:
            raise NodeUnavailable(self.url, f"an answer that does not decode: {error.what}") from None

    def _json(self, data: bytes) -> dict[str, Any]:
        try:
            return msgspec.json.decode(data, type=dict[str, Any])
        except msgspec.MsgspecError:
            raise NodeUnavailable(self.url, "an answer that is not a JSON object") from None

    def _reason(self, response: httpx.Response) -> Reason:
        try:
            return Reason(self._json(response.content).get("reason", ""))
        except ValueError:
            raise NodeUnavailable(self.url, f"HTTP {response.status_code} without a known reason") from None


def _request_refusal(response: httpx.Response) -> RequestRefusal | None:
    reason = _WHOLE_REQUEST.get(response.status_code)
    if reason is None:
        return None
    try:
        form = msgspec.json.decode(response.content, type=_RefusalForm)
        signed = msgspec.convert(
            (form.replica, bytes.fromhex(form.signature or "")), RefusalSignature, builtin_types=(bytes,)
        )
        return RequestRefusal(Reason(form.reason), response.request.content, signed)
    except (msgspec.MsgspecError, ValueError):
        return RequestRefusal(reason, response.request.content, None)


def retry_after_ms(value: str | None) -> int:
    """Return the milliseconds of a Retry-After header in seconds; 0 for none or another form."""
    if value is None or not value.strip().isdecimal():
        return 0
    return min(int(value), 3600) * 1000
