"""Back ends: implementations of the expensive parts of the losses.

To add a back end, write a class with the attributes of `Backend`. Pass an object of the class to
a loss as `backend=`, or give the object a name with `register_backend`. `TorchBackend` is the
reference; it computes every problem that another back end refuses. The module `protocol`
describes the objects that a back end exchanges with the engine. A back end that also has the
methods of `TextBackend` computes `TextLoss`, too; `NativeBackend` does, on the CPU.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from .native import NativeBackend
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
    TextBackend,
    TextProblem,
    TextRun,
    TextSettings,
    TextSide,
)
from .torch import TorchBackend

if TYPE_CHECKING:
    from .torch.computation import TorchComputation

__all__ = [
    "AutoBackend",
    "Backend",
    "Computation",
    "Head",
    "Logits",
    "NativeBackend",
    "Problem",
    "Scores",
    "Settings",
    "Side",
    "SideProblem",
    "StudentSide",
    "TextBackend",
    "TextProblem",
    "TextRun",
    "TextSettings",
    "TextSide",
    "TorchBackend",
    "backend_names",
    "choose_backend",
    "register_backend",
]

_REFERENCE, _NATIVE = TorchBackend(), NativeBackend()


class AutoBackend:
    """The fastest installed back end for every problem: `"auto"`."""

    name = "auto"

    def refuses(self, problem: Problem) -> str | None:
        """Return None: see `Backend`."""
        del problem
        return None

    def start(self, problem: Problem) -> TorchComputation:
        """Begin to compute a problem: see `Backend`."""
        return _REFERENCE.start(problem)

    def refuses_text(self, problem: TextProblem) -> str | None:
        """Return None: see `TextBackend`."""
        del problem
        return None

    def start_text(self, problem: TextProblem) -> TextRun:
        """Begin to compute a problem: see `TextBackend`."""
        backend: TextBackend = _REFERENCE if _NATIVE.refuses_text(problem) else _NATIVE
        return backend.start_text(problem)


_AUTO = AutoBackend()
_BUILT_IN: dict[str, Backend] = {each.name: each for each in (_AUTO, _REFERENCE, _NATIVE)}
_BY_NAME: dict[str, Backend] = dict(_BUILT_IN)


def register_backend(backend: Backend) -> None:
    """Register a back end under its name, so that losses take the name as `backend=`.

    Args:
        backend: The back end. It replaces a back end that was registered under the same name.

    Raises:
        TypeError: The object lacks an attribute of `Backend`.
        ValueError: The name is `"auto"`, `"torch"` or `"native"`, which cannot be replaced.
    """
    if not isinstance(backend, Backend):
        raise TypeError(
            f"backend: expected a Backend (with `name`, `refuses` and `start`), "
            f"got {type(backend).__name__}"
        )
    if backend.name in _BUILT_IN:
        raise ValueError(f"backend: the name {backend.name!r} is reserved; choose another")
    _BY_NAME[backend.name] = backend


def backend_names() -> list[str]:
    """Return the names that `backend=` takes.

    Returns:
        `"auto"`, `"torch"`, `"native"` and the registered names.
    """
    return list(_BY_NAME)


def choose_backend(backend: str | Backend) -> Backend:
    """Return the back end of a name.

    Args:
        backend: A name, or a `Backend`, which is returned as it is. `"auto"` is the fastest back
            end that is installed: for text events on the CPU `"native"`, else `"torch"`.

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
    if backend not in _BY_NAME:
        raise ValueError(f"backend: expected one of {backend_names()}, got {backend!r}")
    return _BY_NAME[backend]
