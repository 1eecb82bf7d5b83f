"""The profile that a network was made with."""

from bcami.kms.hardened import HardenedProfile
from bcami.kms.paper import PaperProfile
from bcami.kms.profile import Profile, Scope


def make_profile(name: str, scope: Scope) -> Profile:
    """Return the profile of this name. In `paper`, M_i xor CDate is 0: no end has the other's metering data at hand.

    Raises ValueError when there is none.
    """
    if name == HardenedProfile.name:
        return HardenedProfile(scope)
    if name == PaperProfile.name:
        return PaperProfile()
    raise ValueError(f"no profile is called {name!r}")
