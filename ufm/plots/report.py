"""One self-contained page of what was measured and what it was held against: tables and pictures, readable offline, on light and on dark screens.

The page is one file without scripts and without anything from elsewhere: pictures are embedded, each drawn twice, for light and for dark, and the
reader's setting picks one (`prefers-color-scheme`); in print they are light. Needs the extra `plot`: pip install "ufm[plot]".
"""

import base64
import html
import io
import itertools
import os
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ufm.metrics import NeuralCollapse
from ufm.networks import HeldAgainstModel, HeldAgainstModels, Measurement
from ufm.networks.agreement import LEGEND
from ufm.plots.networks import (
    network_balance,
    network_classes,
    network_errors,
    network_losses,
    network_matrices,
)
from ufm.plots.solutions import cosine_matrix, singular_values
from ufm.version import __version__

__all__ = ["Picture", "Section", "Table", "page", "sections_of", "write_page"]

TITLE = "Neural collapse of a trained network"
MOST_CLASSES = 200  # of a matrix that is drawn


class Picture(NamedTuple):
    """A picture on the page.

    draw: returns matplotlib axes or a figure; called once for light and once for dark pages. Or a figure, which is then light on both.
    alt: what it shows, in words, for those who do not see it. caption: below it.
    """

    draw: Any
    alt: str
    caption: str = ""


class Table(NamedTuple):
    """A table on the page: rows of texts, the head first. caption: above it."""

    rows: Sequence[Sequence[str]]
    caption: str = ""


class Section(NamedTuple):
    """A part of the page: a title and blocks in order, each a text, a `Table`, a `Picture`, or anything with `_repr_html_`."""

    title: str
    blocks: Sequence[Any]


def write_page(
    directory: str | os.PathLike[str], *contents: Any, title: str = TITLE, summary: str | None = None
) -> Path:
    """Write `index.html` into a directory, which is made if it is not there, and return its path.

    Args:
        directory: where to write.
        contents: as for `page`.
        title: of the page.
        summary: a sentence or two below it.

    Raises:
        ValueError: for contents that have no page.
        OSError: where the file cannot be written.
        ImportError: without matplotlib.
    """
    text = page(*contents, title=title, summary=summary)
    folder = Path(directory)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "index.html"
    path.write_text(text, encoding="utf-8")
    return path


def page(*contents: Any, title: str = TITLE, summary: str | None = None) -> str:
    """Return the page as HTML.

    Args:
        contents: in order: sections, a `NeuralCollapse` or `Measurement`, a `HeldAgainstModel` or `HeldAgainstModels`.
        title: of the page.
        summary: a sentence or two below it; if not given, the verdicts of what was held against a model.

    Raises:
        ValueError: for contents that have no page.
        ImportError: without matplotlib.
    """
    sections = [section for content in contents for section in sections_of(content)]
    if not sections:
        raise ValueError("`contents` must be at least one section, measurement or report; got nothing.")
    anchors = [f"part-{index + 1}" for index in range(len(sections))]
    links = "".join(
        f'<li><a href="#{anchor}">{html.escape(section.title)}</a></li>'
        for anchor, section in zip(anchors, sections, strict=True)
    )
    body = "".join(
        f'<section id="{anchor}" aria-labelledby="{anchor}-title"><h2 id="{anchor}-title">{html.escape(section.title)}</h2>'
        + _blocks(section.blocks)
        + "</section>"
        for anchor, section in zip(anchors, sections, strict=True)
    )
    words = _summary(contents) if summary is None else summary
    lead = f'<p class="lead">{html.escape(words)}</p>' if words else ""
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1"><meta name="color-scheme" content="light dark">'
        f'<meta name="generator" content="ufm {__version__}"><title>{html.escape(title)}</title><style>{STYLE}</style></head>'
        f'<body><header><h1>{html.escape(title)}</h1>{lead}</header><nav aria-label="Contents"><ol>{links}</ol></nav>'
        f"<main>{body}</main><footer>Made with ufm {__version__}.</footer></body></html>\n"
    )


