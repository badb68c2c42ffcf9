"""Where the expensive parts of the losses are computed: see `protocol` for what a back end is."""

from __future__ import annotations

from .protocol import Backend
from .torch import TorchBackend

__all__ = ["Backend", "TorchBackend", "backend_names", "choose_backend", "register_backend"]

_REFERENCE = TorchBackend()
_BY_NAME: dict[str, Backend] = {_REFERENCE.name: _REFERENCE}


def register_backend(backend: Backend) -> None:
    """Give a back end a name, which losses then take as `backend=`.

    Args:
        backend: The back end; takes the place of another one of its name.

    Raises:
        TypeError: The object lacks an attribute of `Backend`.
        ValueError: `"auto"` and `"torch"` keep their meaning.
    """
    if not isinstance(backend, Backend):
        raise TypeError(f"backend: expected a Backend, got {type(backend).__name__}")
    if backend.name in ("auto", _REFERENCE.name):
        raise ValueError(f"backend: the name {backend.name!r} is taken")
    _BY_NAME[backend.name] = backend


def backend_names() -> list[str]:
    """Return what `backend=` takes, beside objects."""
    return ["auto", *_BY_NAME]


def choose_backend(backend: str | Backend) -> Backend:
    """Return a back end.

    Args:
        backend: A name, `"auto"` for the fastest that is installed, or a `Backend`.

    Raises:
        TypeError: Neither a name nor a back end.
        ValueError: An unknown name.
    """
    if isinstance(backend, Backend):
        return backend
    if not isinstance(backend, str):
        raise TypeError(f"backend: expected a name or a Backend, got {type(backend).__name__}")
    if backend == "auto":
        return _REFERENCE
    if backend not in _BY_NAME:
        raise ValueError(f"backend: expected one of {backend_names()}, got {backend!r}")
    return _BY_NAME[backend]
