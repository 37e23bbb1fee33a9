"""Declared keeps: specifications on disk, and the reconciler that makes the host match them.

`specification` is one specification as text, `specifications` the files, `decision` says what to do (pure),
`reconciler` does it, `declarations` is what a client may ask. It calls keeps/ alone; what it knows of running keeps is
in their units.
"""
