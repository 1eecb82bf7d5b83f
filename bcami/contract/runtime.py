"""Runs contracts inside a node: the guard, dispatch, and the endorser's whole check (design D6; protocol 3, 4.3).

The flow is written once, as coroutines over a `Context`: `Runtime` drives them with one `send(None)`, because reads of
our own node never wait; `bcami.contract.fabric` awaits the same ones. Outcomes depend on the transaction, the world
state, the block time and genesis, and on nothing else. What is wrong with this node itself (its state cannot be read,
its memory is used up) is no outcome: it is raised, and stops the node.
"""

from collections.abc import Awaitable, Callable, Coroutine, Mapping
from hashlib import sha256
from traceback import extract_tb
from types import MappingProxyType
from typing import Any, Final, TypeVar, get_type_hints

import msgspec

from bcami.codec import Codec, encode
from bcami.contract import guard
from bcami.contract.api import Contract, Query, Submit, members_of
from bcami.contract.context import Context, LocalContext, Read, ReadFault, Rejected, Scan, Services, StepsExceeded
from bcami.contract.network import Network, network_from_genesis
from bcami.contract.package import Package
from bcami.contract.state import Map, View
from bcami.crypto.signatures import verify
from bcami.errors import InputError, MalformedError
from bcami.model.genesis import Genesis
from bcami.model.ids import Name
from bcami.model.reasons import Reason
from bcami.model.transaction import ARGUMENT_BYTES_MAX, Transaction

T = TypeVar("T")

RESERVED_NAMES: Final = frozenset(("guard", "system"))
"""Where the node itself keeps state."""

NO_WRITES: Final[Mapping[bytes, bytes | None]] = MappingProxyType({})


class Execution(msgspec.Struct, frozen=True):
    """What one transaction came to."""

    reason: Reason
    """`valid`, or why it was rejected."""
    writes: Mapping[bytes, bytes | None]
    """Net changes of the world state; None deletes. A rejected one still consumes its number."""
    fault: str = ""
    """For the operator's log: where a contract broke, when the reason is `contract_fault`."""


class SubmitEntry(msgspec.Struct, frozen=True):
    """One submit function, ready to be called."""

    contract: str
    function: str
    decode: Callable[[bytes], Any]
    call: Callable[[Context, Any], Awaitable[None]]
    signers: Callable[[Context, Any], Awaitable[tuple[bytes, ...]]]


class QueryEntry(msgspec.Struct, frozen=True):
    """One query function, ready to be called."""

    contract: str
    function: str
    decode: Callable[[bytes], Any]
    call: Callable[[Context, Any], Awaitable[Any]]


