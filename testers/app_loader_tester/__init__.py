"""Sends any file to a keep and says what happened."""
