"""keepctl, the operator's command line: certificates, installation, and every call of the manager's.

`commands/` holds the click commands (printing, options, exit codes) and nothing else.
For workloads: `job` is one workload as people type it, `manifest` reads it from a file (by `yamltree`, strict YAML),
`run` takes it from its file to its end, `references` finds the keep meant, `describe` puts keeps and their ends into
words and exit codes, `display` prints. Which manager: `contexts` remembers them, `configuration` is this host's
manager.yaml.
For certificates: `authority` builds them in memory (with `inspection` the only import of cryptography), `files` writes
to disk, `layout` says which file is what, `pki` joins the three, `hostnames` knows this host's names, `inspection`
looks at what is there. `rendering`, `prefix` and `installation` put the units in place.
"""