def sections_of(content: Any) -> list[Section]:
    """Return the sections that something has on a page.

    Args:
        content: a section, a `NeuralCollapse` or `Measurement`, a `HeldAgainstModel` or `HeldAgainstModels`.

    Raises:
        ValueError: for anything else.
    """
    if isinstance(content, Section):
        return [content]
    if isinstance(content, Measurement):
        return _of_measurement(content)
    if isinstance(content, NeuralCollapse):
        return [_of_collapse(content)]
    if isinstance(content, HeldAgainstModel):
        return _of_model(content, "")
    if isinstance(content, HeldAgainstModels):
        return _of_models(content)
    raise ValueError(
        "`contents` must be sections (ufm.plots.report.Section), a NeuralCollapse or Measurement, "
        "or what ufm.networks.held_against_model returns; got "
        f"{type(content).__name__}."
    )


def _summary(contents: Sequence[Any]) -> str:
    words = []
    for content in contents:
        if isinstance(content, HeldAgainstModel):
            words.append(_sentence(content.agreement.words))
        if isinstance(content, HeldAgainstModels):
            words += [_sentence(f"{one.name}: {one.agreement.words}") for one in content.reports]
    return " ".join(words)


def _sentence(words: str) -> str:
    return (words[:1].upper() + words[1:].removesuffix(".") + ".").replace(" %", "\N{NO-BREAK SPACE}%")


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
    blocks: list[Any] = [title + ".", Table(summary, "NC1 to NC4, each in the conventions of the literature")]
    pictures = [("centred class means", measured.nc2_features)]
    if measured.nc2_weights is not None:
        pictures.append(("classifiers", measured.nc2_weights))
    else:
        blocks.append("The classifier's weights were not given: NC2 of weights, NC3 and NC4 are missing.")
    K = len(measured.class_counts)
    for name, frame in pictures if K <= MOST_CLASSES else ():
        cosines = np.asarray(frame.cosines)
        off = cosines[~np.eye(K, dtype=bool)]
        names = [str(k) for k in range(K)]
        blocks.append(
            Picture(
                lambda cosines=cosines, names=names: cosine_matrix(gram=cosines, class_labels=names),
                f"Heat map of the cosines between {name}: between {off.min():.2f} and {off.max():.2f}, {-1 / (K - 1):.2f} at a simplex ETF.",
                f"Cosines between {name}.",
            )
        )
    blocks.append(Table(classes, "Class by class"))
    return Section("Neural collapse, measured", blocks)


def _of_models(reports: HeldAgainstModels) -> list[Section]:
    least = {name: reports.best(name) for name in reports.quantities}
    wins = "; ".join(
        f"{report.name}: {sum(best == report.name for best in least.values())}" for report in reports.reports
    )
    overview = Section(
        "Models side by side",
        [
            *(_Verdict(report, report.name) for report in reports.reports),
            Picture(
                lambda: network_errors(reports),
                f"Errors of every quantity in every model on a logarithmic axis. How often each is the least: {wins}.",
                "How far measured and predicted lie apart, model by model; left is better.",
            ),
            Table(reports.table(), "Errors of the models; the least of a row has a star"),
        ],
    )
    parts = [overview]
    for report in reports.reports:
        parts += _of_model(report, f"{report.name}: ")
    return parts


