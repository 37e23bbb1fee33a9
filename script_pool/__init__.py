"""The script pool: other people's scripts in child processes that can be killed, a fresh world every call.

Import rule: the standard library, keep_protocol and keep_isolation; wasmtime alone below script_pool.engine.
"""
