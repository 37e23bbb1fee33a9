"""A synchronous client of the manager and of one keep's upload endpoint, for keepctl and the testers.

Import rule: the standard library and keep_protocol. `peer` is a server and what its failures mean, `channel` a TLS
connection, `http` one exchange on it, `connection` the way to one server by kept channels, and its event streams,
`manager` and `keep` the two servers' calls, `output` what a guest writes, `credentials` where an operator's files are.
Every failure is a KeepfleetError; ConnectionFailed is one before any answer came.
"""
