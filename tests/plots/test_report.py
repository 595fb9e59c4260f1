"""The page: one file, nothing from elsewhere, readable without pictures, dark on a dark screen."""

import base64
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
from tables import for_each

matplotlib = pytest.importorskip("matplotlib")
matplotlib.use("Agg")

from matplotlib import pyplot as plt  # noqa: E402

from ufm import metrics, networks  # noqa: E402
from ufm.networks import LEGEND  # noqa: E402
from ufm.plots import report  # noqa: E402
from ufm.plots.report import Picture, Section, Table  # noqa: E402
from ufm.plots.style import INK, PAPER  # noqa: E402

LABELS = np.repeat(np.arange(4), (50, 50, 20, 20))
VOID = {"meta", "img", "source", "link", "br", "hr", "input"}


class Page(HTMLParser):
    """What is on a page, and whether its tags are balanced."""

    def __init__(self, text: str):
        super().__init__()
        self.open: list[str] = []
        self.found: list[tuple[str, dict[str, Any]]] = []
        self.words: list[str] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.found.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.words.append(data)

    def all(self, tag: str) -> list[dict[str, Any]]:
        return [attributes for name, attributes in self.found if name == tag]


def svg_of(address: str) -> str:
    head, _, data = address.partition(",")
    assert head == "data:image/svg+xml;base64"
    text = base64.b64decode(data).decode()
    ElementTree.fromstring(text)
    return text


@pytest.fixture(scope="module")
def measured() -> Any:
    generator = np.random.default_rng(0)
    means = generator.standard_normal((4, 6))
    features = means[LABELS] + 0.1 * generator.standard_normal((140, 6))
    return metrics.neural_collapse(features, LABELS, means, np.zeros(4)), features, means


@pytest.fixture(scope="module")
def held(measured: Any) -> networks.ModelComparison:
    _, features, means = measured
    trained = networks.TrainedNetwork.from_features(
        features, LABELS, means, np.zeros(4), weight_decay=5e-3
    )
    return networks.compare_with_model(trained)


@pytest.fixture(scope="module")
def text(measured: Any, held: networks.ModelComparison) -> str:
    first, *_, losses, _ = report.sections_of(held)
    return report.page(measured[0], first, losses, summary=held.agreement.words)


def a_line() -> Any:
    _, ax = plt.subplots()
    ax.plot([1, 2], color=matplotlib.rcParams["text.color"])
    return ax


@pytest.mark.slow
def test_the_page_stands_alone(text: str) -> None:
    page = Page(text)
    assert text.startswith("<!doctype html>")
    assert page.all("html") == [{"lang": "en"}]
    assert not page.all("script")
    assert not page.all("link")
    assert "http" not in re.sub(r"base64,[A-Za-z0-9+/=]*", "", text)
    assert "url(" not in text
    assert "@import" not in text
    addresses = [one["src"] for one in page.all("img")] + [
        one["srcset"] for one in page.all("source")
    ]
    assert all(address.startswith("data:") for address in addresses)
    for address in addresses:
        drawn = svg_of(address)
        references = set(re.findall(r'(?:href|src)="([^"]*)"', drawn))
        assert all(
            reference.startswith(("#", "data:image/png;base64,")) for reference in references
        )


def test_every_picture_is_there_twice_and_in_words(text: str) -> None:
    page = Page(text)
    images, sources = page.all("img"), page.all("source")
    assert len(images) == len(sources) == len(page.all("figcaption")) == 5
    assert all(len(image["alt"]) > 20 for image in images)
    for image, source in zip(images, sources, strict=True):
        assert source["media"] == "screen and (prefers-color-scheme: dark)"
        assert PAPER in svg_of(source["srcset"])
        assert PAPER not in svg_of(image["src"])
        assert INK in svg_of(source["srcset"])


