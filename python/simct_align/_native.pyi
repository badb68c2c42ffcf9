from collections.abc import Sequence
from typing import Any, TypeAlias, final

import numpy as np
from numpy.typing import NDArray

from simct_align.index import IndexContents
from simct_align.inputs import LogitRows, RaggedIds
from simct_align.logprobs import SpreadChoice, TokenRows
from simct_align.served import Question
from simct_align.units import UnitColumns

_Ranges: TypeAlias = tuple[
    NDArray[np.int64], NDArray[np.int32], NDArray[np.int32], NDArray[np.int32], NDArray[np.int32]
]

_Entries: TypeAlias = tuple[NDArray[np.int32], NDArray[np.int32], NDArray[np.int32]]
_Ragged: TypeAlias = tuple[NDArray[np.int64], NDArray[np.int64]]
# log-probabilities of the tokens, ids of the lists, their log-probabilities, list offsets
_Served: TypeAlias = tuple[
    NDArray[np.float64], NDArray[np.int32], NDArray[np.float32], NDArray[np.int64]
]

MAX_TOKENS: int
RESYNC_WINDOW: int
__version__: str

class AlignmentError(ValueError): ...

@final
class Vocabulary:
    def __new__(
        cls,
        token_bytes: bytes,
        offsets: NDArray[np.int64],
        kinds: NDArray[np.uint8],
        *,
        dummy_prefix: bool,
        special_names: dict[int, str],
        stops: list[tuple[int, list[str]]],
    ) -> Vocabulary: ...
    def __len__(self) -> int: ...
    def token_bytes(self, token_id: int) -> bytes: ...
    def byte_table(self) -> tuple[NDArray[np.uint8], NDArray[np.int64]]: ...
    # bytes of all tokens, offsets [tokens + 1]
    def decode_bytes(self, ids: NDArray[np.int64]) -> bytes: ...
    def find(self, token_bytes: bytes) -> int | None: ...
    @property
    def kinds(self) -> NDArray[np.uint8]: ...
    @property
    def begins_with_whitespace(self) -> NDArray[np.uint8]: ...
    @property
    def canonical_ids(self) -> NDArray[np.int64]: ...
    @property
    def digest(self) -> bytes: ...
    @property
    def dummy_prefix(self) -> bool: ...
    @property
    def special_names(self) -> dict[int, str]: ...
    @property
    def stop_ids(self) -> list[int]: ...
    @property
    def stop_sources(self) -> dict[int, list[str]]: ...

@final
class Pair:
    def __new__(
        cls,
        teacher: Vocabulary,
        student: Vocabulary,
        *,
        special_tokens: list[tuple[int, int]],
        teacher_stops: list[int] | None,
        student_stops: list[int] | None,
    ) -> Pair: ...
    @property
    def teacher(self) -> Vocabulary: ...
    @property
    def student(self) -> Vocabulary: ...
    @property
    def shared_ids(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]: ...
    @property
    def stop_ids(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]: ...
    @property
    def stop_column(self) -> int | None: ...
    @property
    def digest(self) -> bytes: ...
    @property
    def has_spellings(self) -> bool: ...
    @property
    def has_text_tree(self) -> bool: ...
    def align(
        self,
        teacher: RaggedIds,
        student: RaggedIds,
        *,
        fail_on_mismatch: bool,
        resync_bytes: int,
        threads: int | None,
    ) -> tuple[_Ranges, NDArray[np.uint8], NDArray[np.uint8], _Ranges, NDArray[np.uint8]]: ...
    def to_bytes(self) -> bytes: ...
    @staticmethod
    def from_bytes(data: bytes) -> Pair: ...

@final
class Spellings:
    def __new__(cls, pair: Pair, of_teacher: bool) -> Spellings: ...
    def leaf_table(self) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]: ...
    def node_table(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]: ...
    def spelling(self, token_id: int) -> list[int] | None: ...
    def node(self, path: list[int]) -> int | None: ...
    def unspelled(self) -> NDArray[np.int64]: ...
    def counts_by_length(self) -> list[int]: ...

@final
class TextLeaves:
    def __new__(
        cls,
        nodes: object,
        teacher: object,
        student: object,
        *,
        epsilon: float,
        tree: bool,
        n_threads: int,
    ) -> TextLeaves: ...
    def group(
        self, deep: bool, floor: float
    ) -> tuple[NDArray[np.int64], NDArray[np.floating], NDArray[np.floating]]: ...
    def figures(self) -> list[NDArray[np.float64]]: ...
    def gradient(
        self,
        nodes: object,
        student: object,
        gradient: object,
        n_threads: int,
    ) -> None: ...

