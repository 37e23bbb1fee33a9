"""YAML files that people write, read strictly: the manager's configuration and workloads' manifests.

`tree` reads bytes into values with their places; `records` reads a tree by the table of a record's fields.
Import rule: PyYAML and keep_protocol.
"""
