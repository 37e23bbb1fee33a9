"""The keep-loader: one per keep, the only process that answers for it.

Import rule: the light part of keep_protocol and the standard library's light modules; `tests/test_loader_budget.py`
records the whole list. Each keep on a host pays for what stands there.
"""
