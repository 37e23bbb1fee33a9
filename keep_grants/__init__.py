"""Directories for keeps: a small helper makes each one a detached mount, in which the keep has a chosen user's rights.

The manager's providers ask it over a socket; systemd starts it for the first request, and it leaves when none come.
"""
