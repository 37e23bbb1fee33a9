"""Walks the original's steps with a keep-manager, checks every answer, and says what comes next."""
