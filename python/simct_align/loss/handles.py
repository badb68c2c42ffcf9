"""Internal: names for objects, because operators take only tensors, numbers and strings."""

from __future__ import annotations

from typing import Generic, TypeVar
from weakref import WeakValueDictionary

T = TypeVar("T")


class Handle(Generic[T]):
    """An object, with the name by which operators find it while the handle lives.

    Attributes:
        key: The name.
        value: The object.
    """

    __slots__ = ("__weakref__", "key", "value")

    def __init__(self, key: str, value: T) -> None:
        self.key = key
        self.value = value


class Handles(Generic[T]):
    """The living handles of one kind of objects; equal objects share a handle.

    Args:
        kind: The kind of the objects, for messages.
    """

    def __init__(self, kind: str) -> None:
        self._kind = kind
        self._living: WeakValueDictionary[str, Handle[T]] = WeakValueDictionary()

    def handle(self, value: T) -> Handle[T]:
        """Return the handle of an object. The name is valid while the caller keeps the handle.

        Args:
            value: The object. Its name is its `repr`, with a number if another object has the same.

        Returns:
            The handle.
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

        Returns:
            The handle.

        Raises:
            RuntimeError: The loss that kept the handle no longer exists.
        """
        handle = self._living.get(key)
        if handle is None:
            raise RuntimeError(
                f"the {self._kind} {key} no longer exists: keep the loss that uses it until the "
                f"operator has run"
            )
        return handle
