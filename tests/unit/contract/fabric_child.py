"""Runs the contracts in fabric-chaincode-python's own dispatcher over a fake stub; started by test_fabric.py.

A process of its own, because importing that package changes the root logger. Reads a `Script` from stdin and writes a
list of `Answer` to stdout.
"""

import asyncio
import logging
import sys
from collections.abc import AsyncIterator
from types import SimpleNamespace

import msgspec

from bcami.codec import encode
from bcami.contract.fabric import fabric_chaincode
from bcami.contract.package import load_package
from bcami.model.genesis import Genesis
from tests.unit.contract.world import CHAINCODE


class Call(msgspec.Struct, array_like=True):
    function: str
    argument: str
    time_ms: int


class Script(msgspec.Struct, array_like=True):
    genesis: Genesis
    calls: list[Call]


class Answer(msgspec.Struct, array_like=True):
    status: int
    text: str
    writes: dict[str, bytes | None]


class Stub:
    """World state as Fabric shows it: reads see committed state, writes are kept apart until the proposal is done."""

    def __init__(self, state: dict[str, bytes], call: Call) -> None:
        self.state = state
        self.call = call
        self.writes: dict[str, bytes | None] = {}

    def get_function_and_parameters(self):
        return self.call.function, [self.call.argument]

    def get_creator(self):
        return {"mspid": "Org1MSP", "idBytes": b""}

    def get_tx_timestamp(self):
        return SimpleNamespace(seconds=self.call.time_ms // 1000, nanos=self.call.time_ms % 1000 * 1_000_000 + 999)

    async def get_state(self, key: str) -> bytes:
        await asyncio.sleep(0)  # really waits, as a peer's answer does
        return self.state.get(key, b"")

    async def get_state_by_range(self, start: str, end: str) -> AsyncIterator[SimpleNamespace]:
        async def entries() -> AsyncIterator[SimpleNamespace]:
            for key in sorted(self.state):
                if start <= key < end:
                    await asyncio.sleep(0)
                    yield SimpleNamespace(key=key, value=self.state[key])

        return entries()

    async def put_state(self, key: str, value: bytes) -> None:
        self.writes[key] = value

    async def delete_state(self, key: str) -> None:
        self.writes[key] = None


async def run(script: Script) -> list[Answer]:
    chaincode = fabric_chaincode(load_package(CHAINCODE, script.genesis.chaincode_package), script.genesis)
    state: dict[str, bytes] = {}
    answers = []
    for call in script.calls:
        stub = Stub(state, call)
        response = await chaincode.invoke(stub)
        if response.status == 200:
            for key, value in stub.writes.items():
                if value is None:
                    state.pop(key, None)
                else:
                    state[key] = value
        answers.append(Answer(response.status, response.message or response.payload.decode(), stub.writes))
    return answers


if __name__ == "__main__":
    logging.disable()
    script = msgspec.msgpack.decode(sys.stdin.buffer.read(), type=Script)
    sys.stdout.buffer.write(encode(asyncio.run(run(script))))
