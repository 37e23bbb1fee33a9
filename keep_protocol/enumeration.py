"""Enumerations for what each keep and each command pays for: the standard library's, as far as ours go.

`enum` and what it imports are 4 ms of a process's start and half a megabyte, and each enumeration of it a tenth of a
millisecond more. A type checker sees the standard library's own, so that nothing can be used here that those have not.
Ours have words or numbers as values, each once, and nothing computed.
Import rule: none.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from enum import Enum as Enum
    from enum import IntEnum as IntEnum
else:

    class _EnumType(type):
        def __new__(mcs, name, bases, namespace):
            values = {
                key: value
                for key, value in namespace.items()
                if not key.startswith("_") and not hasattr(value, "__get__")
            }
            own = {key: value for key, value in namespace.items() if key not in values}
            kind = super().__new__(mcs, name, bases, own)
            kind._members, kind._by_value = {}, {}
            for key, value in values.items():
                member = int.__new__(kind, value) if issubclass(kind, int) else object.__new__(kind)
                vars(member).update(name=key, value=value, _value_=value)
                kind._members[key] = kind._by_value[value] = member
                type.__setattr__(kind, key, member)
            return kind

        def __call__(cls, value):
            """The member with that value, or that member itself. Raises ValueError for none."""
            if type(value) is cls:
                return value
            try:
                return cls._by_value[value]
            except (KeyError, TypeError):
                raise ValueError(f"{value!r} is not a valid {cls.__name__}") from None

        def __iter__(cls):
            return iter(cls._members.values())

        def __len__(cls):
            return len(cls._members)

        def __bool__(cls):
            return True

        def __contains__(cls, value):
            return type(value) is cls

        def __getitem__(cls, name):
            return cls._members[name]

        def __setattr__(cls, name, value):
            if name in cls.__dict__.get("_members", ()):
                raise AttributeError(f"cannot reassign member {name!r}")
            super().__setattr__(name, value)

        def __repr__(cls):
            return f"<enum {cls.__name__!r}>"

    class Enum(metaclass=_EnumType):
        """Named values, each of which is one object: `is` compares them."""

        def __repr__(self):
            return f"<{type(self).__name__}.{self.name}: {self.value!r}>"

        def __str__(self):
            return f"{type(self).__name__}.{self.name}"

        def __setattr__(self, name, value):
            raise AttributeError(f"cannot set {name} of {self}")

        def __reduce_ex__(self, _protocol):
            return type(self), (self.value,)  # a copy is the member itself

    class IntEnum(int, Enum):
        """Named numbers, that count as numbers do."""

        __repr__, __str__ = Enum.__repr__, int.__repr__
        __format__ = int.__format__
