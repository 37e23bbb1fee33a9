"""What to do about a module that a keep does not take: by the engine's words, or by what it imports. Pure.

Each row is a part of the text that is met, and what to build with instead. The first that fits is said.
"""

from __future__ import annotations

from _collections_abc import Iterable

_THREADS = "build it without threads: for wasm32-wasip1, not wasm32-wasip1-threads, and without -pthread"
_GARBAGE_COLLECTED = (
    "a keep has no garbage-collected types (Kotlin, Dart, Java or OCaml to WebAssembly GC): build it for wasm32-wasip1 "
    "with a compiler that brings its own collector"
)
_NO_EXCEPTIONS = (
    "the standard profile's optimizing compiler alone knows exceptions: leave out compiler fast and profile strict, "
    "or build it with -fno-exceptions"
)
WASI_0_3 = "it is built for WASI 0.3, and a keep has WASI 0.2: build it for wasm32-wasip2"
_OF_FEATURES = (
    ("legacy_exceptions", "it has exceptions in their first form: build it with -mllvm -wasm-use-legacy-eh=false, or "
     "convert it, wasm-opt --translate-to-exnref"),
    ("exception refs not supported", _NO_EXCEPTIONS),
    ("exceptions proposal not enabled", _NO_EXCEPTIONS),
    ("threads must be enabled", _THREADS),
    ("threads support is not enabled", _THREADS),
    ("shared-everything-threads", _THREADS),
    ("memory64", "a keep has 32-bit memories: build it for wasm32, not wasm64"),
    ("multiple memories", "build it with one memory: wasm-opt --multi-memory-lowering makes one of several"),
    ("gc feature", _GARBAGE_COLLECTED),
    ("`gc` proposal", _GARBAGE_COLLECTED),
    ("gc support is not enabled", _GARBAGE_COLLECTED),
    ("function references required", _GARBAGE_COLLECTED),
    ("stack switching", "build it without stack switching: a compiler does not use it unless it is asked to"),
    ("wide arithmetic", "build it without -mwide-arithmetic"),
    ("custom page sizes", "build it with pages of 64 KiB, which are the default"),
    ("relaxed SIMD", "build it without -mrelaxed-simd; -msimd128 is there"),
    ("component model async feature", WASI_0_3),
    ("component model error-context feature", WASI_0_3),
    ("component model map feature", "build it without maps in its interfaces: a list of pairs says the same"),
    ("component model fixed-length lists", "build it with lists that have no length in its interfaces"),
)  # fmt: skip
_OF_IMPORTS = (
    ("wasi_unstable", "wasi_unstable is WASI's first snapshot: build the module for wasm32-wasip1"),
    ("wasi thread-spawn", _THREADS),
    ("wasix_", "it is built for WASIX: build it for wasm32-wasip1"),
    ("gojs", "it is built for a browser: build it with GOOS=wasip1, not GOOS=js"),
    ("go runtime.", "it is built for a browser: build it with GOOS=wasip1, not GOOS=js"),
    ("__wbindgen", "it is built for JavaScript around it (wasm-bindgen): build it for wasm32-wasip1"),
    ("rb-js-abi-host", "it calls JavaScript around it: take a Ruby without the js gem, or the module that "
     "@ruby/wasm-wasi has without it"),
    ("env emscripten_", "it is built for JavaScript around it: build it with wasi-sdk, or with -sSTANDALONE_WASM"),
    ("env invoke_", "it is built for JavaScript around it: build it with wasi-sdk, or with -sSTANDALONE_WASM"),
    ("env __cxa_", "it lacks its C++ exceptions: link it with -fwasm-exceptions and a C++ library built so"),
    ("env memory", "it wants to be given its memory: link it without --import-memory"),
    ("wasi:http/", "this version gives a guest no network"),
)  # fmt: skip
"""A core module's imports are met as `module name`."""


def on_features(reason: str) -> str:
    """What to do about what the engine has refused with these words; "" where nothing is known."""
    return next((f"; {advice}" for part, advice in _OF_FEATURES if part in reason), "")


def on_imports(missing: Iterable[str]) -> str:
    """What to do about imports that are not there; "" where nothing is known."""
    found = list(missing)
    if any(is_wasi_0_3(name) for name in found):
        return f"; {WASI_0_3}"
    return next((f"; {advice}" for part, advice in _OF_IMPORTS if any(part in name for name in found)), "")


def is_wasi_0_3(name: str) -> bool:
    """Whether a component's import or export is of WASI 0.3, whose interfaces are asynchronous."""
    return name.startswith("wasi:") and "@0.3." in name
