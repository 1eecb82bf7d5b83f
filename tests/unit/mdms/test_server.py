"""The MDMS's HTTP API, in process."""

import asyncio

import httpx
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from bcami.errors import InputError
from bcami.mdms.duckdb_queries import DuckDbQueries
from bcami.mdms.keyring import PeriodKeyring
from bcami.mdms.metrics import MdmsMetrics
from bcami.mdms.server import create_app, parse_time
from bcami.mdms.service import MdmsService
from bcami.model.report import Reading
from tests.chain import NETWORK_KEY
from tests.unit.mdms.conftest import World

T0 = 1_356_998_400
TOKEN = {"authorization": "Bearer secret-token"}


class Api:
    def __init__(self, world: World, folder) -> None:
        self.world = world
        self.folder = folder
        self.service = MdmsService(
            pid=7,
            url="http://127.0.0.1:1",
            folder=folder,
            store=world.store,
            queries=DuckDbQueries(world.store),
            keyring=PeriodKeyring(folder / "periods"),
            metrics=MdmsMetrics(),
            network_key=NETWORK_KEY,
            operator_token="secret-token",
            now_ms=lambda: 5,
            released_height=lambda: 3,
            following=lambda: self.following,
        )
        self.following = True
        self.app = create_app(self.service)

    def call(self, method: str, path: str, *, client: str = "127.0.0.1", **options) -> httpx.Response:
        async def run() -> httpx.Response:
            transport = httpx.ASGITransport(self.app, client=(client, 1))
            async with httpx.AsyncClient(transport=transport, base_url="http://mdms") as http:
                return await http.request(method, path, **options)

        return asyncio.run(run())

    def get(self, path: str, **params):
        response = self.call("GET", path, params=params)
        assert response.status_code == 200, response.text
        return response.json()


@pytest.fixture
def api(world: World, tmp_path) -> Api:
    energies = [1_0000000 + place for place in range(48)]
    energies[5] = -3
    readings = [Reading(T0 + place * 1800, energy) for place, energy in enumerate(energies) if place != 10]
    world.chain.block([world.meter.report(readings), world.meter.report([Reading(T0, 9)], altered=True)])
    world.follower().follow(world.chain.bundles)
    made = Api(world, tmp_path)
    assert made.call("POST", "/v1/directory", json={"meters": ["MAC000002"]}, headers=TOKEN).json() == {"changed": 1}
    return made


def test_status(api: Api) -> None:
    status = api.get("/v1/status")
    height = api.world.chain.height
    assert status["pid"] == 7
    assert (status["height"], status["readings"], status["undecryptable"]) == (height, 47, 1)
    assert (status["acknowledged_height"], status["period"], status["released_height"]) == (0, None, height)
    assert api.call("GET", "/v1/status", client="10.1.1.1").status_code == 200


def test_meters(api: Api) -> None:
    body = api.get("/v1/meters")
    assert body["next_after"] is None
    first, second = body["meters"]
    assert (first["meter_id"], first["readings"], first["first"]) == (None, 0, None)
    assert (second["meter_id"], second["readings"]) == ("MAC000002", 47)
    assert (second["first"], second["last"]) == ("2013-01-01T00:00:00Z", "2013-01-01T23:30:00Z")
    assert api.get("/v1/meters", limit=1)["next_after"] == 1
    assert api.get("/v1/meters/MAC000002") == second
    assert api.get(f"/v1/meters/{second['hid']}") == second


def test_readings(api: Api) -> None:
    rows = api.get("/v1/meters/MAC000002/readings")["readings"]
    assert len(rows) == 47
    assert rows[0] == {
        "start": "2013-01-01T00:00:00Z",
        "start_s": T0,
        "interval_s": 1800,
        "energy": 10000000,
        "kwh": "1.0000000",
        "flags": [],
        "height": api.world.chain.height,
        "place": 0,
    }
    assert (rows[5]["kwh"], rows[5]["flags"]) == ("-0.0000003", ["negative"])
    assert rows[10]["flags"] == ["after_gap"]
    part = api.get("/v1/meters/MAC000002/readings", **{"from": "2013-01-01T01:00", "to": str(T0 + 7200)})
    assert [row["start_s"] - T0 for row in part["readings"]] == [3600, 5400]
    page = api.get("/v1/meters/MAC000002/readings", limit=10)
    rest = api.get("/v1/meters/MAC000002/readings", **{"from": page["next_from"]})
    assert page["readings"] + rest["readings"] == rows