def _of_model(report: HeldAgainstModel, prefix: str) -> list[Section]:
    def title(name: str) -> str:
        words = prefix + name
        return words[:1].upper() + words[1:]

    rows = {row.quantity: row for row in report.rows}

    def drawn(draw: Callable[..., Any], quantity: str, caption: str) -> Picture:
        row = rows[quantity]
        alt = f"{caption} Measured beside predicted: the error is {row.error:.2g}, relative to {row.relative_to}."
        return Picture(lambda: draw(report, quantity), alt, caption)

    K = report.trained.num_classes
    matrices = [
        drawn(network_matrices, "weight cosines", "Cosines between classifiers."),
        drawn(network_matrices, "mean cosines", "Cosines between class means, not centred."),
        drawn(network_matrices, "centred mean cosines", "Cosines between class means, centred."),
        drawn(network_matrices, "weight gram", "Gram matrix of the classifiers, with its scale."),
        drawn(network_matrices, "mean gram", "Gram matrix of the class means, with its scale."),
    ]
    classes = [
        drawn(network_classes, "weight norms", "Norms of the classifiers."),
        drawn(network_classes, "mean norms", "Norms of the class means."),
        drawn(network_classes, "margins", "Margins: logit of the class less the largest other, at the class mean."),
        drawn(network_classes, "alignment", "Alignment of classifier and class mean."),
    ]
    if report.trained.bias is not None:
        classes.append(drawn(network_classes, "bias", "Bias, less its mean where the loss does not see it."))
    measured, predicted, balance = report.measured, report.predicted, report.effective.balance
    spectra = [
        Picture(
            lambda found=found, expected=expected: singular_values(found, expected, label="measured"),
            f"Singular values of {name}: measured from {found.max():.3g} down to {found.min():.3g}, predicted from {expected.max():.3g} to "
            f"{expected.min():.3g}.",
            f"Singular values of {name}; measured are filled.",
        )
        for name, found, expected in (
            ("the classifier W", measured.weight_spectrum, predicted.weight_spectrum),
            ("the class means M", measured.mean_spectrum, predicted.mean_spectrum),
        )
    ]
    objective = Picture(
        lambda: network_losses(report),
        f"Bars of the parts of the objective: {measured.loss.total:.4g} measured, {predicted.loss.total:.4g} at the minimum.",
        "What the objective of the model is made of, at the network and at the minimum.",
    )
    law = Picture(
        lambda: network_balance(report),
        f"Both sides of the balance against each other on logarithmic axes; relative residual {balance.residual:.2g}.",
        "The penalty of the weights against that of the features, direction by direction: every critical point of the model has them equal.",
    )
    errors = Picture(
        lambda: network_errors(report),
        "Errors of every quantity on a logarithmic axis, with lines at 1, 10 and 30 per cent; the numbers are in the table below.",
        "How far measured and predicted lie apart.",
    )
    parts = [
        Section(
            title("held against the model"),
            [
                _Verdict(report, ""),
                _Facts(report.facts()),
                errors,
                Table(report.table(), "Measured and predicted"),
                *LEGEND,
            ],
        ),
        Section(title("angles and Gram matrices"), matrices),
        Section(title("class by class"), classes),
        Section(title("objective and balance"), [objective, law]),
        Section(title("spectra"), spectra),
    ]
    return [part for part in parts if K <= MOST_CLASSES or part.blocks is not matrices]


class _Verdict(NamedTuple):
    report: HeldAgainstModel
    name: str

    def _repr_html_(self) -> str:
        kind = self.report.agreement.kind
        name = f"<b>{html.escape(self.name)}</b>: " if self.name else ""
        badge = f'<span class="level {_class(kind)}">{html.escape(kind)}</span>'
        return f'<p class="verdict">{badge} {name}{html.escape(_sentence(self.report.agreement.words))}</p>'


class _Facts(NamedTuple):
    facts: list[tuple[str, str]]

    def _repr_html_(self) -> str:
        rows = "".join(f"<dt>{html.escape(name)}</dt><dd>{html.escape(text)}</dd>" for name, text in self.facts)
        return f"<dl>{rows}</dl>"


def _blocks(blocks: Sequence[Any]) -> str:
    """Return blocks one below the other, pictures in a row as far as they fit."""
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
    raise ValueError(
        f"`blocks` of a section must be texts, ufm.plots.report.Table or Picture, or have `_repr_html_`; got {type(block).__name__}."
    )


NUMBER = re.compile(r"[-+\N{MINUS SIGN}]?(\d|inf|nan)[\d.e+-]*\*?%?")
RIGHT = ' class="number"'
LEVELS = ("agrees", "close", "rough", "differs", "not balanced")


def _class(level: str) -> str:
    return level.replace(" ", "-")


