"""Where a tokenizer comes from: kept with a vocabulary, opened when something is tokenized."""

from __future__ import annotations

import os
import pickle
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    from simct_align.readers import TextTokenizer


class TokenizerSource:
    """A tokenizer, or what it can be loaded from; loads at most once, on first use.

    Pickles as a path or hub id where it was given as one, else as the pickled tokenizer object,
    which stays bytes until somebody tokenizes: data-loader workers that only align never load it.

    Args:
        source: Anything that :func:`simct_align.readers.open_tokenizer` takes.
        opened: The tokenizer, where it is open already.
        check: Called with the tokenizer once, when it is opened; raises to refuse it.
    """

    def __init__(
        self,
        source: object,
        *,
        opened: TextTokenizer | None = None,
        check: Callable[[TextTokenizer], None] | None = None,
    ) -> None:
        self._source = source
        self._opened = opened
        self._check = check

    def open(self) -> TextTokenizer:
        """The tokenizer.

        Raises:
            UnsupportedTokenizerError, TypeError, ValueError, OSError: As ``open_tokenizer`` does.
        """
        if self._opened is None:
            from simct_align.readers import open_tokenizer

            source = self._source
            if isinstance(source, _Pickled):
                source = pickle.loads(source.data)
            opened = open_tokenizer(source)
            if self._check is not None:
                self._check(opened)
            self._opened = opened
        return self._opened

    def __getstate__(self) -> object:
        source = self._source
        if isinstance(source, (str, os.PathLike)):
            # Workers may run in another directory; a hub id is no path that exists here.
            path = Path(source)
            return str(path.absolute()) if path.exists() else str(source)
        return source if isinstance(source, _Pickled) else _Pickled(pickle.dumps(source))

    def __setstate__(self, state: object) -> None:
        self._source = state
        self._opened = None
        self._check = None


class _Pickled:
    """A tokenizer object that waits to be unpickled."""

    def __init__(self, data: bytes) -> None:
        self.data = data
