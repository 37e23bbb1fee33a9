"""The manifest: one YAML file that describes one workload.

`schema` is the published JSON Schema, `check` finds every fault of a file against it, `reading` makes a job of a file,
`reference` writes the page for people.
"""
