"""The app-loader: receives one workload over mutual TLS, has it checked, and becomes the process that runs it.

`receive` is the upload endpoint, `check` the process that validates and compiles an upload, `run` the runner; `engine`
is wasmtime's library as those two use it, in processes of their own.
Import rule: the standard library, keep_isolation and keep_protocol. Before LISTENING is reported neither
`typing` nor `dataclasses` may be imported (10 ms).
"""