@final
class TextTree:
    # The tables are copies.
    def __new__(cls, pair: Pair) -> TextTree: ...
    def node_table(
        self,
    ) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64], NDArray[np.uint8]]: ...
    # parent, depth, subtree_end, same: [nodes] each
    def token_table(
        self, of_teacher: bool
    ) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]: ...
    # token ids [tokens], node_tokens [nodes + 1], node_exact [nodes]
    def suffix_table(self, of_teacher: bool) -> tuple[NDArray[np.int32], NDArray[np.int64]]: ...
    # suffixes [suffixes], suffix_offsets [MAX_REACH + 2]
    def suffix_start(self, of_teacher: bool, position: int, length: int) -> int: ...

@final
class ByteTrie:
    def __new__(cls, vocabulary: Vocabulary) -> ByteTrie: ...
    def prefixes(self, text: bytes) -> list[tuple[int, int]]: ...
    def with_prefix(self, prefix: bytes) -> NDArray[np.int64]: ...
    def longest_prefixes(
        self, text: bytes, starts: NDArray[np.int64], ends: NDArray[np.int64]
    ) -> NDArray[np.int64]: ...
    def ranges(
        self, text: bytes, starts: NDArray[np.int64], ends: NDArray[np.int64]
    ) -> tuple[NDArray[np.int64], NDArray[np.int64]]: ...
    def shortest_path(self, text: bytes) -> list[int] | None: ...

@final
class Retokenizer:
    def __new__(cls, pair: Pair) -> Retokenizer: ...
    def split(self, values: NDArray[Any], offsets: NDArray[np.int64]) -> RetokenizePlan: ...
    def assemble(
        self, plan: RetokenizePlan, values: NDArray[np.int64], offsets: NDArray[np.int64]
    ) -> RetokenizedIds: ...
    def repair(
        self,
        draft: RetokenizedIds,
        values: NDArray[Any],
        offsets: NDArray[np.int64],
        stretches: NDArray[np.int64],
    ) -> RetokenizedIds: ...

@final
class RetokenizePlan:
    def texts(self) -> list[str]: ...

@final
class RetokenizedIds:
    def arrays(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]: ...
    def counts(self) -> dict[str, int]: ...

def character_groups() -> tuple[NDArray[np.uint8], list[str]]: ...
def index_sections() -> list[tuple[str, str, int, str]]: ...
def build_index(
    pair: Pair,
    units: UnitColumns,
    sides: tuple[LogitRows, LogitRows],
    contents: IndexContents,
) -> tuple[NDArray[np.int64], dict[str, int]]: ...
def on_path(
    pair: Pair,
    units: UnitColumns,
    teacher: RaggedIds,
    student: RaggedIds,
    *,
    max_path: int,
    threads: int | None,
) -> tuple[_Entries, _Entries]: ...
def one_sided_tokens(
    pair: Pair, of_teacher: bool
) -> tuple[NDArray[np.int64], list[str | None]]: ...
def make_spellings(pair: Pair, teacher: _Ragged | None, student: _Ragged | None) -> None: ...
def ids_from_lists(
    name: str, rows: Sequence[object], *, booleans: bool = False
) -> tuple[NDArray[np.int64], NDArray[np.int64]]: ...
def segment_numbers(
    row_offsets: NDArray[np.int64],
    start: NDArray[np.int32],
    end: NDArray[np.int32],
    width: int,
) -> NDArray[np.int64]: ...
def spread_sums(
    units: UnitColumns,
    values: NDArray[np.floating[Any]],
    rows: tuple[TokenRows, TokenRows],
    choice: SpreadChoice,
) -> NDArray[np.floating[Any]]: ...
def check_top_k(
    ids: NDArray[np.int64],
    logprobs: NDArray[np.float32],
    offsets: NDArray[np.int64],
    vocab_size: int,
) -> None: ...
def read_prompt_logprobs(answers: list[object], question: Question) -> _Served: ...
def read_input_logprobs(
    answers: list[tuple[object, object | None]], question: Question
) -> _Served: ...
def read_echo_logprobs(
    answers: list[tuple[object, object, object | None]], question: Question
) -> _Served: ...
