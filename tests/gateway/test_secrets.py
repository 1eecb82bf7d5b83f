"""Private keys never appear: not in logs, answers, ledgers, promises or errors (design D8).

Every scalar that any party or the node makes during a registration and a session of usage is noted as it is made, the
HPKE contexts too; then everything that came out of the node is searched for each of them, in every common spelling.
That the search finds things is shown with what is public.
"""

import base64
import logging
import pickle
import sys
import traceback
from collections.abc import Callable, Iterator
from io import StringIO
from pathlib import Path
from types import SimpleNamespace

import httpx
import msgspec
import pytest

from bcami.codec import encode
from bcami.crypto import keyfile, native
from bcami.crypto.hpke import KemSecretKey, _Context
from bcami.crypto.keys import SecretKey, load_secret, save_secret
from bcami.crypto.opaque import Opaque, Scalar
from bcami.ledger.environment import DATA_FILE
from bcami.model import events
from bcami.model.registration import ContributionRequest
from bcami.model.report import Reading, encode_report
from bcami.processes.logs import Repetition, start_logging
from bcami.processes.node import NodeProcess
from tests.gateway.station import TOKEN, Station, form
from tests.simulation.cluster import entropy

pytestmark = pytest.mark.anyio
ENERGY = 0x0BAD_CAFE_F00D


class Noted:
    """All secrets that were made, and all that came out."""

    def __init__(self) -> None:
        self.secrets: dict[bytes, str] = {}
        self.keys: list[Opaque] = []
        self.out: list[tuple[str, bytes]] = []

    def add(self, name: str, secret: bytes) -> None:
        self.secrets.setdefault(secret, name)

    def came_out(self, where: str, data: str | bytes) -> None:
        self.out.append((where, data.encode() if isinstance(data, str) else data))

    def found(self, secret: bytes) -> list[str]:
        """Return where a secret came out, and how it was spelt."""
        spelt = spellings(secret)
        return [f"{where} as {how}" for where, data in self.out for how, text in spelt.items() if text in data]


