"""One self-contained page of measurements and the models that they were compared with.

The page is one file without scripts and without anything from elsewhere. So it is readable offline.
Pictures are embedded. Each one is drawn twice, for light and for dark screens, and the reader's
setting picks one (`prefers-color-scheme`). In print they are light. The page needs the extra
`plot`: pip install "ufm[plot]".
"""

import base64
import html
import io
import itertools
import os
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple, get_args

import numpy as np

from ufm._support import ArgumentError, __version__
from ufm.metrics import NeuralCollapse
from ufm.networks import LEGEND, AgreementKind, Measurement, ModelComparison, ModelComparisons
from ufm.plots.networks import (
    network_balance,
    network_classes,
    network_errors,
    network_losses,
    network_matrices,
)
from ufm.plots.solutions import cosine_matrix, singular_values

__all__ = ["Picture", "Section", "Table", "page", "sections_of", "write_page"]

TITLE = "Neural collapse of a trained network"
MOST_CLASSES = 200  # most classes of a matrix that is drawn
STYLE = Path(__file__).with_name("page.css").read_text(encoding="utf-8").strip()


class Picture(NamedTuple):
    """A picture on the page.

    Attributes:
        draw: Function that returns matplotlib axes or a figure. It is called once for light and
            once for dark screens. A figure in its place is light on both.
        alt: What the picture shows, in words, for those who do not see it.
        caption: Text below it.
    """

    draw: Any
    alt: str
    caption: str = ""


class Table(NamedTuple):
    """A table on the page.

    Attributes:
        rows: Rows of texts, the head first.
        caption: Text above it.
    """

    rows: Sequence[Sequence[str]]
    caption: str = ""


class Section(NamedTuple):
    """A part of the page.

    Attributes:
        title: Its title.
        blocks: Texts, `Table`s, `Picture`s, or anything with `_repr_html_`, in order.
    """

    title: str
    blocks: Sequence[Any]


def write_page(
    directory: str | os.PathLike[str],
    *contents: Any,
    title: str = TITLE,
    summary: str | None = None,
) -> Path:
    """Write `index.html` into a directory, and return its path.

    The page is written under a temporary name and then renamed, so that it is whole or not there.

    Args:
        directory: Where to write. It is made if it is not there.
        contents: As for `page`.
        title: Title of the page.
        summary: A sentence or two below the title.

    Raises:
        ValueError: If there is no page for the contents.
        OSError: If the file cannot be written.
        ImportError: If matplotlib is not installed.
    """
    text = page(*contents, title=title, summary=summary)
    folder = Path(directory)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "index.html"
    partial = folder / f"index.html.{os.getpid()}.partial"
    try:
        partial.write_text(text, encoding="utf-8")
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
    return path


def page(*contents: Any, title: str = TITLE, summary: str | None = None) -> str:
    """Return the page as HTML.

    Args:
        contents: Sections, a `NeuralCollapse` or `Measurement`, and a `ModelComparison` or
            `ModelComparisons`, in order.
        title: Title of the page.
        summary: A sentence or two below the title. If not given, the verdicts of comparisons with
            models.

    Raises:
        ValueError: If there is no page for the contents.
        ImportError: If matplotlib is not installed.
    """
    sections = [section for content in contents for section in sections_of(content)]
    if not sections:
        raise ArgumentError(
            "contents", "must be at least one section, measurement or report; got nothing"
        )
    words = _summary(contents) if summary is None else summary
    lead = f'<p class="lead">{html.escape(words)}</p>' if words else ""
    head, links, body = html.escape(title), [], []
    for index, section in enumerate(sections):
        anchor, name = f"part-{index + 1}", html.escape(section.title)
        links.append(f'<li><a href="#{anchor}">{name}</a></li>')
        body.append(
            f'<section id="{anchor}" aria-labelledby="{anchor}-title">'
            f'<h2 id="{anchor}-title">{name}</h2>{_blocks(section.blocks)}</section>'
        )
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        '<meta name="color-scheme" content="light dark">'
        f'<meta name="generator" content="ufm {__version__}"><title>{head}</title>'
        f"<style>{STYLE}</style></head><body><header><h1>{head}</h1>{lead}</header>"
        f'<nav aria-label="Contents"><ol>{"".join(links)}</ol></nav>'
        f"<main>{''.join(body)}</main>"
        f"<footer>Made with ufm {__version__}.</footer></body></html>\n"
    )


