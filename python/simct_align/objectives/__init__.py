"""What SimCT is compared with, over the same index: one small file per objective.

`simct` and `shared` are the losses of `simct_align.loss`; `Uld`, `Alm` and `Gold` are baselines in
their authors' definitions, fed with this package's units instead of their own alignments.
"""

from .alm import Alm
from .common import Objective, ObjectiveOutput
from .gold import Gold
from .shared import shared
from .simct import simct
from .uld import Uld

__all__ = ["Alm", "Gold", "Objective", "ObjectiveOutput", "Uld", "shared", "simct"]
