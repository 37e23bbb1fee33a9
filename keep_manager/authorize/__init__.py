"""Who may do what: one table (`table`), and how much of it (`quotas`).

Import rule: keep_protocol and keep_manager.model alone; `http` asks here, and nothing else decides.
"""
