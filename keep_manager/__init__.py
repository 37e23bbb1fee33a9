"""keep-manager: creates keeps as systemd units, hands each its listening socket, and finds them all again.

Imports point one way: `daemon → http → keeps → model → keep_protocol`, and `daemon → {systemd, pki, loader_client}`.
`http`, `systemd`, `pki` and `loader_client` never import each other.
"""