def _table(table: Table) -> str:
    head, *body = [[str(cell) for cell in row] for row in table.rows]

    def cell(text: str, first: bool) -> str:
        if text in LEVELS:
            return f'<td><span class="level {_class(text)}">{html.escape(text)}</span></td>'
        if first:
            return f'<th scope="row">{html.escape(text)}</th>'
        number = RIGHT if NUMBER.fullmatch(text) else ""
        return f"<td{number}>{html.escape(text)}</td>"

    numeric = [bool(body) and all(NUMBER.fullmatch(row[index]) for row in body) for index in range(len(head))]
    heads = "".join(
        f'<th scope="col"{RIGHT if right and index else ""}>{html.escape(text)}</th>'
        for index, (text, right) in enumerate(zip(head, numeric, strict=True))
    )
    rows = "".join("<tr>" + "".join(cell(text, index == 0) for index, text in enumerate(row)) + "</tr>" for row in body)
    caption = f"<caption>{html.escape(table.caption)}</caption>" if table.caption else ""
    name = html.escape(table.caption or "table", quote=True)
    return (
        f'<div class="scroll" role="region" aria-label="{name}" tabindex="0"><table>{caption}<thead><tr>{heads}</tr></thead>'
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
        raise ValueError(
            f"`draw` of a picture must be a matplotlib figure, or a function that returns one or its axes; got {type(draw).__name__}."
        )
    # Text as outlines looks the same everywhere; a fixed salt makes pages of the same numbers the same.
    with mpl.rc_context({"svg.fonttype": "path", "svg.hashsalt": "ufm"}), dark_style() if dark else nullcontext():
        before = plt.get_fignums()
        made = draw() if callable(draw) else draw
        figure = made if isinstance(made, Figure) else getattr(made, "figure", None)
        if not isinstance(figure, Figure):
            raise ValueError(f"`draw` of a picture must return a matplotlib figure or axes, got {type(made).__name__}.")
        buffer = io.BytesIO()
        figure.savefig(buffer, format="svg", bbox_inches="tight", metadata={"Date": None, "Creator": None})
        for number in set(plt.get_fignums()) - set(before):
            plt.close(number)
    return "data:image/svg+xml;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")


STYLE = """
:root{color-scheme:light dark;--paper:#fff;--ink:#1b1e23;--faint:#5c6470;--line:#dcdfe4;--soft:#f5f6f8;--link:#005a8e;
--agrees:#00664a;--close:#005a8e;--rough:#8a4b00;--differs:#a32a00}
@media screen and (prefers-color-scheme:dark){:root{--paper:#15181d;--ink:#e4e6ea;--faint:#a3abb7;--line:#353a43;--soft:#1e2229;--link:#7cc4f2;
--agrees:#5fd3a8;--close:#7cc4f2;--rough:#f0b860;--differs:#ff9a70}}
*{box-sizing:border-box}
body{margin:0 auto;padding:1.5rem 1rem 3rem;max-width:72rem;background:var(--paper);color:var(--ink);font:1rem/1.55 system-ui,sans-serif}
h1{font-size:1.7rem;line-height:1.2;margin:.5rem 0}
h2{font-size:1.25rem;margin:2.5rem 0 .75rem;padding-top:.75rem;border-top:1px solid var(--line)}
a{color:var(--link)}
.lead{max-width:60rem}
nav ol{columns:16rem;column-gap:3rem;padding-left:1.8rem;margin:1rem 0}
nav li{break-inside:avoid}
p,dl{max-width:60rem}
dl{display:grid;grid-template-columns:max-content 1fr;gap:.2rem 1rem}
dt{color:var(--faint)}
dd{margin:0;overflow-wrap:anywhere}
figure{margin:1.25rem 0;break-inside:avoid}
.pictures{display:flex;flex-wrap:wrap;gap:0 2rem;align-items:flex-start}
img{max-width:100%;height:auto}
figcaption,caption,footer{color:var(--faint);font-size:.9rem;text-align:left}
caption{padding-bottom:.35rem}
pre{background:var(--soft);padding:.75rem;overflow:auto;font-size:.85rem}
.scroll{overflow-x:auto;margin:1.25rem 0}
table{border-collapse:collapse;font-size:.88rem;font-variant-numeric:tabular-nums}
th,td{padding:.25rem .65rem;border-bottom:1px solid var(--line);text-align:left;white-space:nowrap}
thead th{color:var(--faint);font-weight:600}
tbody th{font-weight:400}
.number{text-align:right}
.level{border:1px solid currentColor;border-radius:.3rem;padding:0 .4rem;font-size:.82rem}
.verdict .level{font-weight:600;font-size:.95rem}
.agrees{color:var(--agrees)}.close{color:var(--close)}.rough{color:var(--rough)}.differs,.not-balanced{color:var(--differs)}
footer{margin-top:3rem}
@media (max-width:34rem){dl{grid-template-columns:1fr}dd{margin-bottom:.5rem}}
@media print{nav{display:none}body{max-width:none;padding:0;font-size:10pt}h2{break-after:avoid}.scroll{overflow:visible}table{font-size:8pt}}
""".strip()
