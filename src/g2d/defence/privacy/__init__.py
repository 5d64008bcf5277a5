"""Private mode (`[privacy] enabled`): what reads people's records, and what that is charged."""

from g2d.defence.privacy.mode import apart, check_adopting, check_mode, shield_of
from g2d.defence.privacy.stamps import STAMP, stamp

__all__ = ["STAMP", "apart", "check_adopting", "check_mode", "shield_of", "stamp"]
