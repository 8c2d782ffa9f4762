"""The defaults of what can be set, and our name, for the extension, the provisioner and the commands alike."""

PROVISIONER = "output-keeper"  # the entry point of the provisioner, and what jupyter_client knows it by
HOLD_TIMEOUT = 2.0  # s
FLUSH_INTERVAL = 0.03  # s
SAVE_INTERVAL = 8.0  # s
RUNS_PER_CELL = 10
ORPHAN_TIMEOUT = 24 * 3600.0  # s
