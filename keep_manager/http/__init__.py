"""The manager's HTTPS: one table of routes with who may use them, the original's commands and /v1."""
