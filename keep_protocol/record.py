"""A frozen record without `dataclasses`, for the part of the contract that starts once per keep.

Import rule: nothing. `dataclasses` brings `inspect`, `ast` and `dis` with it: 7 ms and 1 MB of every keep.
"""

from __future__ import annotations


class Record:
    """Base of immutable values with named fields; a subclass lists them in `__slots__`, in order.

    Two records are equal when they are of one class and all fields are. Setting or deleting a field
    raises AttributeError.
    """

    __slots__: tuple[str, ...] = ()

    def _freeze(self, **fields: object) -> None:
        for name in self.__slots__:
            object.__setattr__(self, name, fields.pop(name))
        if fields:
            raise TypeError(f"{type(self).__name__} has no field {', '.join(fields)}")

    def fields(self) -> dict[str, object]:
        """The record's fields by name, in order."""
        return {name: getattr(self, name) for name in self.__slots__}

    def __setattr__(self, name: str, value: object) -> None:
        raise AttributeError(f"{type(self).__name__}.{name} is read-only")

    def __delattr__(self, name: str) -> None:
        raise AttributeError(f"{type(self).__name__}.{name} is read-only")

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Record) and type(self) is type(other) and self.fields() == other.fields()

    def __hash__(self) -> int:
        return hash((type(self), *self.fields().values()))

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(f'{k}={v!r}' for k, v in self.fields().items())})"
