"""What the engine itself says of a module, with a keep's settings: validity, imports, exports, memories, tables."""

from __future__ import annotations

from typing import Any

import wasmtime
from wasmtime import component as components

from app_loader.engine.settings import EXCEPTIONS, OFF
from module_store.verify.binary import Unreadable
from module_store.verify.bodies import Budget, OverBudget, decode
from module_store.verify.component import Component, parse
from module_store.verify.module import CoreModule, Import, Size


def engine(*, for_components: bool = False) -> wasmtime.Engine:
    """An engine with the switches of a keep's; wasmtime's own package has no others of these."""
    config = wasmtime.Config()
    for name in OFF:
        if isinstance(getattr(wasmtime.Config, name, None), property):
            setattr(config, name, False)
    for name in EXCEPTIONS:
        setattr(config, name, True)
    config.wasm_component_model = for_components
    return wasmtime.Engine(config)


CORE, COMPONENTS = engine(), engine(for_components=True)


def is_valid(data: bytes) -> bool:
    """Whether the engine takes a core module."""
    try:
        wasmtime.Module.validate(CORE, data)
    except wasmtime.WasmtimeError:
        return False
    return True


def is_valid_component(data: bytes) -> bool:
    """Whether the engine compiles a component: it has no other way to validate one."""
    try:
        components.Component(COMPONENTS, data)
    except wasmtime.WasmtimeError:
        return False
    return True


def _limits(of: Any) -> tuple[int, int | None]:
    return of.limits.min, of.limits.max


def _type(of: Any) -> str:
    """A type in the text format's words: the package calls an externref by the name of what no keep's engine has."""
    return "externref" if str(of) == "anyref" else str(of)


def _described(of: Any) -> tuple[Any, ...]:
    match of:
        case wasmtime.FuncType():
            return "func", tuple(map(_type, of.params)), tuple(map(_type, of.results))
        case wasmtime.TableType():
            return "table", *_limits(of)
        case wasmtime.MemoryType():
            return "memory", *_limits(of)
        case wasmtime.TagType():
            return ("tag", *_described(of.functype)[1:])
    return ("global",)  # an export's; asked for the type of one that has no word, the C interface aborts


def _imported(of: Any) -> tuple[Any, ...]:
    return (
        ("global", f"{'mut ' if of.mutable else ''}{_type(of.content)}") if hasattr(of, "mutable") else _described(of)
    )


def described_by_engine(data: bytes) -> tuple[list[Any], list[Any]]:
    """Imports and exports of a core module with their types, by the engine, which compiles it for that.

    Not for one that `has_unspeakable`: asked for one, the C interface aborts.
    """
    module = wasmtime.Module(CORE, data)
    imports = [(each.module, each.name, *_imported(each.type)) for each in module.imports]
    return imports, [(each.name, *_described(each.type)) for each in module.exports]


def _size(size: Size) -> tuple[int, int | None]:
    return size.minimum, size.maximum


def _import(module: CoreModule, each: Import) -> tuple[Any, ...]:
    if isinstance(each.of, Size):
        return (each.kind, *_size(each.of))
    if isinstance(each.of, int):
        return (each.kind, *module.signature(each.of))
    return each.kind, each.of


def described_by_us(module: CoreModule) -> tuple[list[Any], list[Any]]:
    """The same by our parser; a global's type is of imports alone."""
    functions = [each.of for each in module.imports if isinstance(each.of, int) and each.kind == "func"] + list(
        module.functions
    )
    exports: list[Any] = []
    for export in module.exports:
        if export.kind == "func":
            exports.append((export.name, "func", *module.signature(functions[export.place])))
        elif export.kind == "tag":
            exports.append((export.name, "tag", *module.signature(module.tags[export.place])))
        elif export.kind == "global":
            exports.append((export.name, "global"))
        else:
            sizes = module.tables if export.kind == "table" else module.memories
            exports.append((export.name, export.kind, *_size(sizes[export.place])))
    return [(each.module, each.name, *_import(module, each)) for each in module.imports], exports


def has_unspeakable(module: CoreModule) -> bool:
    """Whether a signature or an imported global has what the C interface aborts at: vectors, exceptions."""
    return any(
        value not in ("i32", "i64", "f32", "f64", "funcref", "externref")
        for index in range(len(module.type_places))
        for values in module.signature(index)
        for value in values
    ) or any(each.kind == "global" and ("v128" in str(each.of) or "exn" in str(each.of)) for each in module.imports)


def component_by_engine(data: bytes) -> tuple[list[str], list[str]]:
    """The names that a component imports and exports, by the engine, which compiles it for that."""
    kind = components.Component(COMPONENTS, data).type
    return sorted(kind.imports(COMPONENTS)), sorted(kind.exports(COMPONENTS))


def component_by_us(component: Component) -> tuple[list[str], list[str]]:
    """The same by our parser."""
    return sorted(each.name for each in component.imports), sorted(name for name, _ in component.exports)


def agree(data: bytes) -> bool:
    """Whether the engine takes a core module. Asserts that our parser then describes it as the engine does, and its
    bodies are read, too; and that nothing but the parser's own error is raised for one that is malformed."""
    valid = is_valid(data)
    try:
        module = parse(data)
        if isinstance(module, CoreModule):
            decode((module,), Budget())
    except Unreadable as error:
        assert not valid, f"the engine takes what we do not: {error.message}"
        return False
    except OverBudget:
        module = parse(data)
    if valid:
        assert isinstance(module, CoreModule)
        _compare(data, module)
    return valid


def _compare(data: bytes, module: CoreModule) -> None:
    if has_unspeakable(module):
        return
    try:
        theirs = described_by_engine(data)
    except wasmtime.WasmtimeError:
        return  # validated and still not compiled: a memory's limits of 32 bits in more than five bytes, for one
    assert described_by_us(module) == theirs


def agree_on_component(data: bytes) -> bool:
    """The same of a component: whether the engine compiles it. Asserts that our parser reads it, with its names."""
    try:
        found: Component | CoreModule | None = parse(data)
    except Unreadable as error:
        assert not is_valid_component(data), f"the engine takes what we do not: {error.message}"
        return False
    valid = is_valid_component(data)
    if valid:
        assert isinstance(found, Component)
        assert component_by_us(found) == component_by_engine(data)
    return valid
