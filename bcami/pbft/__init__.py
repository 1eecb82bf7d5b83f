"""PBFT as a pure step machine: `Replica` takes inputs and returns effects (design D3, D4)."""

from bcami.pbft.effects import (
    Broadcast,
    CancelTimer,
    Certified,
    Decided,
    Effect,
    Forget,
    Halt,
    NeedBlocks,
    Observe,
    Persist,
    Relay,
    SendTo,
    SetTimer,
    TellStatus,
)
from bcami.pbft.inputs import (
    BlockCertified,
    CertificateReady,
    Executed,
    Input,
    PeerStatus,
    Received,
    Synced,
    TimerFired,
)
from bcami.pbft.lanes import lanes_after
from bcami.pbft.records import Restored, fresh
from bcami.pbft.replica import Replica

__all__ = [
    "BlockCertified",
    "Broadcast",
    "CancelTimer",
    "CertificateReady",
    "Certified",
    "Decided",
    "Effect",
    "Executed",
    "Forget",
    "Halt",
    "Input",
    "NeedBlocks",
    "Observe",
    "PeerStatus",
    "Persist",
    "Received",
    "Relay",
    "Replica",
    "Restored",
    "SendTo",
    "SetTimer",
    "Synced",
    "TellStatus",
    "TimerFired",
    "fresh",
    "lanes_after",
]
