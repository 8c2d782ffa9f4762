"""The defaults of what can be set, in one place: the extension's traits, the provisioner and the command share them."""

HOLD_TIMEOUT = 2.0  # s
FLUSH_INTERVAL = 0.03  # s
SAVE_INTERVAL = 8.0  # s
RUNS_PER_CELL = 10
ORPHAN_TIMEOUT = 24 * 3600.0  # s