def test_the_page_can_be_found_through(text: str, held: networks.ModelComparison) -> None:
    page = Page(text)
    anchors = [section["id"] for section in page.all("section")]
    assert [link["href"] for link in page.all("a")] == [f"#{anchor}" for anchor in anchors]
    assert len(page.all("h1")) == 1
    assert len(page.all("h2")) == len(anchors) == 3
    labels = {one["id"] for one in page.all("h2")}
    assert {section["aria-labelledby"] for section in page.all("section")} == labels
    assert all(cell["scope"] in ("col", "row") for cell in page.all("th"))
    regions = [one for one in page.all("div") if one.get("role") == "region"]
    assert len(regions) == len(page.all("table")) == 3
    assert all(one["aria-label"] for one in regions)
    words = " ".join(page.words).replace("\N{NO-BREAK SPACE}", " ")
    assert held.agreement.words[1:] in words
    assert all(line in words for line in LEGEND)
    for row in held.rows:
        assert row.quantity in words
        assert f"{row.measured:.5g}" in words


@pytest.mark.nightly
def test_the_whole_page_has_all_parts(measured: Any, held: networks.ModelComparison) -> None:
    page = Page(report.page(measured[0], held))
    assert len(page.all("section")) == 6
    assert len(page.all("img")) == 17
    assert held.agreement.words[1:] in "".join(page.words).replace("\N{NO-BREAK SPACE}", " ")


def test_light_and_dark_have_their_own_colours(text: str) -> None:
    style = text[text.index("<style>") : text.index("</style>")]
    assert "prefers-color-scheme:dark" in style
    assert "@media print" in style
    light, dark = (
        dict(re.findall(r"--(\w+):(#\w+)", part))
        for part in style.split("prefers-color-scheme:dark")[:2]
    )
    assert set(light) == set(dark)

    def luminance(colour: str) -> float:
        channels = np.array(matplotlib.colors.to_rgb(colour))
        linear = np.where(
            channels <= 0.04045, channels / 12.92, ((channels + 0.055) / 1.055) ** 2.4
        )
        return float(linear @ [0.2126, 0.7152, 0.0722])

    for colours in (light, dark):
        paper = luminance(colours["paper"])
        for name in ("ink", "faint", "link", "agrees", "close", "rough", "differs"):
            ends = sorted((paper, luminance(colours[name])))
            assert (ends[1] + 0.05) / (ends[0] + 0.05) > 4.5, name  # WCAG AA


def test_the_same_numbers_make_the_same_page(held: networks.ModelComparison) -> None:
    section = Section("A line", [Picture(a_line, "a line")])
    assert report.page(section) == report.page(section)


def test_pages_take_sections_of_ones_own(tmp_path: Path, measured: Any) -> None:
    figure = a_line().figure
    contents = [
        Section(
            "Training <b>",
            ["first\n\nsecond", "two\nlines", Picture(a_line, 'a "line" & more', "up")],
        ),
        Section(
            "More",
            [
                Table([("a", "b"), ("x", "1.5"), ("y", "agrees")], "numbers"),
                Picture(figure, "fixed"),
                measured[0],
            ],
        ),
    ]
    path = report.write_page(
        tmp_path / "deep" / "er", *contents, title="My <page>", summary="In short & sweet."
    )
    assert path == tmp_path / "deep" / "er" / "index.html"
    page = Page(path.read_text(encoding="utf-8"))
    words = "".join(page.words)
    assert "Training <b>" in words
    assert "My <page>" in words
    assert "In short & sweet." in words
    assert [image["alt"] for image in page.all("img")] == ['a "line" & more', "fixed"]
    assert len(page.all("source")) == 1  # a figure is what it is
    assert "two\nlines" in words
    assert len(page.all("pre")) == 1
    assert {"class": "number"} in page.all("td")
    assert {"class": "level agrees"} in page.all("span")
    assert "tr(S_W S_B^+)" in words
    assert plt.get_fignums() == [figure.number]  # what the page drew is closed
    plt.close("all")


