"""A synchronous client of the manager and of one keep's upload endpoint, for keepctl and the testers.

Import rule: the standard library and keep_protocol. `peer` is a server and what its failures mean, `channel` the
connection, `http` one exchange on it, `streams` server-sent events, `manager` and `keep` the two servers' calls,
`credentials` where an operator's files are, `text` what may reach a terminal. Every failure is a KeepfleetError;
ConnectionFailed is one before any answer came.
"""
