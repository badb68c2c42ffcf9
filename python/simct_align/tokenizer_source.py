"""Internal: the source of a tokenizer, which is opened when a text is tokenized."""

from __future__ import annotations

import os
import pickle
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Collection

    from simct_align.readers import TextTokenizer


class TokenizerSource:
    """A tokenizer, or a source from which it is opened once, on first use.

    A path or a hub id pickles as it is. A tokenizer object pickles as bytes, which are unpickled
    when a text is tokenized. Data-loader workers that only align never load the tokenizer.

    Args:
        source: Any source that `open_tokenizer` reads.
        special: Names or ids of additional special tokens, which must not come from text.
        opened: The tokenizer, if it is already open and knows the additional special tokens.
        check: A function that is called once, with the opened tokenizer. It raises an error to
            refuse the tokenizer.
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

    @property
    def source(self) -> object:
        """The tokenizer, path or hub id."""
        if isinstance(self._source, _Pickled):
            return pickle.loads(self._source.data)
        return self._source

    def open(self) -> TextTokenizer:
        """Open the tokenizer, or return it if it is already open.

        Returns:
            The tokenizer.

        Raises:
            UnsupportedTokenizerError: As for `open_tokenizer`.
            TypeError: As for `open_tokenizer`.
            ValueError: As for `open_tokenizer`, or `check` refuses the tokenizer.
            OSError: As for `open_tokenizer`.
            ImportError: As for `open_tokenizer`.
        """
        if self._opened is None:
            from simct_align.readers import open_tokenizer

            opened = open_tokenizer(self.source)
            if self._check is not None:
                self._check(opened)
            elif self._special:
                opened.table(special=self._special)
            self._opened = opened
        return self._opened

    def __getstate__(self) -> tuple[object, tuple[str | int, ...]]:
        source = self._source
        if isinstance(source, (str, os.PathLike)):
            # Workers may run in another directory. A hub id is not an existing path.
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
    """The bytes of a pickled tokenizer object."""

    def __init__(self, data: bytes) -> None:
        self.data = data
