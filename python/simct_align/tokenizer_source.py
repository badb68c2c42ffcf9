"""Where a tokenizer comes from: kept with a vocabulary, opened when something is tokenized."""

from __future__ import annotations

import os
import pickle
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Collection

    from simct_align.readers import TextTokenizer


class TokenizerSource:
    """A tokenizer, or what it can be loaded from; loads at most once, on first use.

    Pickles as a path or hub id where it was given as one, else as the pickled tokenizer object,
    which stays bytes until somebody tokenizes: data-loader workers that only align never load it.

    Args:
        source: Anything that `open_tokenizer` takes.
        special: Names or ids of further control tokens, which encoding must not make from text.
        opened: The tokenizer, where it is open already and has been told of them.
        check: Called with the tokenizer once, when it is opened; raises to refuse it.
    """

    def __init__(
        self,
        source: object,
        *,
        special: Collection[str | int] = (),
        opened: TextTokenizer | None = None,
        check: Callable[[TextTokenizer], None] | None = None,
    ) -> None:
        self._source = source
        self._special = tuple(special)
        self._opened = opened
        self._check = check

    def open(self) -> TextTokenizer:
        """The tokenizer.

        Raises:
            UnsupportedTokenizerError, TypeError, ValueError, OSError: As `open_tokenizer` does.
        """
        if self._opened is None:
            from simct_align.readers import open_tokenizer

            source = self._source
            if isinstance(source, _Pickled):
                source = pickle.loads(source.data)
            opened = open_tokenizer(source)
            if self._check is not None:
                self._check(opened)
            elif self._special:
                opened.table(special=self._special)
            self._opened = opened
        return self._opened

    def __getstate__(self) -> tuple[object, tuple[str | int, ...]]:
        source = self._source
        if isinstance(source, (str, os.PathLike)):
            # Workers may run in another directory; a hub id is no path that exists here.
            path = Path(source)
            source = str(path.absolute()) if path.exists() else str(source)
        elif not isinstance(source, _Pickled):
            source = _Pickled(pickle.dumps(source))
        return source, self._special

    def __setstate__(self, state: tuple[object, tuple[str | int, ...]]) -> None:
        self._source, self._special = state
        self._opened = None
        self._check = None


class _Pickled:
    """A tokenizer object that waits to be unpickled."""

    def __init__(self, data: bytes) -> None:
        self.data = data
