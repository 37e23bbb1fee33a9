"""The app-loader: receives one workload over mutual TLS, has it checked, and becomes the process that runs it.

`receive` is the upload endpoint, `check` the process that validates and compiles an upload, `run` the runner.
Import rule: the standard library and keep_protocol; wasmtime in parts of `check` and `run`
alone, which run in processes of their own. Before LISTENING is reported neither `typing` nor `dataclasses` may be
imported (10 ms).
"""
