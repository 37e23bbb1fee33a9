"""The runner: loads a compiled module, locks itself, and runs it."""
