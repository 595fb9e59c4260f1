"""Phase diagrams and mitigations."""

import numpy as np
import pytest

matplotlib = pytest.importorskip("matplotlib")
matplotlib.use("Agg")


from drawn_examples import DIAGRAM, MITIGATED, RATIO, STRENGTH, line  # noqa: E402

from ufm import plots  # noqa: E402


class TestPhaseDiagram:
    def test_the_thresholds_are_where_the_level_is_zero(self) -> None:
        ax = plots.phase_diagram(DIAGRAM)
        contours = [part for collection in ax.collections[1:] for part in collection.get_paths()]
        vertices = np.concatenate([path.vertices for path in contours[:1]])
        # Linear interpolation of log(x y) between points of a log-spaced grid, in x or in y.
        assert np.all(np.abs(np.log(vertices[:, 0] * vertices[:, 1])) < 0.5)
        assert not plots.phase_diagram(DIAGRAM, curves={}).collections[1:]

    def test_other_quantities_and_curves(self) -> None:
        ax = plots.phase_diagram(DIAGRAM, "rank", curves={"threshold": (RATIO, 1 / RATIO)})
        assert np.allclose(line(ax, "threshold"), np.stack([RATIO, 1 / RATIO], axis=1))
        with pytest.raises(ValueError, match="`quantity` must be one of"):
            plots.phase_diagram(DIAGRAM, "colour")


class TestMitigationCurves:
    def test_collapsed_strengths_are_left_thin(self) -> None:
        thin, thick = plots.mitigation_curves(MITIGATED, "cosine").lines
        assert np.array_equal(thin.get_ydata(), 1 - STRENGTH)
        assert np.array_equal(np.isnan(thick.get_ydata()), STRENGTH < 0.5)
        with pytest.raises(ValueError, match="`quantity` must be one of"):
            plots.mitigation_curves(MITIGATED, "colour")
