"""Back ends: implementations of the expensive parts of the losses.

To add a back end, write a class with the attributes of `Backend`. Pass an object of the class to
a loss as `backend=`, or give the object a name with `register_backend`. `TorchBackend` is the
reference; it computes every problem that another back end refuses. The module `protocol`
describes the objects that a back end exchanges with the engine.
"""

from __future__ import annotations

from .protocol import (
    Backend,
    Computation,
    Head,
    Logits,
    Problem,
    Scores,
    Settings,
    Side,
    SideProblem,
    StudentSide,
)
from .torch import TorchBackend

__all__ = [
    "Backend",
    "Computation",
    "Head",
    "Logits",
    "Problem",
    "Scores",
    "Settings",
    "Side",
    "SideProblem",
    "StudentSide",
    "TorchBackend",
    "backend_names",
    "choose_backend",
    "register_backend",
]

_REFERENCE = TorchBackend()
_BY_NAME: dict[str, Backend] = {_REFERENCE.name: _REFERENCE}


def register_backend(backend: Backend) -> None:
    """Register a back end under its name, so that losses take the name as `backend=`.

    Args:
        backend: The back end. It replaces a back end that was registered under the same name.

    Raises:
        TypeError: The object lacks an attribute of `Backend`.
        ValueError: The name is `"auto"` or `"torch"`, which cannot be replaced.
    """
    if not isinstance(backend, Backend):
        raise TypeError(
            f"backend: expected a Backend (with `name`, `refuses` and `start`), "
            f"got {type(backend).__name__}"
        )
    if backend.name in ("auto", _REFERENCE.name):
        raise ValueError(f"backend: the name {backend.name!r} is reserved; choose another")
    _BY_NAME[backend.name] = backend


def backend_names() -> list[str]:
    """Return the names that `backend=` takes.

    Returns:
        `"auto"`, `"torch"` and the registered names.
    """
    return ["auto", *_BY_NAME]


def choose_backend(backend: str | Backend) -> Backend:
    """Return the back end of a name.

    Args:
        backend: A name, or a `Backend`, which is returned as it is. `"auto"` is the fastest back
            end that is installed.

    Returns:
        The back end.

    Raises:
        TypeError: `backend` is neither a name nor a `Backend`.
        ValueError: No back end has the name.
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
