"""Network definitions, and the resolved network of a home.

A *definition* (network/*.toml) is what a user writes; ports and hosts may be left out. `bcami init` resolves it to
`network.toml` in the home, in which every address stands. What decides outcomes is in genesis, not here: these files
only say where processes listen and how fast blocks are released.
"""

from pathlib import Path
from typing import Annotated, Final, Literal

from pydantic import Field

from bcami.errors import EnvironmentFault, InputError
from bcami.paths import HomePaths
from bcami.toml_file import Record, load_record, nearest

BASE_PORT_DEFAULT: Final = 27_100
"""Below the range from which Linux takes the ports of outgoing connections."""
NODES_MAX: Final = 64
RELEASE_SECONDS_DEFAULT: Final = 2.0
RELEASE_BLOCKS_DEFAULT: Final = 64
KMS_DEGREE_DEFAULT: Final = 4
KMS_DEGREE_MIN: Final = 2
KMS_DEGREE_MAX: Final = 64

_Name = Annotated[str, Field(pattern="^[a-z][a-z0-9_-]*$", max_length=32)]
_Port = Annotated[int, Field(ge=1, le=65_535)]
_Host = Annotated[str, Field(min_length=1, max_length=253)]
_Seconds = Annotated[float, Field(ge=0, le=86_400 * 365)]


class NodeAddress(Record):
    """Where one node listens."""

    name: _Name
    host: _Host
    peer_port: _Port
    """Mutual TLS between nodes."""
    http_port: _Port
    """The gateway, for meters, operators and the MDMS."""

    @property
    def url(self) -> str:
        return _url(self.host, self.http_port)


class MdmsAddress(Record):
    """Where the MDMS listens."""

    host: _Host
    http_port: _Port

    @property
    def url(self) -> str:
        return _url(self.host, self.http_port)


class KmsPolicy(Record):
    """How the MDMS's symmetric keys work; fixed when the network is made, the same at both ends (design D15)."""

    profile: Literal["hardened", "paper"] = "hardened"
    rekeying: Literal["lkh", "flat"] = "lkh"
    degree: Annotated[int, Field(ge=KMS_DEGREE_MIN, le=KMS_DEGREE_MAX)] | None = None
    """Children of an inner node of `lkh`; 4 when left out. `flat` has none."""

    @property
    def tree_degree(self) -> int:
        """Return the degree, 0 for the star of `flat`."""
        return 0 if self.rekeying == "flat" else self.degree or KMS_DEGREE_DEFAULT


class _Policy(Record):
    """What both a definition and a resolved network say."""

    name: _Name
    release_seconds: _Seconds = RELEASE_SECONDS_DEFAULT
    """A block is released when its certificate is this old (design D11) …"""
    release_blocks: Annotated[int, Field(ge=1)] = RELEASE_BLOCKS_DEFAULT
    """… or when this many newer certificates exist."""
    retention_seconds: _Seconds | None = None
    """Usage payloads are pruned when they are acknowledged and this old (protocol 7.2); None keeps them."""
    kms: KmsPolicy = KmsPolicy()


class Network(_Policy):
    """A resolved network: `network.toml` in a home. The place of a node in `nodes` is its replica id."""

    nodes: Annotated[tuple[NodeAddress, ...], Field(strict=False, min_length=1, max_length=NODES_MAX)]
    mdms: MdmsAddress

    def node(self, name: str) -> NodeAddress:
        """Return the node of that name. Raises InputError naming the nearest."""
        for node in self.nodes:
            if node.name == name:
                return node
        names = [node.name for node in self.nodes]
        raise InputError(f"no node is called {name!r}", do=nearest(name, names) or f"nodes: {', '.join(names)}")

    def replica(self, name: str) -> int:
        return self.nodes.index(self.node(name))


class DefinedNode(Record):
    """A node of a definition; what is left out is filled from `base_port`."""

    name: _Name
    host: _Host = "127.0.0.1"
    peer_port: _Port | None = None
    http_port: _Port | None = None


class DefinedMdms(Record):
    host: _Host = "127.0.0.1"
    http_port: _Port | None = None


