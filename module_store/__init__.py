"""Modules kept on this host: content-addressed, verified at each read, named by references.

    DIRECTORY/version                  which layout this is; an unknown one is refused and left as it is
    DIRECTORY/objects/HEX              a module, mode 0400; its name is its SHA-256
    DIRECTORY/attachments/HEX.KIND     what is known of an object: signatures, verification reports
    DIRECTORY/references/NAME:TAG      which object a reference names, and named before
    DIRECTORY/uses/USER                the objects that a user of the store needs, for garbage collection
    DIRECTORY/quarantine/…             what was damaged, or not the store's own
    DIRECTORY/new/…                    what is being written

Each file but an object is a sealed record: its first line is the digest of its name and the rest. Every change is a
file written in `new`, flushed, and renamed to its place under the store's lock, a flock on DIRECTORY itself; readers
need no lock. `store` is what others use, on `objects`; `names` says what things are called, `disk` makes each change,
`opening` opens the directory, `place` is what is in it, `references` is pure, `collect`, `checking` and `archive` (in a
`tar`) work on a whole store, and `registry` (by `transport`) takes objects from elsewhere.
`artifacts` is another directory: what was compiled of modules, by `engine`, which may be deleted at any time.
Import rule: the standard library and keep_protocol alone, no asyncio; the manager, keepctl and codelets use it.
"""
