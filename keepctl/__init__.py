"""keepctl, the operator's command line: certificates, installation, and every call of the manager's.

`commands/` holds the click commands (printing, options, exit codes) and nothing else; beneath them `authority` builds
certificates in memory (the only import of cryptography), `files` writes to disk, `layout` says which file is what,
`pki` joins the three, `inspection` looks at what is there, `rendering` and `installation` put the units in place.
For workloads: `values` reads what people type, `job` is one workload, `manifest` reads it from a file (by `yamltree`,
strict YAML), `follow` shows its output until the end, `endings` makes exit codes, `references` finds the keep meant,
`contexts` remembers managers, `display` draws.
"""
