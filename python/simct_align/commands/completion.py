"""Internal: `simct-align completion`, scripts with which a shell completes the command line."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from simct_align.text_input import DataError

if TYPE_CHECKING:
    import argparse

SHELLS = ("bash", "zsh", "fish")

EPILOG = """\
Needs: pip install 'simct-align[completion]'

examples:
  simct-align completion bash > ~/.local/share/bash-completion/completions/simct-align
  simct-align completion zsh > ~/.zfunc/_simct-align
  simct-align completion fish > ~/.config/fish/completions/simct-align.fish"""

#: Arguments that are paths.
_PATHS = ("teacher", "student", "file", "output")


def write_completion(parser: argparse.ArgumentParser, shell: str) -> None:
    """Print the completion script of a shell.

    Args:
        parser: The parser of the whole command line.
        shell: One of `SHELLS`.

    Raises:
        DataError: The library that makes the script is not installed.
    """
    try:
        import shtab
    except ModuleNotFoundError as error:
        raise DataError(
            "completion scripts need shtab: pip install 'simct-align[completion]'"
        ) from error
    for action in _actions(parser):
        if action.dest in _PATHS:
            action.complete = shtab.FILE  # type: ignore[attr-defined]
    sys.stdout.write(shtab.complete(parser, shell=shell) + "\n")


def _actions(parser: argparse.ArgumentParser) -> list[argparse.Action]:
    found = []
    for action in parser._actions:
        found.append(action)
        if isinstance(action.choices, dict):
            found += [inner for sub in action.choices.values() for inner in _actions(sub)]
    return found
