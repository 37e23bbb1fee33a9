"""The engine's objects for a component. Its C interface says less than that for core modules: no trap apart from an
error's message, and no check of imports."""

from __future__ import annotations

from _ctypes import byref

from app_loader.engine.binding import (
    COMPONENT_RESULT,
    ITEM_FUNCTION,
    ITEM_INSTANCE,
    ComponentFunction,
    ComponentInstance,
    ComponentType,
    ComponentValue,
    Item,
    Pointer,
    Size,
    library,
)
from app_loader.engine.compiled import Compiled
from app_loader.engine.foreign import EngineError, Owned, bytes_at, succeed

TYPE_CHECKING = False
if TYPE_CHECKING:
    from app_loader.engine.settings import Engine
    from app_loader.engine.store import Store


class Component(Compiled):
    """A component."""

    __slots__ = ()
    name = "component"

    def imports(self) -> list[str]:
        """The names of what it imports."""
        return self._names("import")

    def exports(self) -> list[str]:
        """The names of what it exports."""
        return self._names("export")

    def _type(self) -> Owned:
        return Owned(library.wasmtime_component_type(self.pointer), library.wasmtime_component_type_delete)

    def _names(self, which: str) -> list[str]:
        kind, engine, names = self._type(), self.engine.pointer, []
        nth = getattr(library, f"wasmtime_component_type_{which}_nth")
        for number in range(getattr(library, f"wasmtime_component_type_{which}_count")(kind.pointer, engine)):
            name, size, item = Pointer(), Size(), Pointer()
            if nth(kind.pointer, engine, number, byref(name), byref(size), byref(item)):
                library.wasmtime_component_extern_delete(item)
                names.append(bytes_at(name.value, size.value).decode("utf-8", "replace"))
        return names

    def has_function(self, interface: str, function: str) -> bool:
        """Whether an interface it exports has this function, which takes nothing and returns a result."""
        kind, encoded, found = self._type(), interface.encode(), Pointer()
        if not library.wasmtime_component_type_export_get(
            kind.pointer, self.engine.pointer, encoded, len(encoded), byref(found)
        ):
            return False
        item = _type_of(found)
        try:
            if item.kind != ITEM_INSTANCE:
                return False
            encoded = function.encode()
            if not library.wasmtime_component_instance_type_export_get(
                item.of.component_instance, self.engine.pointer, encoded, len(encoded), byref(found)
            ):
                return False
        finally:
            library.wasmtime_component_item_delete(byref(item))
        item = _type_of(found)
        try:
            if item.kind != ITEM_FUNCTION:
                return False
            return _only_returns_a_result(item.of.component_func)
        finally:
            library.wasmtime_component_item_delete(byref(item))


def _only_returns_a_result(function: int) -> bool:
    returned = ComponentType()
    if library.wasmtime_component_func_type_param_count(function):
        return False
    if not library.wasmtime_component_func_type_result(function, byref(returned)):
        return False
    kind = returned.kind
    library.wasmtime_component_valtype_delete(byref(returned))
    return bool(kind == COMPONENT_RESULT)


def _type_of(found: Pointer) -> Item:
    """The type of an import or export, which the caller deletes; `found` is deleted."""
    item = Item()
    library.wasmtime_component_extern_type(found, byref(item))
    library.wasmtime_component_extern_delete(found)
    return item


class ComponentLinker(Owned):
    """What a component may import: WASI 0.2, without HTTP."""

    __slots__ = ()

    def __init__(self, engine: Engine) -> None:
        super().__init__(
            library.wasmtime_component_linker_new(engine.pointer), library.wasmtime_component_linker_delete
        )
        succeed(library.wasmtime_component_linker_add_wasip2(self.pointer))

    def instantiate(self, store: Store, component: Component) -> ComponentInstance:
        """Links the component and runs what it runs at its start. Raises EngineError, GuestExit."""
        instance = ComponentInstance()
        succeed(
            library.wasmtime_component_linker_instantiate(
                self.pointer, store.context, component.pointer, byref(instance)
            )
        )
        return instance


def find_function(store: Store, instance: ComponentInstance, interface: str, function: str) -> ComponentFunction:
    """A function of an interface that a component's instance exports. Raises EngineError when there is none."""
    place: Owned | None = None
    for name in (interface, function):
        encoded = name.encode()
        outer = None if place is None else place.pointer
        index = library.wasmtime_component_instance_get_export_index(
            byref(instance), store.context, outer, encoded, len(encoded)
        )
        if not index:
            raise EngineError(f"there is no export {name!r}")
        place = Owned(index, library.wasmtime_component_export_index_delete)
    found = ComponentFunction()
    if place is None or not library.wasmtime_component_instance_get_func(
        byref(instance), store.context, place.pointer, byref(found)
    ):
        raise EngineError("what is to be called is no function")
    return found


def call_run(store: Store, function: ComponentFunction) -> bool:
    """Calls a function that takes nothing and returns a result without values: whether that is ok.

    Raises EngineError for a trap or an invalid result, GuestExit.
    """
    result = ComponentValue()
    succeed(library.wasmtime_component_func_call(byref(function), store.context, None, 0, byref(result), 1))
    try:
        return bool(result.kind == COMPONENT_RESULT and result.of.result.is_ok)
    finally:
        library.wasmtime_component_val_delete(byref(result))
