"""What the engine says of a core module, without compiling it: asked by `keepctl verify`, outside any keep."""

from __future__ import annotations

from app_loader.engine.binding import Byte, library
from app_loader.engine.foreign import EngineError, succeed
from app_loader.engine.settings import Settings, make_engine


def why_invalid(module: memoryview) -> str:
    """Why a core module is not valid with the features that a keep's engine has, or ""."""
    view = (Byte * len(module)).from_buffer_copy(module)
    try:
        succeed(library.wasmtime_module_validate(make_engine(Settings()).pointer, view, len(module)))
    except EngineError as error:
        return " ".join(str(error).split()) or "it is not valid"
    return ""
