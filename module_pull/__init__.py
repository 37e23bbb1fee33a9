"""Modules from registries: what an artifact's manifests say, asking for them, and passing what came to a module store.

The program of `keep-pull@.service` (`__main__`), which has the network and nothing else; the manager, which has the
store and makes no request, reads what it passes on (`exchange`) and believes only digests.

Import rule: keep_protocol and the standard library alone.
"""
