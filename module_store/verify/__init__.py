"""Verification before load: pure functions over a parsed module, and a report for people and machines.

`binary`, `core`, `component` parse; `bodies` decodes code where a rule or a bound asks; `policy` says what is allowed,
`rules` compares, `report` is what comes out. None of them writes, opens or runs anything.
"""
