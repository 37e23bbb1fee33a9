"""A keep's root: a small read-only tree with an interpreter, its libraries and what runs in a keep, and nothing else.

    DIRECTORY/root-DIGEST/tree         what RootDirectory= of a keep's unit names
    DIRECTORY/root-DIGEST/record.json  what it was made of, as far as each creation of a keep looks
    DIRECTORY/root-DIGEST/files.json   each of its files and where that came from, for `keepctl doctor`

One tree for each version, interpreter and state of the host's libraries: DIGEST is of all that it was made of, and a
tree is never changed. `contents` says what goes in, `build` makes it, `tree` says whether it is still that, `trees`
finds the one that new keeps get and removes those that no keep has any more.
Import rule: the standard library and keep_protocol alone; keepctl and the manager use it.
"""
