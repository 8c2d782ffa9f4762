"""The process beside the kernel: it forwards every message and records what the kernel said."""
