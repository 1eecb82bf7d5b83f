"""Where everything in a network's home lies."""

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class NodePaths:
    """Where one node's files lie."""

    folder: Path

    @property
    def consensus_key(self) -> Path:
        return self.folder / "consensus.key"

    @property
    def contribution_key(self) -> Path:
        return self.folder / "contribution.key"

    @property
    def tls_key(self) -> Path:
        return self.folder / "tls.key"

    @property
    def promises(self) -> Path:
        return self.folder / "promises"

    @property
    def ledger(self) -> Path:
        return self.folder / "ledger"

    @property
    def evidence(self) -> Path:
        return self.folder / "evidence"

    @property
    def log(self) -> Path:
        return self.folder / "node.log"

    @property
    def pid(self) -> Path:
        return self.folder / "node.pid"


@dataclass(frozen=True, slots=True)
class HomePaths:
    """Where everything in a network's home lies."""

    folder: Path

    @property
    def network(self) -> Path:
        return self.folder / "network.toml"

    @property
    def genesis(self) -> Path:
        return self.folder / "genesis.bin"

    @property
    def operator_token(self) -> Path:
        return self.folder / "operator.token"

    @property
    def chaincode(self) -> Path:
        return self.folder / "chaincode"

    @property
    def certificates(self) -> Path:
        return self.folder / "certificates"

    @property
    def utility(self) -> Path:
        return self.folder / "utility"

    @property
    def mdms(self) -> Path:
        return self.folder / "mdms"

    @property
    def mdms_log(self) -> Path:
        return self.mdms / "mdms.log"

    @property
    def mdms_pid(self) -> Path:
        return self.mdms / "mdms.pid"

    @property
    def fleet(self) -> Path:
        return self.folder / "fleet"

    @property
    def runs(self) -> Path:
        return self.folder / "runs"

    def certificate(self, name: str) -> Path:
        return self.certificates / f"{name}.pem"

    def node(self, name: str) -> NodePaths:
        return NodePaths(self.folder / "nodes" / name)
