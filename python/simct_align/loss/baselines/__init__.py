"""Baselines: the published objectives that SimCT is compared with, over the same index.

Every baseline has its authors' definition, over the units of this package instead of the authors'
own alignment. A new baseline is a subclass of `Baseline` that implements `Baseline.per_unit`. BPM
and ESCD compare more rows than `per_unit` gets: their base class is `RowBaseline`, in `row_pairs`.
"""

from .alm import ALMLoss
from .bpm import BPMLoss
from .common import Baseline, UnitRows
from .escd import ESCDLoss
from .gold import GOLDLoss
from .strict import StrictLoss
from .uld import ULDLoss

__all__ = [
    "ALMLoss",
    "BPMLoss",
    "Baseline",
    "ESCDLoss",
    "GOLDLoss",
    "StrictLoss",
    "ULDLoss",
    "UnitRows",
]
