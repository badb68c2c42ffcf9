"""What SimCT is compared with, over the same index: one small file per objective.

Each has its authors' definition, fed with this package's units instead of their own alignments. A
new one is a subclass of `Baseline` that implements `Baseline.per_unit`.
"""

from .alm import ALMLoss
from .common import Baseline, UnitRows
from .gold import GOLDLoss
from .uld import ULDLoss

__all__ = ["ALMLoss", "Baseline", "GOLDLoss", "ULDLoss", "UnitRows"]
