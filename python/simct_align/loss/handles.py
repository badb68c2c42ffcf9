"""Objects by name: operators take tensors, numbers and strings, but no other Python objects."""

from __future__ import annotations

from typing import Generic, TypeVar
from weakref import WeakValueDictionary

T = TypeVar("T")


class Handle(Generic[T]):
    """An object and the name by which operators find it, for as long as the handle lives.

    Attributes:
        key: The name.
        value: The object.
    """

    __slots__ = ("__weakref__", "key", "value")

    def __init__(self, key: str, value: T) -> None:
        self.key = key
        self.value = value


class Handles(Generic[T]):
    """The living handles of one kind of objects; equal objects share one.

    Args:
        kind: What the objects are, for messages.
    """

    def __init__(self, kind: str) -> None:
        self._kind = kind
        self._living: WeakValueDictionary[str, Handle[T]] = WeakValueDictionary()

    def handle(self, value: T) -> Handle[T]:
        """Return the handle of an object; whoever needs the name must keep the handle.

        Args:
            value: The object. Its name is its `repr`, with a number where another object has it.
        """
        key, number = repr(value), 0
        while (known := self._living.get(key)) is not None:
            if known.value is value or (type(known.value) is type(value) and known.value == value):
                return known
            number += 1
            key = f"{value!r} ({number})"
        handle = self._living[key] = Handle(key, value)
        return handle

    def __getitem__(self, key: str) -> Handle[T]:
        """Return the living handle of a name.

        Args:
            key: The name.

        Raises:
            RuntimeError: The handle is gone, with the loss that kept it.
        """
        handle = self._living.get(key)
        if handle is None:
            raise RuntimeError(f"the {self._kind} {key} is gone: keep the loss that uses it")
        return handle
