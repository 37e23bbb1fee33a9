"""The check of an upload: a process of its own that validates and compiles it within hard limits."""
