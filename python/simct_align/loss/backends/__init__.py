"""Back ends: implementations of the expensive parts of the losses.

To add a back end, write a class with the attributes of `Backend`. Pass an object of the class to
a loss as `backend=`, or give the object a name with `register_backend`. `TorchBackend` is the
reference; it computes every problem that another back end refuses. The module `protocol`
describes the objects that a back end exchanges with the engine. A back end that also has the
methods of `TextBackend` computes `TextLoss`, too; `NativeBackend` does, on the CPU.

`"auto"` takes the fastest back end for a problem: `"triton"` on CUDA devices, `"native"` for text
events on the CPU, else `"torch"`. The environment variable `SIMCT_BACKEND` replaces
`"auto"` by another name. The log says once for every kind of loss which back end computes.
"""

from __future__ import annotations

import functools
import logging
import os
from typing import Any

from .native import NativeBackend
from .protocol import (
    Backend,
    Computation,
    Head,
    Lists,
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
    UnitRun,
)
from .torch import TorchBackend
from .triton import TritonBackend

__all__ = [
    "AutoBackend",
    "Backend",
    "Computation",
    "Head",
    "Lists",
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
    "TritonBackend",
    "UnitRun",
    "backend_names",
    "choose_backend",
    "register_backend",
]

_REFERENCE, _NATIVE, _TRITON = TorchBackend(), NativeBackend(), TritonBackend()
_LOG = logging.getLogger(__name__)
#: Replaces "auto" by another back end.
_VARIABLE = "SIMCT_BACKEND"


@functools.cache
def _log_choice(what: str, name: str) -> None:
    _LOG.info("backend='auto': %s are computed by the back end %r", what, name)


class AutoBackend:
    """The fastest installed back end for every problem: `"auto"`."""

    name = "auto"

    def refuses(self, problem: Problem) -> str | None:
        """Return None: see `Backend`."""
        del problem
        return None

    def start(self, problem: Problem) -> Computation[Any] | UnitRun:
        """Begin to compute a problem: see `Backend`."""
        on_cuda = problem.realized_column.is_cuda
        backend: Backend = _TRITON if on_cuda and not _TRITON.refuses(problem) else _REFERENCE
        _log_choice(f"units on {problem.realized_column.device.type}", backend.name)
        return backend.start(problem)

    def refuses_text(self, problem: TextProblem) -> str | None:
        """Return None: see `TextBackend`."""
        del problem
        return None

    def start_text(self, problem: TextProblem) -> TextRun:
        """Begin to compute a problem: see `TextBackend`."""
        on_cuda = problem.tree.same.is_cuda
        fastest: TextBackend = _TRITON if on_cuda else _NATIVE
        backend: TextBackend = _REFERENCE if fastest.refuses_text(problem) else fastest
        _log_choice(f"text events on {problem.tree.same.device.type}", backend.name)
        return backend.start_text(problem)


_AUTO = AutoBackend()
_BUILT_IN: dict[str, Backend] = {each.name: each for each in (_AUTO, _REFERENCE, _NATIVE, _TRITON)}
_BY_NAME: dict[str, Backend] = dict(_BUILT_IN)


def register_backend(backend: Backend) -> None:
    """Register a back end under its name, so that losses take the name as `backend=`.

    Args:
        backend: The back end. It replaces a back end that was registered under the same name.

    Raises:
        TypeError: The object lacks an attribute of `Backend`.
        ValueError: The name is that of a built-in back end, which cannot be replaced.
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
        `"auto"`, `"torch"`, `"native"`, `"triton"` and the registered names.
    """
    return list(_BY_NAME)


def choose_backend(backend: str | Backend) -> Backend:
    """Return the back end of a name.

    Args:
        backend: A name, or a `Backend`, which is returned as it is. `"auto"` is the fastest back
            end for a problem, or the one that the environment variable `SIMCT_BACKEND` names.

    Returns:
        The back end.

    Raises:
        TypeError: `backend` is neither a name nor a `Backend`.
        ValueError: No back end has the name.
    """
    source = "backend"
    if backend == _AUTO.name and _VARIABLE in os.environ:
        source, backend = _VARIABLE, os.environ[_VARIABLE]
    if isinstance(backend, Backend):
        return backend
    if not isinstance(backend, str):
        raise TypeError(f"backend: expected a name or a Backend, got {type(backend).__name__}")
    if backend not in _BY_NAME:
        raise ValueError(f"{source}: expected one of {backend_names()}, got {backend!r}")
    return _BY_NAME[backend]
