"""The app-loader: receives one workload over mutual TLS, has it checked, and becomes the process that runs it.

Import rule: the standard library, keep_protocol and h11; wasmtime in `engine`, `checker` and `runner` alone, which run
in processes of their own. Before LISTENING is reported neither `typing` nor `dataclasses` may be imported (10 ms).
"""