def test_an_interrupted_page_leaves_the_page_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = report.write_page(tmp_path, Section("Before", ["words"]))
    before = path.read_text(encoding="utf-8")

    def interrupted(*arguments: Any, **options: Any) -> None:
        raise KeyboardInterrupt

    for step in ("write_text", "replace"):
        with monkeypatch.context() as context:
            context.setattr(Path, step, interrupted)
            with pytest.raises(KeyboardInterrupt):
                report.write_page(tmp_path, Section("After", ["words"]))
        assert path.read_text(encoding="utf-8") == before
        assert list(tmp_path.iterdir()) == [path]


def test_a_measurement_without_weights_says_so(measured: Any) -> None:
    _, features, _ = measured
    words = "".join(Page(report.page(metrics.neural_collapse(features, LABELS))).words)
    assert "The classifier's weights were not given" in words
    streamed = networks.measure([(features, LABELS)], groups=(0, 0, 1, 1))
    words = "".join(Page(report.page(streamed)).words)
    assert "Groups of classes" in words


def test_several_models_are_side_by_side(held: networks.ModelComparison) -> None:
    both = networks.ModelComparisons((held, held._replace(name="another")))
    (overview, *parts) = report.sections_of(both)
    assert overview.title == "Models side by side"
    assert len(parts) == 10
    assert parts[5].title == "Another: compared with the model"


@for_each(
    ("contents", "message"),
    [
        ((), "`contents` must be at least one section"),
        ((1,), "`contents` must be sections"),
        ((Section("A", [3]),), "`blocks` of a section must be texts"),
        (
            (Section("A", [Picture("x.png", "x")]),),
            "`draw` of a picture must be a matplotlib figure",
        ),
        (
            (Section("A", [Picture(lambda: 3, "x")]),),
            "`draw` of a picture must return a matplotlib figure or axes",
        ),
    ],
)
def test_bad_contents_are_named(contents: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        report.page(*contents)


def test_the_pictures_show_zero_as_zero_and_mark_what_is_off_the_axis(
    held: networks.ModelComparison,
) -> None:
    from ufm import plots

    nearly = held._replace(
        measured=held.measured._replace(
            alignment=np.full(4, 1 - 1e-5), bias=np.array([1e-14, -1e-14, 0.0, 0.0])
        ),
        predicted=held.predicted._replace(alignment=np.ones(4), bias=np.zeros(4)),
        rows=tuple(row._replace(error=1e-9, group_error=1e-9) for row in held.rows),
    )
    ax = plots.network_classes(nearly, "alignment")
    ax.figure.canvas.draw()
    assert ax.yaxis.get_offset_text().get_text() == ""
    assert ax.get_ylim() == pytest.approx((1 - 1e-5 - 0.01, 1.01))
    ax = plots.network_classes(nearly, "bias")
    assert all(np.all(line.get_ydata() == 0) for line in ax.lines)
    assert max(ax.get_ylim()) > 1e-6
    plain = held._replace(rows=tuple(row._replace(error=0.1, group_error=0.1) for row in held.rows))
    for report_, marked in ((nearly, True), (plain, False)):
        labels = [
            text.get_text() for text in plots.network_errors(report_).get_legend().get_texts()
        ]
        assert any("less than" in text for text in labels) is marked
    balance = plots.network_balance(held)
    low, high = balance.get_xlim()
    assert low > 1e-5 * high
    drawn = [line for line in balance.lines if line.get_marker() not in ("None", None, "")]
    assert sum(line.get_xdata().size for line in drawn) == 6
    assert all(
        np.all(line.get_xdata() >= low) and np.all(line.get_ydata() >= low) for line in drawn
    )
    ax = plots.singular_values(
        held.measured.weight_spectrum, held.predicted.weight_spectrum, label="measured"
    )
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["predicted", "measured"]
    plt.close("all")
