"""Pictures of results: each function draws arrays or results on an `ax`, and returns it.

Nothing is solved here and nothing is shown. Without an `ax` a function makes a new figure, which
belongs to the caller (`ax.figure.savefig(...)`). Data are drawn as given, without smoothing or
resampling.

Colours are those of Okabe and Ito (Color Universal Design, 2008), which colour-blind readers can
tell apart. Every distinction of colour is also one of marker, line or place. What was found is
drawn filled or solid. What a theorem predicts is drawn open or dashed.

Needs the extra `plot`: pip install "ufm[plot]".
"""

try:
    import matplotlib as _  # noqa: F401
except ImportError as error:
    raise ImportError(
        "`ufm.plots` needs matplotlib, the extra `plot`: pip install 'ufm[plot]'."
    ) from error

from ufm.plots.dynamics import (
    condensation_cosines,
    margin_phase,
    measures_in_time,
    singular_values_in_time,
    weight_directions,
)
from ufm.plots.imbalance import mitigation_curves, phase_diagram
from ufm.plots.landscape import census, path
from ufm.plots.networks import (
    network_balance,
    network_classes,
    network_errors,
    network_losses,
    network_matrices,
)
from ufm.plots.report import write_page
from ufm.plots.solutions import (
    certificate_convergence,
    cosine_matrix,
    layerwise,
    predicted_against_found,
    singular_values,
    trajectory,
)
from ufm.plots.style import PALETTE
from ufm.plots.sweeps import sweep
from ufm.plots.targets import gram_matrix, logit_matrix, support_margins

__all__ = [
    "PALETTE",
    "census",
    "certificate_convergence",
    "condensation_cosines",
    "cosine_matrix",
    "gram_matrix",
    "layerwise",
    "logit_matrix",
    "margin_phase",
    "measures_in_time",
    "mitigation_curves",
    "network_balance",
    "network_classes",
    "network_errors",
    "network_losses",
    "network_matrices",
    "path",
    "phase_diagram",
    "predicted_against_found",
    "singular_values",
    "singular_values_in_time",
    "support_margins",
    "sweep",
    "trajectory",
    "weight_directions",
    "write_page",
]
