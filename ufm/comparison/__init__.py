"""Solutions and predictions: comparison, the accuracy of a solution, verdicts, `verify`."""

from ufm.comparison.compare import AGREES, DIFFERS, UNDECIDED, Comparison, compare
from ufm.comparison.verdict import Verdict, verdict
from ufm.comparison.verify import verify

__all__ = [
    "AGREES",
    "DIFFERS",
    "UNDECIDED",
    "Comparison",
    "Verdict",
    "compare",
    "verdict",
    "verify",
]
