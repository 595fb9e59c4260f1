"""Pictures for targets draw what they are given."""

from typing import Any

import numpy as np
import pytest
from tables import for_each

matplotlib = pytest.importorskip("matplotlib")
matplotlib.use("Agg")

from matplotlib.patches import Rectangle  # noqa: E402

import ufm  # noqa: E402
from ufm import plots  # noqa: E402

TAGS = ufm.Targets([[1, 0, 0], [0, 1, 0], [1, 1, 0], [0, 0, 1]])
LOGITS = np.arange(12.0).reshape(4, 3) - 4


def tick_names(ax: Any, axis: str) -> list[str]:
    return [label.get_text() for label in getattr(ax, f"get_{axis}ticklabels")()]


class TestLogitMatrix:
    def test_shows_the_logits_with_zero_in_the_middle(self) -> None:
        ax = plots.logit_matrix(LOGITS, output_labels=["cat", "dog", "emu"], title="tags")
        (image,) = ax.images
        np.testing.assert_array_equal(image.get_array(), LOGITS)
        assert image.get_clim() == (-7, 7)
        assert (tick_names(ax, "x"), tick_names(ax, "y")) == (["cat", "dog", "emu"], list("0123"))
        assert [text.get_text() for text in ax.texts][3:6] == ["\N{MINUS SIGN}1.00", "0.00", "1.00"]
        assert ax.get_title() == "tags"

    def test_rows_can_have_mean_zero(self) -> None:
        ax = plots.logit_matrix(LOGITS, centred=True)
        np.testing.assert_array_equal(ax.images[0].get_array(), np.tile([-1, 0, 1], (4, 1)))

    def test_supports_are_framed_or_dotted(self) -> None:
        patches = plots.logit_matrix(LOGITS, TAGS).patches
        frames = [one for one in patches if isinstance(one, Rectangle)]
        cells = [(round(one.get_y() + 0.5), round(one.get_x() + 0.5)) for one in frames]
        assert cells == [(0, 0), (1, 1), (2, 0), (2, 1), (3, 2)]
        many = ufm.Targets(np.tile(np.eye(3), (5, 1)))
        (dots,) = plots.logit_matrix(np.zeros((15, 3)), many).lines
        np.testing.assert_array_equal(dots.get_xydata(), [(row % 3, row) for row in range(15)])
        assert not plots.logit_matrix(np.zeros((60, 3)), ufm.Targets(np.ones((60, 3)))).lines

    @for_each(
        ("arguments", "message"),
        [
            ((np.ones(3),), "`logits` must be an array of 2"),
            ((np.full((2, 2), np.nan),), "`logits` must be finite"),
            ((LOGITS.T, TAGS), r"`targets` must have rows of shape \(3, 4\)"),
        ],
    )
    def test_refuses(self, arguments: Any, message: str) -> None:
        with pytest.raises(ufm.ArgumentError, match=message):
            plots.logit_matrix(*arguments)
        with pytest.raises(ufm.ArgumentError, match="`row_labels` must be 4 names, got 2"):
            plots.logit_matrix(LOGITS, row_labels=["a", "b"])


class TestGramMatrix:
    def test_lengths_count(self) -> None:
        vectors = np.array([[2.0, 0], [0, 1], [-1, 0]])
        for ax in (plots.gram_matrix(vectors), plots.gram_matrix(gram=vectors @ vectors.T)):
            (image,) = ax.images
            np.testing.assert_array_equal(image.get_array(), [[4, 0, -2], [0, 1, 0], [-2, 0, 1]])
            assert image.get_clim() == (-4, 4)
        assert plots.gram_matrix(np.zeros((2, 2))).images[0].get_clim() == (-1, 1)
        assert len(plots.gram_matrix(np.eye(100)).get_xticks()) == 20

    @for_each(
        ("arguments", "message"),
        [
            ({}, "got neither"),
            ({"vectors": np.eye(2), "gram": np.eye(2)}, "got both"),
            ({"gram": np.ones((2, 3))}, "`gram` must be symmetric"),
            ({"gram": [[1.0, 0.5], [0.0, 1.0]]}, "`gram` must be symmetric"),
            ({"vectors": np.eye(2), "output_labels": "abc"}, "must be 2 names, got 3"),
        ],
    )
    def test_refuses(self, arguments: dict[str, Any], message: str) -> None:
        with pytest.raises(ufm.ArgumentError, match=message):
            plots.gram_matrix(**arguments)


class TestSupportMargins:
    def test_margins_are_drawn_in_order_by_the_size_of_the_support(self) -> None:
        ax = plots.support_margins([3.0, -1.0, 2.0, np.inf], TAGS)
        _, single, double = ax.lines
        assert (single.get_label(), double.get_label()) == ("1 in the support", "2 in the support")
        np.testing.assert_array_equal(single.get_xydata(), [[1, -1], [3, 3]])
        np.testing.assert_array_equal(double.get_xydata(), [[2, 2]])
        assert ax.get_title(loc="left") == "2 of 3 supports told from the rest"

    def test_without_targets_and_with_many_sizes_there_is_one_kind(self) -> None:
        assert len(plots.support_margins(np.arange(30.0)).lines) == 2
        stairs = ufm.Targets(np.tril(np.ones((12, 13))))
        ax = plots.support_margins(np.arange(12.0), stairs, title="stairs")
        assert (len(ax.lines), ax.get_legend(), ax.get_title(loc="left")) == (2, None, "stairs")

    @for_each(
        ("arguments", "message"),
        [
            (([np.inf, -np.inf],), "`margins` must be one number per target row"),
            (([np.nan, 1.0],), "`margins` must be one number per target row"),
            ((np.ones((2, 2)),), r"got shape \(2, 2\)"),
            (([1.0, 2.0], TAGS), r"`targets.rows` must have shape \(2,\), got \(4,\)"),
        ],
    )
    def test_refuses(self, arguments: Any, message: str) -> None:
        with pytest.raises(ufm.ArgumentError, match=message):
            plots.support_margins(*arguments)
