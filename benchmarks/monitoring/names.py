"""What the searches before a monitor are called; imported by tables, which load no monitor."""

ATTACKS = {
    "square": "plain Square",
    "hop-skip-jump": "HopSkipJump",
    "accounts": "Square, twenty accounts in turn",
    "jitter 0.25": "Square, jitter of a quarter of eps",
    "jitter 1": "Square, jitter of eps",
    "oars": "Square, OARS with a copy of the monitor",
}
