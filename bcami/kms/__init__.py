"""The symmetric key management of downstream messages, as pure step machines (design D15, protocol 8).

[KMS] Abdullah et al., Appl. Sci. 2023, 13, 8990; [WGL] Wong, Gouda, Lam, ToN 2000; [LYGL] Li et al., WWW 2001.

Keys. A meter shares k_i with the MDMS (unicast), k_0 with all meters (broadcast) and gk_j with the members of each
project that it takes part in (multicast). Each message has a session key of its own, from one of these, a counter and,
in the profile `hardened`, the whole header. Profiles `hardened` and `paper` stand behind one interface (`profile`);
rekeying strategies `lkh` and `flat` behind another (`keying`): degree 4 or more is a hierarchy, 0 the paper's star.

Machines. `KeyServer` is the MDMS's end, `MeterKeys` a meter's. Both take values and return a `Step`:

    writes   (table, key, value or None): make all of them durable together, or none
    sends    ToMeter, ToGroup, ToMdms: let them leave after that, in order; they may be lost, doubled, reordered
    events   Accepted (an application message, once), Delivered (acknowledged), Refused (with a Reason, to be counted)

A message for a group is for whom `KeyServer.groups.audience` names; that others hear it does no harm. All messages of
one meter may go through one queue, lossy or not: what counts is repeated until it is acknowledged.

What the driver owes: 32 fresh bytes wherever `entropy` is asked for; milliseconds of one clock; `tick` about once a
second; writes before sends. After each start of the MDMS it calls `restore` and then, once the chain has the
transaction, `open_epoch` with the height of its block; until then the machine answers `not_ready`. After each start of
a meter it calls `start`, and hands over what stands in the meter's inbox: a row is deleted, together with whatever the
application writes, once the application has the message. It tells a meter of an epoch only with a receipt
(`epoch_opened`).

Why starts drop keys: neither end can tell a restart from the restore of an old backup, and with an old counter it would
use a nonce twice or accept a message twice. So the MDMS opens a new epoch (its height cannot fall) and a meter asks for
a new user key under a fresh nonce. What was not acknowledged is sent again under the new keys, with the same id.
"""

from bcami.kms.bench import measure, measure_storage
from bcami.kms.choice import make_profile
from bcami.kms.hardened import HardenedProfile
from bcami.kms.meter import MeterKeys
from bcami.kms.paper import PaperProfile
from bcami.kms.profile import Profile, Scope
from bcami.kms.records import Accepted, Delivered, Refused, Step, ToGroup, ToMdms, ToMeter, Write
from bcami.kms.roll import Identity
from bcami.kms.server import DEGREE_DEFAULT, FOREVER_MS, KeyServer

__all__ = [
    "DEGREE_DEFAULT",
    "FOREVER_MS",
    "Accepted",
    "Delivered",
    "HardenedProfile",
    "Identity",
    "KeyServer",
    "MeterKeys",
    "PaperProfile",
    "Profile",
    "Refused",
    "Scope",
    "Step",
    "ToGroup",
    "ToMdms",
    "ToMeter",
    "Write",
    "make_profile",
    "measure",
    "measure_storage",
]