class Definition(_Policy):
    """What a user writes."""

    base_port: Annotated[int, Field(ge=1024, le=65_535 - 2 * NODES_MAX)] = BASE_PORT_DEFAULT
    nodes: Annotated[tuple[DefinedNode, ...], Field(strict=False, min_length=1, max_length=NODES_MAX)]
    mdms: DefinedMdms = DefinedMdms()
    parameters: dict[str, int] = Field(default_factory=dict)
    """Genesis parameters that differ from their defaults (`bcami.model.genesis.Parameters`)."""

    def resolve(self, base_port: int | None = None) -> Network:
        """Return the network with every address filled in."""
        base = self.base_port if base_port is None else base_port
        nodes = tuple(
            NodeAddress(
                name=node.name,
                host=node.host,
                peer_port=node.peer_port or base + 2 * place,
                http_port=node.http_port or base + 2 * place + 1,
            )
            for place, node in enumerate(self.nodes)
        )
        return Network(
            name=self.name,
            release_seconds=self.release_seconds,
            release_blocks=self.release_blocks,
            retention_seconds=self.retention_seconds,
            kms=self.kms,
            nodes=nodes,
            mdms=MdmsAddress(host=self.mdms.host, http_port=self.mdms.http_port or base + 2 * len(nodes)),
        )


def default_definition(nodes: int) -> Definition:
    """Return a definition of that many nodes on this machine, named node1, node2 and so on."""
    if not 1 <= nodes <= NODES_MAX:
        raise InputError(f"a network has 1 to {NODES_MAX} nodes, not {nodes}", where="--nodes")
    return Definition(name=f"local-{nodes}", nodes=tuple(DefinedNode(name=f"node{i + 1}") for i in range(nodes)))


def load_definition(path: Path) -> Definition:
    """Return the definition in a file. Raises InputError naming file, line, key and the nearest valid key."""
    definition = load_record(path, Definition)
    check_kms(definition.kms, str(path))
    _check_addresses(path, definition.resolve())
    return definition


def load_network(home: HomePaths) -> Network:
    """Return the resolved network of a home. Raises InputError, or EnvironmentFault when there is none."""
    if not home.network.is_file():
        raise EnvironmentFault(
            "there is no network here",
            where=str(home.folder),
            likely="`bcami init` did not run for this home",
            do=f"bcami init --home {home.folder}",
        )
    network = load_record(home.network, Network)
    check_kms(network.kms, str(home.network))
    _check_addresses(home.network, network)
    return network


def check_kms(policy: KmsPolicy, where: str) -> None:
    """Raises InputError when what is said of the symmetric keys does not go together."""
    if policy.rekeying == "flat" and policy.degree is not None:
        raise InputError(
            "flat rekeying has no tree, and so no degree",
            where=where,
            do="leave the degree out, or choose lkh",
        )


def network_text(network: Network) -> str:
    """Return the TOML of a resolved network."""
    lines = [
        "# Where the processes of this network listen. Made by `bcami init`; what decides outcomes is in genesis.bin.",
        f'name = "{network.name}"',
        f"release_seconds = {network.release_seconds}",
        f"release_blocks = {network.release_blocks}",
    ]
    if network.retention_seconds is not None:
        lines.append(f"retention_seconds = {network.retention_seconds}")
    for node in network.nodes:
        lines += ["", "[[nodes]]", f'name = "{node.name}"', f'host = "{node.host}"']
        lines += [f"peer_port = {node.peer_port}", f"http_port = {node.http_port}"]
    lines += ["", "[mdms]", f'host = "{network.mdms.host}"', f"http_port = {network.mdms.http_port}"]
    lines += ["", "# Fixed for the life of the network: both ends keep their keys by it."]
    lines += ["[kms]", f'profile = "{network.kms.profile}"', f'rekeying = "{network.kms.rekeying}"']
    if network.kms.degree is not None:
        lines.append(f"degree = {network.kms.degree}")
    return "\n".join(lines) + "\n"


def addresses(network: Network) -> list[tuple[str, str, int]]:
    """Return (whose, host, port) of every socket that the network listens on."""
    listed = [(f"{node.name} (peers)", node.host, node.peer_port) for node in network.nodes]
    listed += [(f"{node.name} (http)", node.host, node.http_port) for node in network.nodes]
    return [*listed, ("mdms (http)", network.mdms.host, network.mdms.http_port)]


def _check_addresses(path: Path, network: Network) -> None:
    names = [node.name for node in network.nodes]
    doubled = next((name for name in names if names.count(name) > 1), None)
    if doubled is not None:
        raise InputError(f"two nodes are called {doubled!r}", where=str(path))
    taken: dict[tuple[str, int], str] = {}
    for whose, host, port in addresses(network):
        other = taken.setdefault((host, port), whose)
        if other != whose:
            raise InputError(f"{other} and {whose} would both listen on {host}:{port}", where=str(path))


def _url(host: str, port: int) -> str:
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
