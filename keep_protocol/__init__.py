"""The contract between keepfleet's processes: commands, states, messages, errors and limits.

Import rule: the standard library alone. `record`, `constants`, `states`, `errors`, `strict_json`,
`control`, `keep` and `sdnotify` are the light part: the keep-loader imports them once per keep, so they
import neither `typing` nor `dataclasses` (3.5 ms and 7 ms of every keep's start). `api` and `tls` are
for the manager, the app-loader and the clients.
"""
