"""Kernel calls for confinement: what each process of a keep gives up before it touches what a stranger made.

Import rule: the standard library's light part and keep_protocol.errors; `_ctypes` in place of `ctypes`.
"""
