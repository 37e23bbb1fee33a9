"""What CPython is initialised with, once, at installation: the modules that scripts can import, and what runs them.

It runs in the guest: nothing of it is imported by the pool. There are no files behind it, so that what is not imported
here cannot be imported by a script.
"""

# ruff: noqa: F401
# mypy: ignore-errors
import abc
import argparse
import array
import ast
import asyncio
import base64
import binascii
import bisect
import builtins
import calendar
import cmath
import codecs
import collections.abc
import colorsys
import configparser
import contextlib
import contextvars
import copy
import csv
import dataclasses
import datetime
import decimal
import difflib
import email.message
import email.parser
import email.utils
import encodings.ascii
import encodings.cp1252
import encodings.idna
import encodings.latin_1
import encodings.utf_8_sig
import encodings.utf_16
import encodings.utf_32
import enum
import fnmatch
import fractions
import functools
import gc
import graphlib
import hashlib
import heapq
import hmac
import html.parser
import inspect
import io
import ipaddress
import itertools
import json
import keyword
import locale
import logging
import marshal
import math
import numbers
import operator
import os
import pathlib
import pickle
import pprint
import queue
import random
import re
import reprlib
import secrets
import shlex
import statistics
import string
import struct
import sys
import textwrap
import threading
import time
import timeit
import tokenize
import tomllib
import traceback
import types
import typing
import unicodedata
import unittest
import urllib.parse
import uuid
import warnings
import weakref
import xml.etree.ElementTree
import zlib
import zoneinfo

import wit_world

_NAME = "script"
_MOST_LINES = 32


class HostCallError(Exception):
    """A host function has no value."""


class HostCallRefused(HostCallError):
    """The pool has refused a call."""


class _Console(io.TextIOBase):
    """Standard output and standard error, together, up to a number of characters."""

    def __init__(self, room):
        self._room, self._parts = room, []

    def writable(self):
        return True

    def write(self, text):
        if not isinstance(text, str):
            raise TypeError(f"write() argument must be str, not {type(text).__name__}")
        if self._room > 0:
            self._parts.append(text[: self._room])
            self._room -= len(text)
        return len(text)

    def lines(self):
        return "".join(self._parts).splitlines()


class _Finder:
    """Asked first for what would wait outside of the script's clock, and last for everything."""

    def __init__(self, names=None):
        self._names = names

    def find_spec(self, name, path=None, target=None):
        if self._names is None or name in self._names:
            raise ModuleNotFoundError(
                f"No module named {name!r}; scripts have a part of the standard library and nothing else", name=name
            )


class _Selector:
    def select(self, timeout=None):
        if timeout is None:
            raise RuntimeError("the script waits for what will never happen")
        if timeout > 0:
            _sleep(timeout)
        return []


class _Loop(asyncio.BaseEventLoop):
    """There is nothing to wait for but time."""

    def __init__(self):
        super().__init__()
        self._selector = _Selector()

    def _process_events(self, events):
        pass

    def _write_to_self(self):
        pass


def _sleep(seconds):
    if seconds < 0:
        raise ValueError("sleep length must be non-negative")
    wit_world.host("sleep", repr(float(seconds)))


def _function(name):
    def call(*arguments):
        done, value = json.loads(wit_world.host("call", json.dumps([name, arguments])))
        if done:
            return value
        raise (HostCallRefused if value["refused"] else HostCallError)(value["message"])

    call.__name__ = call.__qualname__ = name
    return call


def _left(world):
    """The script's variables, without what has no JSON by its kind."""
    kinds = (types.ModuleType, type)
    return {
        name: value
        for name, value in world.items()
        if name[0] != "_" and not isinstance(value, kinds) and not callable(value)
    }


def _thrown(error):
    """The name, the message and the script's own lines, the last call first."""
    lines = [
        f"at {frame.f_code.co_qualname} ({_NAME}:{line})"
        for frame, line in traceback.walk_tb(error.__traceback__)
        if frame.f_code.co_filename == _NAME
    ]
    if isinstance(error, SyntaxError) and error.filename == _NAME:
        lines.append(f"at <module> ({_NAME}:{error.lineno})")
        message = error.msg
    else:
        message = str(error)
    return json.dumps([type(error).__name__, message, lines[::-1][:_MOST_LINES]])


class WitWorld(wit_world.WitWorld):
    def check(self, source):
        try:
            return "c" + marshal.dumps(compile(source, _NAME, "exec", dont_inherit=True)).decode("latin-1")
        except Exception as error:
            return "s" + _thrown(error)

    def run(self, code, input, functions, console_characters):
        console = sys.stdout = sys.stderr = _Console(console_characters)
        kind, text = "t", ""
        try:
            program = marshal.loads(code.encode("latin-1"))
            main = sys.modules["__main__"] = types.ModuleType("__main__")
            world = main.__dict__
            if functions:
                world |= {"HostCallError": HostCallError, "HostCallRefused": HostCallRefused}
                world |= {name: _function(name) for name in json.loads(functions)}
            world |= json.loads(input)
            random.seed()
            try:
                exec(program, world)
            except SystemExit:
                pass
            kind = "n"
            text = json.dumps(_left(world), allow_nan=False)
            kind = "o"
        except BaseException as error:
            text = _thrown(error)
        return f"{kind}\n{json.dumps(console.lines())}\n{text}"


time.sleep = _sleep
asyncio.events._set_event_loop_policy(
    type("_Policy", (asyncio.events._BaseDefaultEventLoopPolicy,), {"_loop_factory": _Loop})()
)
_REFUSED = ("_socket", "select", "selectors", "socket", "ssl", "subprocess")
for _name in _REFUSED:
    sys.modules.pop(_name, None)
sys.meta_path.insert(0, _Finder(_REFUSED))
sys.meta_path.append(_Finder())
warnings.simplefilter("ignore")
gc.collect()
gc.freeze()