class Runtime:
    """The contracts of one package under one genesis."""

    def __init__(self, package: Package, genesis: Genesis) -> None:
        self.network: Final[Network] = network_from_genesis(genesis)
        self.submits: Final[dict[tuple[str, str], SubmitEntry]] = {}
        self.queries: Final[dict[tuple[str, str], QueryEntry]] = {}
        self._contracts: Final = {contract.name: contract for contract in package.contracts}
        self._window = genesis.parameters.replay_window
        self._clock_skew_ms = genesis.parameters.clock_skew_ms
        for contract in package.contracts:
            _check_views(contract, self._contracts)
            self._add(contract)

    def signers(self, tx: Transaction, read: Read) -> tuple[bytes, ...] | Reason:
        """Return the keys that must have signed the transaction, from its argument and the state."""
        return _run(self.required_keys(self._reading(tx, b"", read), tx))

    def check(self, tx: Transaction, tx_id: bytes, read: Read, now_ms: int) -> Reason | None:
        """Return why an endorser refuses the transaction, or None. Cheap parts come first, signatures last."""
        return _run(self.examine(self._reading(tx, tx_id, read), tx, now_ms))

    def execute(self, tx: Transaction, tx_id: bytes, read: Read, height: int, time_ms: int) -> Execution:
        """Return the outcome of an ordered transaction. No contract can make it raise; what `read` raises passes."""
        context = LocalContext(self.network, tx, tx_id, time_ms, read, writable=True)
        execution = _run(self.apply(context, tx))
        if execution.fault:
            return Execution(execution.reason, execution.writes, f"height {height}: {execution.fault}")
        return execution

    def query(
        self,
        contract: str,
        function: str,
        argument: bytes,
        read: Read,
        scan: Scan | None = None,
        services: Services | None = None,
    ) -> bytes | Reason:
        """Return the encoded answer of a query function, or the reason of its refusal."""
        context = LocalContext(self.network, None, b"", 0, read, writable=False, scan=scan, services=services)
        return _run(self.answer(context, contract, function, argument))

    def _reading(self, tx: Transaction, tx_id: bytes, read: Read) -> LocalContext:
        return LocalContext(self.network, tx, tx_id, 0, read, writable=False)

    # The flow, for any back end.

    async def examine(self, context: Context, tx: Transaction, now_ms: int) -> Reason | None:
        """Return why an endorser refuses the transaction, or None."""
        if len(tx.argument) > ARGUMENT_BYTES_MAX:
            return Reason.OVERSIZED
        if sha256(tx.argument).digest() != tx.argument_hash:
            return Reason.HASH_MISMATCH
        if tx.timestamp_ms > now_ms + self._clock_skew_ms:
            return Reason.TIMESTAMP_AHEAD
        keys = await self.required_keys(context, tx)
        if isinstance(keys, Reason):
            return keys
        record = await context.load(guard.guard_key(tx.signer, tx.session))
        refused = guard.refusal(record, tx.session, tx.sequence, self._window)
        if refused is not None:
            return refused
        signatures = tx.signatures
        if len(signatures) != len(keys):
            return Reason.BAD_SIGNATURE
        for key, signature in zip(keys, signatures, strict=True):
            if not verify(key, signature, context.transaction_id):
                return Reason.BAD_SIGNATURE
        return None

    async def required_keys(self, context: Context, tx: Transaction) -> tuple[bytes, ...] | Reason:
        """Return the keys that must have signed, or why the transaction is refused before anybody looks."""
        entry = self.submits.get((tx.contract, tx.function))
        if entry is None:
            return self._unknown(tx.contract)
        try:
            argument = entry.decode(tx.argument)
        except MalformedError:
            return Reason.BAD_ARGUMENT
        try:
            keys = await entry.signers(context, argument)
        except Rejected as rejected:
            return rejected.reason
        except StepsExceeded:
            return Reason.STEPS_EXCEEDED
        except (MemoryError, RecursionError):
            raise
        except Exception:
            return Reason.CONTRACT_FAULT
        return keys or Reason.CONTRACT_FAULT

    async def apply(self, context: Context, tx: Transaction) -> Execution:
        """Return the outcome: the guard first, then the contract; rejected or not, the number is consumed."""
        key = guard.guard_key(tx.signer, tx.session)
        record = await context.load(key)
        refused = guard.refusal(record, tx.session, tx.sequence, self._window)
        if refused is not None:
            return Execution(refused, NO_WRITES)
        consumed = guard.consume(record, tx.session, tx.sequence, self._window)
        reason, fault = await self._call(context, tx)
        if reason is not Reason.VALID:
            return Execution(reason, {key: consumed}, fault)
        context.writes[key] = consumed
        return Execution(reason, context.writes)

    async def answer(self, context: Context, contract: str, function: str, argument: bytes) -> bytes | Reason:
        """Return a query's encoded answer or the reason of its refusal."""
        entry = self.queries.get((contract, function))
        if entry is None:
            return self._unknown(contract)
        try:
            decoded = entry.decode(argument)
        except MalformedError:
            return Reason.BAD_ARGUMENT
        try:
            return encode(await entry.call(context, decoded))
        except Rejected as rejected:
            return rejected.reason
        except StepsExceeded:
            return Reason.STEPS_EXCEEDED
        except (MemoryError, RecursionError):
            raise
        except Exception:
            return Reason.CONTRACT_FAULT

    async def _call(self, context: Context, tx: Transaction) -> tuple[Reason, str]:
        entry = self.submits.get((tx.contract, tx.function))
        if entry is None:
            return self._unknown(tx.contract), ""
        try:
            argument = entry.decode(tx.argument)
        except MalformedError:
            return Reason.BAD_ARGUMENT, ""
        try:
            await entry.call(context, argument)
        except Rejected as rejected:
            if rejected.reason is Reason.VALID:
                return Reason.CONTRACT_FAULT, f"{tx.contract}.{tx.function} rejected with `valid`"
            return rejected.reason, ""
        except StepsExceeded:
            return Reason.STEPS_EXCEEDED, ""
        except (MemoryError, RecursionError):
            raise
        except Exception as error:
            return Reason.CONTRACT_FAULT, f"{tx.contract}.{tx.function} {_describe(error)}"
        return Reason.VALID, ""

    def _unknown(self, contract: str) -> Reason:
        return Reason.UNKNOWN_FUNCTION if contract in self._contracts else Reason.UNKNOWN_CONTRACT

    def _add(self, contract: type[Contract]) -> None:
        _check_name(contract.name, f"contract {contract.name!r}")
        if contract.name in RESERVED_NAMES:
            raise InputError(f"a contract cannot be named {contract.name!r}: the node keeps state under this name")
        instance = contract()
        for name in (*members_of(contract, Submit), *members_of(contract, Query)):
            _check_name(name, f"function {contract.name}.{name}")
        for name, entry in members_of(contract, Submit).items():
            if entry.signers_function is None:
                raise InputError(
                    f"submit function {contract.name}.{name} has no signers function",
                    do=f"add one, decorated with @{name}.signers",
                )
            self.submits[contract.name, name] = SubmitEntry(
                contract.name,
                name,
                _decoder(entry.function),
                entry.function.__get__(instance),
                entry.signers_function.__get__(instance),
            )
        for name, entry in members_of(contract, Query).items():
            self.queries[contract.name, name] = QueryEntry(
                contract.name, name, _decoder(entry.function), entry.function.__get__(instance)
            )


