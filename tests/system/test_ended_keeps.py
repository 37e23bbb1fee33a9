"""Keeps that have ended: their unit says how, no process is left of them, and their output and outcome stay until they
are removed: over managers, and over the unit's own end."""

from __future__ import annotations

FOLDERS = "/var/lib/keepfleet/keeps"