def sections_of(content: Any) -> list[Section]:
    """Return the sections of the page for a result.

    Args:
        content: A section, a `NeuralCollapse` or `Measurement`, a `ModelComparison` or
            `ModelComparisons`.

    Raises:
        ValueError: If it is anything else.
    """
    if isinstance(content, Section):
        return [content]
    if isinstance(content, Measurement):
        return _of_measurement(content)
    if isinstance(content, NeuralCollapse):
        return [_of_collapse(content)]
    if isinstance(content, ModelComparison):
        return _of_model(content, "")
    if isinstance(content, ModelComparisons):
        return _of_models(content)
    raise ArgumentError(
        "contents",
        "must be sections (ufm.plots.report.Section), a NeuralCollapse or Measurement, or "
        f"what ufm.networks.compare_with_model returns; got {type(content).__name__}",
    )


def _summary(contents: Sequence[Any]) -> str:
    words = []
    for content in contents:
        if isinstance(content, ModelComparison):
            words.append(_sentence(content.agreement.words))
        if isinstance(content, ModelComparisons):
            words += [_sentence(f"{one.name}: {one.agreement.words}") for one in content.reports]
    return " ".join(words)


def _sentence(words: str) -> str:
    return (words[:1].upper() + words[1:].removesuffix(".") + ".").replace(
        " %", "\N{NO-BREAK SPACE}%"
    )


def _of_measurement(measured: Measurement) -> list[Section]:
    section = _of_collapse(measured.collapse)
    blocks = list(section.blocks)
    if measured.loss is not None:
        blocks.insert(1, f"Mean loss over all samples: {measured.loss:.6g}.")
    if measured.groups is not None:
        blocks.append(f"Groups of classes:\n{measured.groups}")
    return [section._replace(blocks=blocks)]


def _of_collapse(measured: NeuralCollapse) -> Section:
    title, summary, classes = measured.tables()
    blocks: list[Any] = [
        title + ".",
        Table(summary, "NC1 to NC4, each in the conventions of the literature"),
    ]
    pictures = [("centred class means", measured.nc2_features)]
    if measured.nc2_weights is not None:
        pictures.append(("classifiers", measured.nc2_weights))
    else:
        blocks.append(
            "The classifier's weights were not given: NC2 of weights, NC3 and NC4 are missing."
        )
    K = len(measured.class_counts)
    for name, frame in pictures if K <= MOST_CLASSES else ():
        cosines = np.asarray(frame.cosines)
        off = cosines[~np.eye(K, dtype=bool)]
        names = [str(k) for k in range(K)]
        blocks.append(
            Picture(
                lambda cosines=cosines, names=names: cosine_matrix(
                    gram=cosines, class_labels=names
                ),
                f"Heat map of the cosines between {name}: between {off.min():.2f} and "
                f"{off.max():.2f}, {-1 / (K - 1):.2f} at a simplex ETF.",
                f"Cosines between {name}.",
            )
        )
    blocks.append(Table(classes, "Class by class"))
    return Section("Neural collapse, measured", blocks)


def _of_models(reports: ModelComparisons) -> list[Section]:
    least = {name: reports.best(name) for name in reports.quantities}
    wins = "; ".join(
        f"{report.name}: {sum(best == report.name for best in least.values())}"
        for report in reports.reports
    )
    overview = Section(
        "Models side by side",
        [
            *(_Verdict(report, report.name) for report in reports.reports),
            Picture(
                lambda: network_errors(reports),
                "Errors of every quantity in every model on a logarithmic axis. "
                f"How often each is the least: {wins}.",
                "How far measured and predicted lie apart, model by model; left is better.",
            ),
            Table(reports.table(), "Errors of the models; the least of a row has a star"),
        ],
    )
    parts = [overview]
    for report in reports.reports:
        parts += _of_model(report, f"{report.name}: ")
    return parts


