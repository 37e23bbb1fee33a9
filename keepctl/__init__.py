"""keepctl, the operator's command line: certificates, installation, and every call of the manager's.

`commands/` holds the click commands (printing, options, exit codes) and nothing else; beneath them `authority` builds
certificates in memory (the only import of cryptography), `files` writes to disk, `layout` says which file is what,
`pki` joins the three, `inspection` looks at what is there, `rendering` and `installation` put the units in place.
"""
