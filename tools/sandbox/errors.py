"""The sandbox's one error."""


class SandboxError(Exception):
    """What could not be done and why, in one sentence, "cannot X: why"."""