def _of_model(report: ModelComparison, prefix: str) -> list[Section]:
    def title(name: str) -> str:
        words = prefix + name
        return words[:1].upper() + words[1:]

    errors = Picture(
        lambda: network_errors(report),
        "Errors of every quantity on a logarithmic axis, with lines at 1, 10 and 30 per cent; "
        "the numbers are in the table below.",
        "How far measured and predicted lie apart.",
    )
    facts: list[Any] = [_Verdict(report, ""), _Facts(report.facts()), errors]
    table = Table(report.table(), "Measured and predicted")
    parts = [Section(title("compared with the model"), [*facts, table, *LEGEND])]
    if report.trained.num_classes <= MOST_CLASSES:
        parts.append(Section(title("angles and Gram matrices"), _matrices(report)))
    parts += [
        Section(title("class by class"), _classes(report)),
        Section(title("objective and balance"), _objective(report)),
        Section(title("spectra"), _spectra(report)),
    ]
    return parts


def _of_quantity(
    draw: Callable[..., Any], report: ModelComparison, quantity: str, caption: str
) -> Picture:
    row = report.row(quantity)
    alt = (
        f"{caption} Measured beside predicted: the error is {row.error:.2g}, "
        f"relative to {row.relative_to}."
    )
    return Picture(lambda: draw(report, quantity), alt, caption)


def _matrices(report: ModelComparison) -> list[Picture]:
    captions = {
        "weight cosines": "Cosines between classifiers.",
        "mean cosines": "Cosines between class means, not centred.",
        "centred mean cosines": "Cosines between class means, centred.",
        "weight gram": "Gram matrix of the classifiers, with its scale.",
        "mean gram": "Gram matrix of the class means, with its scale.",
    }
    return [_of_quantity(network_matrices, report, *caption) for caption in captions.items()]


def _classes(report: ModelComparison) -> list[Picture]:
    captions = {
        "weight norms": "Norms of the classifiers.",
        "mean norms": "Norms of the class means.",
        "margins": "Margins: logit of the class less the largest other, at the class mean.",
        "alignment": "Alignment of classifier and class mean.",
    }
    if report.trained.bias is not None:
        captions["bias"] = "Bias, less its mean where the loss does not see it."
    return [_of_quantity(network_classes, report, *caption) for caption in captions.items()]


def _objective(report: ModelComparison) -> list[Picture]:
    measured, predicted, balance = report.measured, report.predicted, report.effective.balance
    return [
        Picture(
            lambda: network_losses(report),
            f"Bars of the parts of the objective: {measured.loss.total:.4g} measured, "
            f"{predicted.loss.total:.4g} at the minimum.",
            "What the objective of the model is made of, at the network and at the minimum.",
        ),
        Picture(
            lambda: network_balance(report),
            "Both sides of the balance against each other on logarithmic axes; "
            f"relative residual {balance.residual:.2g}.",
            "The penalty of the weights against that of the features, direction by direction: "
            "every critical point of the model has them equal.",
        ),
    ]


def _spectra(report: ModelComparison) -> list[Picture]:
    measured, predicted = report.measured, report.predicted
    return [
        Picture(
            lambda found=found, expected=expected: singular_values(
                found, expected, label="measured"
            ),
            f"Singular values of {name}: measured from {found.max():.3g} down to "
            f"{found.min():.3g}, predicted from {expected.max():.3g} to {expected.min():.3g}.",
            f"Singular values of {name}; measured are filled.",
        )
        for name, found, expected in (
            ("the classifier W", measured.weight_spectrum, predicted.weight_spectrum),
            ("the class means M", measured.mean_spectrum, predicted.mean_spectrum),
        )
    ]


class _Verdict(NamedTuple):
    report: ModelComparison
    name: str

    def _repr_html_(self) -> str:
        kind = self.report.agreement.kind
        name = f"<b>{html.escape(self.name)}</b>: " if self.name else ""
        badge = f'<span class="level {_class(kind)}">{html.escape(kind)}</span>'
        words = html.escape(_sentence(self.report.agreement.words))
        return f'<p class="verdict">{badge} {name}{words}</p>'


class _Facts(NamedTuple):
    facts: list[tuple[str, str]]

    def _repr_html_(self) -> str:
        rows = "".join(
            f"<dt>{html.escape(name)}</dt><dd>{html.escape(text)}</dd>" for name, text in self.facts
        )
        return f"<dl>{rows}</dl>"


def _blocks(blocks: Sequence[Any]) -> str:
    """Return blocks one below the other, with pictures side by side as far as they fit."""
    parts = []
    for are_pictures, group in itertools.groupby(blocks, lambda block: isinstance(block, Picture)):
        inner = "".join(_block(block) for block in group)
        parts.append(f'<div class="pictures">{inner}</div>' if are_pictures else inner)
    return "".join(parts)


