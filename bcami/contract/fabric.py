"""The same contracts on Hyperledger Fabric: one generated Fabric contract for each class (design D6; extra `fabric`).

    from bcami.contract.fabric import fabric_chaincode
    fabric_chaincode(load_package(folder, genesis.chaincode_package), genesis).start()

Fabric's Python chaincode passes text only, so a function takes one hex argument and returns hex: a submit function the
whole encoded transaction for the encoded reason, a query its argument for its answer. A refusal (no outcome, may be
asked again) fails the proposal with the reason as its message; a rejection is a success whose answer is the reason,
because its write, the consumed number, has to be committed. A state key is the hex of ours: order and prefixes stay.

What differs from our node: every endorsing peer checks the signatures itself; the time is the proposal's, which a peer
accepts within its own window, and not the block's; two transactions of one meter in one block conflict on its guard
(Fabric's MVCC), and the client sends the later one again. `contribute` has no counterpart: it answers `not_ready`.

Importing this module imports `fabric-chaincode-python`, whose import touches the root logger. Its server writes to the
peer from many tasks at once and loses transactions under load (seen above 100 a second with release 2.5.4).
"""

from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, Final

from fabric_chaincode_python import fabric_contract_api as fabric  # type: ignore[import-untyped]

from bcami.codec import Codec
from bcami.contract.api import Contract
from bcami.contract.context import Context, ReadFault
from bcami.contract.network import Network
from bcami.contract.package import Package
from bcami.contract.runtime import Runtime
from bcami.errors import BcamiError, MalformedError
from bcami.model.genesis import Genesis
from bcami.model.reasons import Reason
from bcami.model.transaction import TRANSACTION_BYTES_MAX, Transaction, transaction_id

TRANSACTION_CODEC: Final = Codec[Transaction](Transaction, TRANSACTION_BYTES_MAX)
_PREFIX_END: Final = "g"
"""Follows every hex digit, so a range up to it holds every key with the prefix."""

_Call = Callable[[Any, Any, str], Awaitable[str]]


class FabricRefusal(BcamiError):
    """Fails a proposal; the text is the reason."""

    def __init__(self, reason: Reason) -> None:
        super().__init__(reason.value)
        self.reason = reason


class FabricContext(Context):
    """The context over a Fabric stub. Reads are awaited; writes go to the stub when the outcome is known."""

    __slots__ = ("_stub",)

    def __init__(self, network: Network, tx: Transaction | None, tx_id: bytes, stub: Any, *, writable: bool) -> None:
        super().__init__(network, tx, tx_id, _time_ms(stub) if writable else 0, writable=writable)
        self._stub = stub

    async def load(self, key: bytes) -> bytes | None:
        try:
            value = await self._stub.get_state(key.hex())
        except Exception as error:
            raise ReadFault(error) from error
        return bytes(value) if value else None

    async def load_range(self, prefix: bytes, limit: int) -> AsyncIterator[tuple[bytes, bytes]]:
        start = prefix.hex()
        try:
            entries = await self._stub.get_state_by_range(start, start + _PREFIX_END)
            found: list[tuple[bytes, bytes]] = []
            async for entry in entries:
                if len(found) == limit:
                    await entries.aclose()
                    break
                found.append((bytes.fromhex(entry.key), bytes(entry.value)))
        except Exception as error:
            raise ReadFault(error) from error
        for item in found:
            yield item


def fabric_chaincode(package: Package, genesis: Genesis) -> Any:
    """Return a `ContractChaincode` with all contracts of the package, ready for `start()`."""
    runtime = Runtime(package, genesis)
    return fabric.ContractChaincode.new_chaincode(
        *(_fabric_contract(runtime, contract) for contract in package.contracts)
    )


def _fabric_contract(runtime: Runtime, contract: type[Contract]) -> Any:
    submits = [function for name, function in runtime.submits if name == contract.name]
    queries = [function for name, function in runtime.queries if name == contract.name]
    functions: dict[str, Any] = {function: _submit(runtime, contract.name, function) for function in submits}
    functions |= {function: _query(runtime, contract.name, function) for function in queries}
    functions |= {
        "__doc__": contract.__doc__,
        "Name": contract.name,
        "get_evaluate_transactions": lambda _: queries,
    }
    return type(contract.__name__, (fabric.Contract,), functions)()


def _submit(runtime: Runtime, contract: str, function: str) -> _Call:
    async def call(_: Any, ctx: fabric.TransactionContext, transaction: str) -> str:
        tx = _decode(transaction)
        if (tx.contract, tx.function) != (contract, function):
            raise FabricRefusal(Reason.UNKNOWN_FUNCTION)
        stub = ctx.get_stub()
        network = runtime.network
        tx_id = transaction_id(tx, network.chain, network.epoch)
        try:
            reading = FabricContext(network, tx, tx_id, stub, writable=False)
            refused = await runtime.examine(reading, tx, _time_ms(stub))
            if refused is not None:
                raise FabricRefusal(refused)
            execution = await runtime.apply(FabricContext(network, tx, tx_id, stub, writable=True), tx)
        except ReadFault as fault:
            raise _unreadable(fault) from fault.error
        for key, value in sorted(execution.writes.items()):
            if value is None:
                await stub.delete_state(key.hex())
            else:
                await stub.put_state(key.hex(), value)
        return execution.reason.encode().hex()

    return call


def _query(runtime: Runtime, contract: str, function: str) -> _Call:
    async def call(_: Any, ctx: fabric.TransactionContext, argument: str) -> str:
        context = FabricContext(runtime.network, None, b"", ctx.get_stub(), writable=False)
        try:
            answer = await runtime.answer(context, contract, function, _from_hex(argument))
        except ReadFault as fault:
            raise _unreadable(fault) from fault.error
        if isinstance(answer, Reason):
            raise FabricRefusal(answer)
        return answer.hex()

    return call


def _decode(text: str) -> Transaction:
    try:
        return TRANSACTION_CODEC.decode(_from_hex(text))
    except MalformedError:
        raise FabricRefusal(Reason.MALFORMED) from None


def _from_hex(text: str) -> bytes:
    try:
        return bytes.fromhex(text)
    except ValueError:
        raise FabricRefusal(Reason.MALFORMED) from None


def _time_ms(stub: Any) -> int:
    timestamp = stub.get_tx_timestamp()
    return int(timestamp.seconds) * 1000 + int(timestamp.nanos) // 1_000_000


def _unreadable(fault: ReadFault) -> BcamiError:
    return BcamiError(f"the peer's state could not be read: {fault}", do="look at the peer's log and try again")
