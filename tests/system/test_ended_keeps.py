"""Keeps that have ended: their unit says how, no process is left of them, and their output and outcome stay until they
are removed: over managers, and over the unit's own end."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest

from keep_protocol.keep import KeepInfo, OutcomeKind
from keep_protocol.ring import END, STDERR, STDOUT, Frame, OutputDecoder
from keep_protocol.states import State
from tests.system import modules
from tests.system.fleet import MANAGER, Fleet
from tests.system.life import SOON, Life, example

FOLDERS = "/var/lib/keepfleet/keeps"
