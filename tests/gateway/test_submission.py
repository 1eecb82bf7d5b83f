"""Submission: JSON and msgpack, one and many, receipts that verify from genesis only."""

from pathlib import Path

import pytest

from tests.gateway.station import form, scene

pytestmark = pytest.mark.anyio


async def test_smoke(tmp_path: Path) -> None:
    async with scene(tmp_path, meters=2) as (station, meters):
        answer = await station.submit(*(meter.report() for meter in meters))
        print(answer)
        r = await station.http.post("/v1/transaction", json=form(meters[0].report()))
        print(r.status_code, r.text)
        for path in ("/v1/status", "/readyz", "/v1/period", "/v1/blocks/1", "/v1/history/" + "00"):
            r = await station.http.get(path)
            print(path, r.status_code, r.text[:300])
