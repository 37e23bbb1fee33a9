"""A synchronous client of the manager and of one keep's door, for keepctl and the testers.

Import rule: the standard library and keep_protocol. `channel` is the connection, `http` one exchange on it,
`manager` and `keep` the two servers' calls, `credentials` where an operator's files lie, `text` what may reach a
terminal. Every failure is a KeepfleetError; ConnectionFailed is one before any answer came.
"""