def test_profile_and_gaps(api: Api) -> None:
    slots = api.get("/v1/meters/MAC000002/profile")["slots"]
    assert len(slots) == 47
    assert slots[1] == {
        "time": "00:30",
        "readings": 1,
        "mean_kwh": "1.0000001",
        "min_kwh": "1.0000001",
        "max_kwh": "1.0000001",
    }
    gap = {"meter_id": "MAC000002", "start": "2013-01-01T05:00:00Z", "end": "2013-01-01T05:30:00Z", "intervals": 1}
    assert api.get("/v1/gaps") == {"gaps": [gap], "truncated": False}
    assert api.get("/v1/gaps", meter="MAC000002", limit=1) == {"gaps": [gap], "truncated": True}


def test_unreadable(api: Api) -> None:
    (row,) = api.get("/v1/unreadable")["reports"]
    assert (row["fault"], row["height"], row["place"]) == ("not_authentic", api.world.chain.height, 1)


def test_arrow_stream(api: Api) -> None:
    response = api.call("GET", "/v1/readings.arrow")
    table = pa.ipc.open_stream(response.content).read_all()
    assert table.schema.names == ["meter_id", "start_s", "energy"]
    assert table.num_rows == 47
    assert set(table.column("meter_id").to_pylist()) == {"MAC000002"}
    nobody = api.call("GET", "/v1/readings.arrow", params={"meters": "MAC1,MAC2"})
    assert pa.ipc.open_stream(nobody.content).read_all().num_rows == 0
    part = api.call("GET", "/v1/readings.arrow", params={"meters": "MAC000002", "from": T0 + 1, "to": T0 + 3601})
    assert pa.ipc.open_stream(part.content).read_all().num_rows == 2


def test_export(api: Api) -> None:
    answer = api.call("POST", "/v1/export", json={"path": "out.parquet"}, headers=TOKEN)
    assert answer.json() == {"path": str(api.folder / "out.parquet"), "readings": 47}
    table = pq.read_table(api.folder / "out.parquet")
    assert table.schema.names == ["meter_id", "start_s", "energy", "flags"]
    assert table.column("flags").to_pylist()[5] == 4
    wrong = api.call("POST", "/v1/export", json={"path": "nowhere/out.parquet"}, headers=TOKEN)
    assert wrong.status_code == 400
    assert "parquet" in wrong.json()["detail"]


def test_backup(api: Api) -> None:
    answer = api.call("POST", "/v1/backup", json={"path": "copy"}, headers=TOKEN)
    assert answer.json() == {"path": str(api.folder / "copy"), "height": api.world.chain.height}
    assert api.call("POST", "/v1/backup", json={"path": "copy"}, headers=TOKEN).status_code == 400


@pytest.mark.parametrize("path", ["/v1/export", "/v1/backup", "/v1/directory"])
def test_writing_needs_the_token(api: Api, path: str) -> None:
    body = {"path": "x.parquet", "meters": ["A"]}
    assert api.call("POST", path, json=body).status_code == 401
    assert api.call("POST", path, json=body, headers={"authorization": "Bearer wrong"}).status_code == 401


@pytest.mark.parametrize("path", ["/v1/meters", "/v1/meters/MAC000002/readings", "/v1/gaps", "/v1/readings.arrow"])
def test_readings_leave_the_machine_only_with_the_token(api: Api, path: str) -> None:
    assert api.call("GET", path, client="10.1.1.1").status_code == 401
    assert api.call("GET", path, client="10.1.1.1", headers=TOKEN).status_code == 200
    assert api.call("GET", path, client="::1").status_code == 200


def test_bad_requests_say_what_is_wrong(api: Api) -> None:
    assert api.call("GET", "/v1/meters/NOBODY").status_code == 404
    answer = api.call("GET", "/v1/gaps", params={"from": "yesterday"})
    assert answer.status_code == 400
    assert "yesterday" in answer.json()["detail"]
    assert api.call("GET", "/v1/meters", params={"limit": 0}).status_code == 422


def test_health_and_metrics(api: Api) -> None:
    assert api.call("GET", "/healthz").status_code == 200
    api.following = False
    assert api.call("GET", "/healthz").status_code == 503
    text = api.call("GET", "/metrics").text
    assert "bcami_mdms_readings_stored 47.0" in text
    assert "secret-token" not in text


def test_parse_time() -> None:
    assert parse_time("1356998400") == parse_time("2013-01-01") == parse_time("2013-01-01T01:00+01:00") == T0
    assert parse_time("1900-01-01") == 0
    assert parse_time("9" * 30) == 2**32
    with pytest.raises(InputError):
        parse_time("12:30 on monday")


def test_secrets_are_not_shown(api: Api) -> None:
    assert "secret-token" not in repr(api.service)
