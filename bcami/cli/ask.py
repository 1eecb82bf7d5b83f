"""Asks running nodes and the MDMS for JSON, on behalf of commands that show something."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final

import httpx

from bcami.config import Network, NodeAddress
from bcami.errors import EnvironmentFault, InputError
from bcami.paths import HomePaths
from bcami.processes.home import load_operator_token, open_home
from bcami.processes.identity import running
from bcami.processes.supervisor import last_log_lines

_TIMEOUT_S: Final = 30.0
_OF_THE_INPUT: Final = (httpx.codes.NOT_FOUND, httpx.codes.CONFLICT)
_JSON: Final = {"accept": "application/json"}


@contextmanager
def http_client() -> Iterator[httpx.Client]:
    """Yield a client that talks to this network only: no proxy from the environment, no redirects."""
    with httpx.Client(timeout=_TIMEOUT_S, trust_env=False, headers=_JSON) as client:
        yield client


def running_nodes(home: HomePaths, network: Network) -> list[NodeAddress]:
    """Return the nodes that run. Raises EnvironmentFault when none does."""
    found = [node for node in network.nodes if running(home.node(node.name).pid) is not None]
    if not found:
        raise EnvironmentFault("no node is running", where=str(home.folder), do="bcami up --detach")
    return found


def running_mdms(home: HomePaths, network: Network) -> str:
    """Return the URL of the MDMS. Raises EnvironmentFault with its last log lines when it does not run."""
    if running(home.mdms_pid) is None:
        lines = "".join(f"\n    {line}" for line in last_log_lines(home.mdms_log, 5))
        what = "the MDMS is not running" + (f"; last lines of {home.mdms_log}:{lines}" if lines else "")
        raise EnvironmentFault(what, do="bcami up --detach mdms")
    return network.mdms.url


def mdms_get(home: HomePaths, path: str, *, as_operator: bool = False, **options: Any) -> dict[str, Any]:
    """Return what the MDMS of a home answers, with the operator's token when it is needed."""
    network, _ = open_home(home)
    url = running_mdms(home, network)
    headers = _bearer(home) if as_operator else {}
    with http_client() as client:
        return get_json(client, url, path, headers=headers, **options)


def mdms_post(home: HomePaths, path: str, body: dict[str, Any]) -> dict[str, Any]:
    """Return what the MDMS of a home answers to an operator's command."""
    network, _ = open_home(home)
    url = running_mdms(home, network)
    with http_client() as client:
        return post_json(client, url, path, json=body, headers=_bearer(home))


def _bearer(home: HomePaths) -> dict[str, str]:
    return {"authorization": f"Bearer {load_operator_token(home)}"}


def get_json(client: httpx.Client, url: str, path: str, *, absent: str = "", **options: Any) -> dict[str, Any]:
    """Return the JSON object at a path. Raises InputError with the text `absent` when there is none (404)."""
    return _answered(client, "GET", url + path, absent, options)


def post_json(client: httpx.Client, url: str, path: str, *, absent: str = "", **options: Any) -> dict[str, Any]:
    return _answered(client, "POST", url + path, absent, options)


def delete_json(client: httpx.Client, url: str, path: str, *, absent: str = "", **options: Any) -> dict[str, Any]:
    return _answered(client, "DELETE", url + path, absent, options)


def _answered(client: httpx.Client, method: str, address: str, absent: str, options: dict[str, Any]) -> dict[str, Any]:
    try:
        answer = client.request(method, address, **options)
    except httpx.HTTPError as error:
        raise EnvironmentFault(
            f"no answer: {type(error).__name__} {error}".rstrip(), where=f"{method} {address}", do="bcami status"
        ) from None
    if answer.status_code == httpx.codes.NOT_FOUND and absent:
        raise InputError(absent)
    try:
        told = answer.json()
    except ValueError:
        told = None
    if answer.status_code == httpx.codes.BAD_REQUEST and isinstance(told, dict):
        raise InputError(str(told.get("detail")), where=told.get("where", ""), do=told.get("do", ""))
    if answer.status_code == httpx.codes.UNPROCESSABLE_ENTITY and isinstance(told, dict):
        raise InputError(_not_taken(told.get("detail")), where=f"{method} {address}")
    if answer.status_code in _OF_THE_INPUT and isinstance(told, dict):
        raise InputError(str(told.get("detail")), where=f"{method} {address}")
    if answer.status_code != httpx.codes.OK or not isinstance(told, dict):
        detail = told.get("detail", told) if isinstance(told, dict) else answer.text[:200]
        raise EnvironmentFault(f"HTTP {answer.status_code}: {detail}", where=f"{method} {address}", do="bcami doctor")
    return told


def _not_taken(detail: Any) -> str:
    """Return in words which arguments are outside what they may be."""
    if not isinstance(detail, list):
        return str(detail)
    return "; ".join(f"{_field(fault)}: {fault.get('msg')}" for fault in detail if isinstance(fault, dict))


def _field(fault: dict[str, Any]) -> str:
    """Return the name of the argument that a fault is about; numbers in its place are those of list items."""
    return next((name for name in reversed(fault.get("loc", ())) if isinstance(name, str)), "request")
