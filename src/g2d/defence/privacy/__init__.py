"""Private mode (`[privacy] enabled`): what reads people's records, and what that is charged."""

from g2d.defence.privacy.mode import check_adopting, check_mode, check_private, shield_of
from g2d.defence.privacy.stamps import STAMP, stamp

__all__ = ["STAMP", "check_adopting", "check_mode", "check_private", "shield_of", "stamp"]
