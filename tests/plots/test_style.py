"""What all plots share: axes, and matplotlib as an optional dependency."""

import subprocess
import sys

import pytest
from tables import for_each, slow_but

matplotlib = pytest.importorskip("matplotlib")
matplotlib.use("Agg")

from drawn_examples import DRAWN  # noqa: E402
from matplotlib import pyplot as plt  # noqa: E402

from ufm import plots  # noqa: E402


def test_every_plot_is_covered() -> None:
    assert set(DRAWN) == {name for name in plots.__all__ if name.islower()} - {"write_page"}


IMPORTS = {
    "the package leaves matplotlib alone": (
        "import sys, ufm; assert 'matplotlib' not in sys.modules"
    ),
    "without matplotlib the error names the extra": """
import sys
sys.modules["matplotlib"] = None
try:
    import ufm.plots
except ImportError as error:
    assert "pip install 'ufm[plot]'" in str(error)
else:
    raise AssertionError
""",
}


@pytest.mark.slow
@for_each("code", IMPORTS.values())
def test_matplotlib_is_optional(code: str) -> None:
    subprocess.run([sys.executable, "-c", code], check=True)


@for_each("name", slow_but(DRAWN, keep=range(3)))
def test_a_plot_draws_on_the_axes_given_or_makes_a_figure(name: str) -> None:
    figure, ax = plt.subplots()
    assert DRAWN[name](ax) is ax
    assert plt.get_fignums() == [figure.number]
    assert ax.get_xlabel()
    assert ax.get_ylabel() or [label.get_text() for label in ax.get_yticklabels()]
    figure.canvas.draw()
    plt.close("all")
    made = DRAWN[name](None)
    assert plt.get_fignums() == [made.figure.number]
    plt.close("all")
    made.figure.canvas.draw()
    with pytest.raises(ValueError, match="`ax` must be matplotlib axes, got str"):
        DRAWN[name]("here")
