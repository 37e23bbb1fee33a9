"""A synchronous client of the manager and of one keep's upload endpoint, for keepctl and the testers.

Import rule: the standard library and keep_protocol. `peer` is a server and what its failures mean, `channel` a
TLS connection, `http` one exchange on it and `answers` what comes back, `streams` server-sent events, `connection` the
way to one server by kept channels, `manager` and `keep` the two servers' calls, `credentials` where an operator's files
are, `text` what may reach a terminal. Every failure is a KeepfleetError;
ConnectionFailed is one before any answer came.
"""