def _block(block: Any) -> str:
    if isinstance(block, str):
        return "".join(
            f"<pre>{html.escape(text)}</pre>" if "\n" in text else f"<p>{html.escape(text)}</p>"
            for text in block.split("\n\n")
        )
    if isinstance(block, Picture):
        return _figure(block)
    if isinstance(block, Table):
        return _table(block)
    if hasattr(block, "_repr_html_"):
        return str(block._repr_html_())
    raise ArgumentError(
        "blocks",
        "of a section must be texts, ufm.plots.report.Table or Picture, or have "
        f"`_repr_html_`; got {type(block).__name__}",
    )


NUMBER = re.compile(r"[-+\N{MINUS SIGN}]?(\d|inf|nan)[\d.e+-]*\*?%?")
RIGHT = ' class="number"'


def _class(level: str) -> str:
    return level.replace(" ", "-")


def _table(table: Table) -> str:
    head, *body = [[str(cell) for cell in row] for row in table.rows]

    def cell(text: str, first: bool) -> str:
        if text in get_args(AgreementKind):
            return f'<td><span class="level {_class(text)}">{html.escape(text)}</span></td>'
        if first:
            return f'<th scope="row">{html.escape(text)}</th>'
        number = RIGHT if NUMBER.fullmatch(text) else ""
        return f"<td{number}>{html.escape(text)}</td>"

    numeric = [
        bool(body) and all(NUMBER.fullmatch(row[index]) for row in body)
        for index in range(len(head))
    ]
    heads = "".join(
        f'<th scope="col"{RIGHT if right and index else ""}>{html.escape(text)}</th>'
        for index, (text, right) in enumerate(zip(head, numeric, strict=True))
    )
    rows = "".join(
        "<tr>" + "".join(cell(text, index == 0) for index, text in enumerate(row)) + "</tr>"
        for row in body
    )
    caption = f"<caption>{html.escape(table.caption)}</caption>" if table.caption else ""
    name = html.escape(table.caption or "table", quote=True)
    return (
        f'<div class="scroll" role="region" aria-label="{name}" tabindex="0"><table>{caption}'
        f"<thead><tr>{heads}</tr></thead>"
        f"<tbody>{rows}</tbody></table></div>"
    )


def _figure(picture: Picture) -> str:
    light = _drawn(picture.draw, dark=False)
    source = ""
    if callable(picture.draw):
        dark = _drawn(picture.draw, dark=True)
        source = f'<source media="screen and (prefers-color-scheme: dark)" srcset="{dark}">'
    caption = f"<figcaption>{html.escape(picture.caption)}</figcaption>" if picture.caption else ""
    alt = html.escape(picture.alt, quote=True)
    return f'<figure><picture>{source}<img src="{light}" alt="{alt}"></picture>{caption}</figure>'


def _drawn(draw: Any, dark: bool) -> str:
    """Return a picture as the address that holds its data."""
    from contextlib import nullcontext

    import matplotlib as mpl
    from matplotlib import pyplot as plt
    from matplotlib.figure import Figure

    from ufm.plots.style import dark_style

    if not callable(draw) and not isinstance(draw, Figure):
        raise ArgumentError(
            "draw",
            "of a picture must be a matplotlib figure, or a function that returns one or its "
            f"axes; got {type(draw).__name__}",
        )
    # Text drawn as outlines looks the same everywhere. With a fixed salt, equal numbers give equal
    # pages.
    with (
        mpl.rc_context({"svg.fonttype": "path", "svg.hashsalt": "ufm"}),
        dark_style() if dark else nullcontext(),
    ):
        before = plt.get_fignums()
        made = draw() if callable(draw) else draw
        figure = made if isinstance(made, Figure) else getattr(made, "figure", None)
        if not isinstance(figure, Figure):
            raise ArgumentError(
                "draw",
                f"of a picture must return a matplotlib figure or axes, got {type(made).__name__}",
            )
        buffer = io.BytesIO()
        figure.savefig(
            buffer, format="svg", bbox_inches="tight", metadata={"Date": None, "Creator": None}
        )
        for number in set(plt.get_fignums()) - set(before):
            plt.close(number)
    return "data:image/svg+xml;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")