def _run(flow: Coroutine[Any, Any, T]) -> T:
    """Return what a flow over a LocalContext comes to; none of its reads waits, so one step ends it."""
    try:
        flow.send(None)
    except StopIteration as stop:
        value: T = stop.value
        return value
    except ReadFault as fault:
        raise fault.error from None
    flow.close()
    raise RuntimeError("a contract waited for something that is not the context")


def _check_name(name: str, what: str) -> None:
    try:
        msgspec.convert(name, Name)
    except msgspec.ValidationError:
        raise InputError(f"no transaction could name {what}", do="use at most 32 of a-z, 0-9, _ and -") from None


def _decoder(function: Callable[..., Any]) -> Callable[[bytes], Any]:
    """Return what decodes the function's argument: records strictly, bytes as they are."""
    kind = get_type_hints(function, include_extras=True)["argument"]
    if kind is bytes:
        return bytes
    return Codec(kind, ARGUMENT_BYTES_MAX).decode


def _check_views(contract: type[Contract], contracts: Mapping[str, type[Contract]]) -> None:
    """Raise InputError when a view does not show a map that its contract declares."""
    for name, view in members_of(contract, View).items():
        if isinstance(view, Map):
            continue
        owner = contracts.get(view.contract)
        shown = None if owner is None else members_of(owner, Map).get(view.name)
        if shown is None or shown.kind is not view.kind or shown.form.width != view.form.width:
            raise InputError(
                f"{contract.name}.{name} views {view.contract}/{view.name}, which is no such map of this package",
                do="give the view the map's contract, name, type and key",
            )


def _describe(error: BaseException) -> str:
    """Return the error and the place in the chaincode where it rose."""
    place = extract_tb(error.__traceback__)[-1]
    return f"broke in {place.filename}:{place.lineno}: {type(error).__name__}: {error}"
