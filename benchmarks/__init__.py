"""Measures keepfleet on a real systemd: every figure with the floor it stands on, in one run.

`python -m benchmarks` inside a host (`./run bench` boots one). `figures`, `table`, `dropin` and `modules` are pure;
`bus` uses the manager's own connection to systemd. Imports keep_client and keep_protocol, as any client may.
"""