def spellings(secret: bytes) -> dict[str, bytes]:
    """Return the ways in which bytes get into text; of base64 the part that does not depend on what stands around."""
    spelt = {
        "bytes": secret,
        "reversed bytes": secret[::-1],
        "hex": secret.hex().encode(),
        "capital hex": secret.hex().upper().encode(),
        "repr": repr(secret)[2:-1].encode(),
        "decimal": str(int.from_bytes(secret, "big")).encode(),
        "list": str(list(secret))[1:-1].encode(),
    }
    for offset in range(3):
        skip = (3 - offset) % 3
        kept = secret[skip : skip + (len(secret) - skip) // 3 * 3]
        spelt[f"base64 at {offset}"] = base64.b64encode(kept)
        spelt[f"base64url at {offset}"] = base64.urlsafe_b64encode(kept)
    return spelt


@pytest.fixture
def noted(monkeypatch: pytest.MonkeyPatch) -> Noted:
    """Note every private scalar and every HPKE context of this process from now on."""
    book = Noted()
    adopt = Scalar.__dict__["_adopt"].__func__
    restore = _Context.__dict__["_restore"].__func__

    def adopted(cls: type[Scalar], scalar: object) -> Scalar:
        key = adopt(cls, scalar)
        book.add(cls.__name__, native.scalar_bytes(scalar))
        book.keys.append(key)
        return key

    def restored(cls: type[_Context], stored: bytes) -> _Context:
        context = restore(cls, stored)
        for name, part in (("HPKE key", stored[1:17]), ("HPKE nonce", stored[17:29]), ("HPKE exporter", stored[29:])):
            book.add(name, part)
        book.keys.append(context)
        return context

    monkeypatch.setattr(Scalar, "_adopt", classmethod(adopted))
    monkeypatch.setattr(_Context, "_restore", classmethod(restored))
    return book


class LoggedStation(Station):
    """A station whose observations are logged by the node process's own code."""

    def _observe(self, observation: events.Observation) -> None:
        super()._observe(observation)
        logged = SimpleNamespace(
            _service=SimpleNamespace(observe=lambda item: None),
            _evidence=SimpleNamespace(observe=lambda item: None),
            _log=self.log,
            _repetition=Repetition(apart_s=0.0),
        )
        NodeProcess._observe(logged, observation)


@pytest.fixture
def log() -> Iterator[StringIO]:
    """The logs of every library at their most talkative; the test also points standard output here."""
    text = StringIO()
    handler = logging.StreamHandler(text)
    root = logging.getLogger()
    before = root.level
    root.addHandler(handler)
    root.setLevel(logging.DEBUG)
    yield text
    root.setLevel(before)
    root.removeHandler(handler)


async def use_everything(station: Station, noted: Noted) -> None:
    """Register the MDMS and a meter twice, report, and ask for all there is, good and bad."""
    requests: list[ContributionRequest] = []
    contribute = station.core.contribute

    def noting(request: ContributionRequest, now_ms: int) -> object:
        requests.append(request)
        return contribute(request, now_ms)

    station.cores = [SimpleNamespace(contribute=noting)]
    await station.open_period()
    meter = await station.meter("a")
    report = meter.report(ENERGY)
    noted.add("reading", encode_report([Reading(1_356_998_400 + 1800, ENERGY)], 1800)[4:])
    await station.commit(report)
    http = station.http
    await http.post("/v1/transaction", json=form(meter.report(ENERGY)))
    await http.post("/v1/transaction", json=form(msgspec.structs.replace(report, sequence=9, argument=b"")))
    await http.post("/v1/transaction", json=form(msgspec.structs.replace(report, sequence=9)))
    await http.post("/v1/transaction", content=b"{")
    for request in requests:
        await http.post("/v1/contribute", content=encode(request))
        await http.post("/v1/contribute", content=encode(msgspec.structs.replace(request, session=99)))
    await station.open_period()
    for accept in ("application/json", "application/msgpack"):
        for path in (
            "/v1/genesis",
            "/v1/period",
            "/v1/status",
            "/metrics",
            "/healthz",
            "/v1/released",
            f"/v1/transactions/{station.id_of(report).hex()}",
            f"/v1/meters/{meter.hid.hex()}",
            f"/v1/query/registration/meter?argument={meter.hid.hex()}",
            f"/v1/history/{(b'registration/current/' + meter.hid).hex()}",
            "/v1/operator/evidence",
            *(f"/v1/blocks/{height}" for height in range(1, station.ledger.height + 1)),
        ):
            await http.get(path, headers={"accept": accept})
    await http.get("/v1/operator/evidence", headers={"authorization": f"Bearer {TOKEN}"})


def failures(folder: Path, noted: Noted) -> Iterator[Callable[[], object]]:
    """What goes wrong with keys in the hands of a careless programmer, or on a damaged disk."""
    for key in list(noted.keys):
        yield lambda key=key: pickle.dumps(key)
        yield lambda key=key: key == key
        yield lambda key=key: int(f"{key}")
        yield lambda key=key: msgspec.json.encode({"key": key})
    key = SecretKey.generate(entropy("on disk"))
    path = folder / "some.key"
    save_secret(path, key, "consensus")
    yield lambda: load_secret(path, "utility")
    yield lambda: save_secret(path, key, "consensus")
    path.chmod(0o644)
    yield lambda: load_secret(path, "consensus")
    path.chmod(0o600)
    path.write_bytes(path.read_bytes().replace(b"a", b"b").replace(b"1", b"2"))
    yield lambda: load_secret(path, "consensus")
    yield lambda: keyfile.read_secret(path, "consensus")
    yield lambda: key.sign(b"too short")
    yield lambda: SecretKey.from_scalar_bytes(bytes(32))
    yield lambda: KemSecretKey.generate(b"short")
    key.destroy()
    yield lambda: key.sign(bytes(32))


async def test_no_private_key_is_on_a_ledger_in_a_log_in_an_answer_or_in_an_error(
    noted: Noted, log: StringIO, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def answered(response: httpx.Response) -> None:
        await response.aread()
        noted.came_out(f"{response.request.method} {response.request.url.path}", response.content)
        noted.came_out("headers", repr(response.headers.raw))

    monkeypatch.setattr(sys, "stdout", log)
    station = LoggedStation(tmp_path)
    station.log = start_logging("node1")
    noted.add("contribution secret", station.contribution_secret)
    noted.add("operator token", TOKEN.encode())
    async with station:
        station.http.event_hooks = {"response": [answered]}
        await use_everything(station, noted)
    for failure in failures(tmp_path, noted):
        try:
            failure()
        except Exception:
            noted.came_out("an error", traceback.format_exc())
    noted.came_out("the log", log.getvalue())
    noted.came_out("representations", repr([repr(key) + str(key) for key in noted.keys]))
    noted.came_out("representations", repr((station, station.core, station.service.driver, vars(station.identities))))
    for store in ("ledger", "promises"):
        noted.came_out(f"the {store}", (tmp_path / store / DATA_FILE).read_bytes())

    kinds = set(noted.secrets.values())
    assert kinds >= {"SecretKey", "KemSecretKey", "HPKE key", "HPKE nonce", "HPKE exporter", "reading"}
    assert len(noted.secrets) > 30
    assert {where for where, _ in noted.out} >= {"POST /v1/contribute", "an error", "the log"}
    assert b'"event": "block_executed"' in log.getvalue().encode()
    places = noted.found(station.mdms.key.public_key)
    assert {"the ledger as bytes", "GET /v1/period as bytes", "GET /v1/period as hex"} <= set(places)
    for secret, name in noted.secrets.items():
        assert noted.found(secret) == [], name


async def test_a_bug_in_a_node_shows_no_key(noted: Noted, monkeypatch: pytest.MonkeyPatch) -> None:
    station = Station()
    noted.add("contribution secret", station.contribution_secret)
    async with station:
        enrol = station.utility.enrol(station.unregistered("a"))

        def broken(now_ms: int) -> list:
            signer, secret = station.identities.consensus[0], station.contribution_secret
            raise RuntimeError(f"{signer} cannot be used with {len(secret)} bytes")

        monkeypatch.setattr(station.core, "work", broken)
        response = await station.http.post("/v1/transaction", json=form(enrol), params={"timeout_ms": 50})
        assert response.json()["status"] == "unknown"
        again = await station.http.post("/v1/transaction", json=form(enrol))
        assert (again.status_code, again.json()["reason"]) == (503, "not_ready")
        [error] = station.fatal
        station.fatal = []
    assert error.exit_code == 70
    assert "RuntimeError" in str(error)
    noted.came_out("the fatal error", str(error) + repr(error))
    for secret, name in noted.secrets.items():
        assert noted.found(secret) == [], name
