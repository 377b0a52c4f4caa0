"""The report's figures as inline SVG with the page's CSS variables as colours.

Matplotlib draws in placeholder colours, which are replaced by ``var(--name)``, so that a figure
works in light and dark mode.  Text stays text in the page's font.  Equal values give equal bytes.
"""

from __future__ import annotations

import io
import math
import re
import warnings
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import Any, Final

import matplotlib as mpl
from matplotlib import dates
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

from evaluation.report.values import (
    Alarms,
    Calibration,
    Comparison,
    FeatureDrift,
    Histogram,
    Multivariate,
    Performance,
    Window,
)

_NAMES: Final = (
    "ink", "muted", "grid", "paper", "model", "rule", "rule2", "bad", "warn", "then", "now",
)  # fmt: skip
_COLOURS: Final = {name: f"#0000{i + 1:02x}" for i, name in enumerate(_NAMES)}
INK, MUTED, GRID, PAPER, MODEL, RULE, RULE2, BAD, WARN, THEN, NOW = _COLOURS.values()

_STYLE: Final[Any] = {
    "svg.fonttype": "none",
    "text.parse_math": False,  # names of features are no formulas
    "font.size": 10.0,
    "axes.edgecolor": GRID,
    "axes.facecolor": "none",
    "axes.labelcolor": MUTED,
    "axes.labelsize": 9.5,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "axes.axisbelow": True,
    "axes.linewidth": 0.8,
    "grid.color": GRID,
    "grid.linewidth": 0.7,
    "xtick.color": GRID,
    "ytick.color": GRID,
    "xtick.labelcolor": MUTED,
    "ytick.labelcolor": MUTED,
    "xtick.labelsize": 9.5,
    "ytick.labelsize": 9.5,
    "xtick.major.size": 3,
    "ytick.major.size": 0,
    "text.color": INK,
    "legend.frameon": False,
    "legend.fontsize": 9.5,
    "legend.labelcolor": INK,
    "lines.linewidth": 1.6,
    "lines.solid_joinstyle": "round",
}


_FRACTION: Final = re.compile(r"\d+\.\d{3,}")


def _shorter(number: re.Match[str]) -> str:
    """Round a coordinate to a hundredth of a unit."""
    return f"{float(number[0]):.2f}".rstrip("0").rstrip(".")


Margins = tuple[int, int, int, int]
"""Left, right, top, bottom margins for labels, in units.  Fixed, since automatic layout takes twice
the time."""

_MARGINS: Final[Margins] = (46, 12, 12, 36)


def _draw(
    name: str,
    title: str,
    size: tuple[int, int],
    paint: Callable[[Figure], None],
    margins: Margins = _MARGINS,
) -> str:
    """Return the drawing as an ``<svg>`` element of ``size`` (width, height) units."""
    width, height = size
    left, right, top, bottom = margins
    with mpl.rc_context(_STYLE | {"svg.hashsalt": name}):
        figure = Figure(figsize=(width / 72, height / 72))
        figure.subplots_adjust(
            left / width, bottom / height, 1 - right / width, 1 - top / height, hspace=0.12
        )
        figure.patch.set_alpha(0)
        FigureCanvasSVG(figure)
        paint(figure)
        out = io.StringIO()
        with warnings.catch_warnings():  # about ticks and missing glyphs
            warnings.simplefilter("ignore", UserWarning)
            figure.savefig(out, format="svg", metadata={"Date": None, "Creator": None})
    return _inline(out.getvalue(), name, title, width, height)


def _inline(svg: str, name: str, title: str, width: int, height: int) -> str:
    body = svg[svg.index("<svg") :]
    body = body[body.index(">") + 1 : body.rindex("</svg>")]
    body = re.sub(r"<metadata>.*?</metadata>", "", body, flags=re.S)
    for colour, css in zip(_COLOURS.values(), _NAMES, strict=True):
        body = body.replace(colour, f"var(--{css})")
    used = set(re.findall(r"(?:href=\"#|url\(#)([^\")]+)", body))
    body = re.sub(r' id="([^"]+)"', lambda m: f' id="{name}-{m[1]}"' if m[1] in used else "", body)
    body = re.sub(r"(href=\"#|url\(#)", rf"\g<1>{name}-", body)
    body = re.sub(r"<[^>]+>", lambda m: _FRACTION.sub(_shorter, m[0]), body)  # text stays as it is
    body = re.sub(r"<!--.*?-->", "", body, flags=re.S)
    body = re.sub(r">\s+<", "><", body).strip()
    return (
        f'<svg class="figure" role="img" viewBox="0 0 {width} {height}" '
        f'style="max-width:{round(width * 1.25)}px"><title>{title}</title>{body}</svg>'
    )


# -- parts ---------------------------------------------------------------------------------------


class _Axis:
    """The horizontal axis: time if all windows have times, else row numbers."""

    def __init__(self, windows: Sequence[Window]) -> None:
        self.timed = bool(windows) and all(
            w.first_time is not None and w.last_time is not None for w in windows
        )
        if self.timed:
            span = (windows[-1].last_time or 0.0) - (windows[0].first_time or 0.0)
            self.timed = span > 0
        self._windows = windows

    def middle(self, window: Window) -> Any:
        """Return the position of the middle of a window."""
        if self.timed:
            return _date(((window.first_time or 0.0) + (window.last_time or 0.0)) / 2)
        return (window.first_row + window.last_row) / 2

    def ends(self, window: Window) -> tuple[Any, Any]:
        """Return the positions of the ends of a window."""
        if self.timed:
            return _date(window.first_time or 0.0), _date(window.last_time or 0.0)
        return window.first_row, window.last_row

    def row(self, row: int) -> Any:
        """Return the position of one row."""
        window = next((w for w in self._windows if w.last_row >= row), self._windows[-1])
        if not self.timed:
            return row
        share = (row - window.first_row) / max(window.last_row - window.first_row, 1)
        first, last = window.first_time or 0.0, window.last_time or 0.0
        return _date(first + min(max(share, 0.0), 1.0) * (last - first))

    def label(self, axes: Axes, *, few: bool) -> None:
        """Set ticks and labels of the axis."""
        axes.margins(x=0.01)
        if self.timed:
            locator = dates.AutoDateLocator(maxticks=5 if few else 9)  # type: ignore[no-untyped-call]
            axes.xaxis.set_major_locator(locator)
            form = dates.ConciseDateFormatter(locator)  # type: ignore[no-untyped-call]
            axes.xaxis.set_major_formatter(form)
            return
        axes.xaxis.set_major_locator(MaxNLocator(4 if few else 8, integer=True))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda v, _: _count(v)))
        axes.set_xlabel("row")


def _date(seconds: float) -> datetime:
    return datetime.fromtimestamp(seconds, UTC)


def _count(value: float) -> str:
    if abs(value) >= 1e6:
        return f"{value / 1e6:g}M"
    return f"{value / 1e3:g}k" if abs(value) >= 1e4 else f"{value:,.0f}"


def _percent(axes: Axes, which: str = "y") -> None:
    getattr(axes, f"{which}axis").set_major_formatter(
        FuncFormatter(lambda v, _: f"{100 * v:.0f} %")
    )


def _legend(axes: Axes, columns: int) -> None:
    axes.legend(
        loc="lower left", bbox_to_anchor=(0, 1.0), ncols=columns, borderaxespad=0.2,
        handlelength=1.4, columnspacing=1.2, handletextpad=0.5, borderpad=0,
    )  # fmt: skip


def _or_nan(value: float | None) -> float:
    return math.nan if value is None else value


# -- sections ------------------------------------------------------------------------------------


def timeline(performance: Performance, alarms: Alarms | None, name: str, *, wide: bool) -> str:
    """Draw section 2: scores by window with interval, baselines, limits, alarms, open labels."""
    windows = performance.windows
    axis = _Axis(windows)
    accuracy = performance.metric == "accuracy"

    def paint(figure: Figure) -> None:
        axes = figure.add_subplot()
        x = [axis.middle(w) for w in windows]
        scores = [w.scores for w in windows]
        if accuracy:
            y = [_or_nan(s.accuracy) for s in scores]
            rules = {"last label": [_or_nan(s.no_change) for s in scores],
                     "majority": [_or_nan(s.majority) for s in scores]}  # fmt: skip
            axes.fill_between(
                x, [_or_nan(s.low) for s in scores], [_or_nan(s.high) for s in scores],
                color=MODEL, alpha=0.16, linewidth=0,
            )  # fmt: skip
            _percent(axes)
        else:
            y = [_or_nan(s.mae) for s in scores]
            rules = {"last target": [_or_nan(s.last_mae) for s in scores],
                     "mean so far": [_or_nan(s.mean_mae) for s in scores]}  # fmt: skip
            axes.set_ylabel("mean absolute error")
        axes.plot(x, y, color=MODEL, linewidth=2.0, label="model", zorder=3)
        for (label, values), colour, line in zip(
            rules.items(), (RULE, RULE2), (1.2, 0.9), strict=True
        ):
            axes.plot(x, values, color=colour, linewidth=line, label=label)
        _open_labels(axes, axis, windows, accuracy=accuracy)
        _limits(axes, performance)
        _ticks(axes, axis, alarms)
        axis.label(axes, few=not wide)
        _legend(axes, 8 if wide else 3)

    title = "Accuracy over time" if accuracy else "Mean absolute error over time"
    size, top = ((880, 300), 26) if wide else ((370, 300), 56)
    return _draw(name, title, size, paint, (46, 12, top, 28 if axis.timed else 36))


def _open_labels(axes: Axes, axis: _Axis, windows: Sequence[Window], *, accuracy: bool) -> None:
    """Shade windows without labels, and draw the accuracy estimated from the confidence."""
    empty = [w for w in windows if not w.scores.n and w.rows]
    for window in empty:
        axes.axvspan(*axis.ends(window), color=MUTED, alpha=0.12, linewidth=0)
    if accuracy and any(w.confidence is not None for w in empty):
        axes.plot(
            [axis.middle(w) for w in windows],
            [_or_nan(w.confidence) if not w.scores.n else math.nan for w in windows],
            color=MODEL, linestyle=(0, (2, 1.5)), linewidth=1.4, label="estimate, no labels",
        )  # fmt: skip


def _limits(axes: Axes, performance: Performance) -> None:
    limits = performance.limits
    if limits is None:
        return
    accuracy = performance.metric == "accuracy"
    for value, colour, label in (
        (limits.watch, WARN, "limit to watch"),
        (limits.act, BAD, "limit to act"),
    ):
        at = 1 - value if accuracy else value
        axes.axhline(at, color=colour, linewidth=0.9, linestyle=(0, (5, 3)), label=label)


def _ticks(axes: Axes, axis: _Axis, alarms: Alarms | None) -> None:
    raised = [a for a in (alarms.alarms if alarms else ()) if a.signal == "error"]
    for worse, colour in ((True, BAD), (False, MUTED)):
        at = [axis.row(a.row) for a in raised if a.worse == worse]
        if at:
            axes.plot(
                at, [0.02] * len(at), transform=axes.get_xaxis_transform(), linestyle="",
                marker="^" if worse else "v", markersize=6, color=colour, clip_on=False,
                label="error rose" if worse else "error fell",
            )  # fmt: skip


def comparison(one: Comparison, name: str) -> str:
    """Draw section 4: the mean difference so far and its confidence sequence."""

    def paint(figure: Figure) -> None:
        axes = figure.add_subplot()
        x = [s.row for s in one.steps]
        axes.axhline(0, color=INK, linewidth=0.9)
        axes.fill_between(
            x, [s.low for s in one.steps], [s.high for s in one.steps],
            color=MODEL, alpha=0.16, linewidth=0,
        )  # fmt: skip
        axes.plot(x, [s.mean for s in one.steps], color=MODEL)
        settled = one.steps[len(one.steps) // 12 :]
        low, high = min(0.0, *(s.low for s in settled)), max(0.0, *(s.high for s in settled))
        room = 0.08 * (high - low or 0.01)
        axes.set_ylim(low - room, high + room)
        axes.margins(x=0.01)
        axes.yaxis.set_major_formatter(FuncFormatter(lambda v, _: f"{100 * v:+.3g}" if v else "0"))
        axes.xaxis.set_major_locator(MaxNLocator(4, integer=True))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda v, _: _count(v)))
        axes.set_xlabel("row")
        axes.set_ylabel("points")

    return _draw(name, f"Accuracy of the model less {one.baseline}", (370, 220), paint)


def reliability(one: Calibration, name: str) -> str:
    """Draw section 5: score and outcome by bin, and the number of rows in each."""

    def paint(figure: Figure) -> None:
        axes, counts = figure.subplots(2, 1, height_ratios=(4, 1), sharex=True)
        bins = [b for b in one.bins if b.score is not None and b.rate is not None]
        axes.plot([0, 1], [0, 1], color=MUTED, linewidth=0.9, linestyle=(0, (4, 3)))
        axes.plot([b.score for b in bins], [b.rate for b in bins], color=MODEL,
                  marker="o", markersize=5)  # fmt: skip
        axes.set_xlim(0, 1)
        axes.set_ylim(0, 1)
        axes.set_ylabel("was so")
        _percent(axes)
        counts.bar([b.low + 0.05 for b in bins], [b.n for b in bins], width=0.09, color=THEN)
        counts.yaxis.set_major_locator(MaxNLocator(2, integer=True))
        counts.yaxis.set_major_formatter(FuncFormatter(lambda v, _: _count(v)))
        counts.set_xlabel("score")
        counts.set_ylabel("rows")
        _percent(counts, "x")

    return _draw(name, "Reliability of the scores", (370, 300), paint)


def series(
    windows: Sequence[Window], value: Callable[[Window], float | None], title: str, name: str
) -> str:
    """Draw a share by window."""
    axis = _Axis(windows)

    def paint(figure: Figure) -> None:
        axes = figure.add_subplot()
        axes.plot([axis.middle(w) for w in windows], [_or_nan(value(w)) for w in windows],
                  color=MODEL)  # fmt: skip
        axes.set_ylim(bottom=0)
        _percent(axes)
        axis.label(axes, few=True)

    return _draw(name, title, (370, 220), paint)


def histogram(one: Histogram, title: str, name: str, *, small: bool = False) -> str:
    """Draw the histograms of the first and the newest rows on the same bins, as shares."""

    def paint(figure: Figure) -> None:
        axes = figure.add_subplot()
        then, now = (_shares(counts) for counts in (one.then, one.now))
        if one.edges:
            axes.stairs(then, one.edges, fill=True, color=THEN, alpha=0.45, label="then")
            axes.stairs(now, one.edges, color=NOW, linewidth=1.8, label="now")
            axes.xaxis.set_major_locator(MaxNLocator(4))
        else:
            at = range(len(one.names))
            axes.bar([i - 0.2 for i in at], then, 0.38, color=THEN, alpha=0.6, label="then")
            axes.bar([i + 0.2 for i in at], now, 0.38, color=NOW, label="now")
            axes.set_xticks(list(at), [n if len(n) < 11 else n[:10] + "…" for n in one.names],
                            rotation=30, ha="right")  # fmt: skip
        axes.yaxis.set_major_locator(MaxNLocator(3))
        _percent(axes)
        _legend(axes, 2)

    bottom = 24 if one.edges else 52
    return _draw(name, title, (290, 180) if small else (370, 220), paint, (40, 8, 24, bottom))


def _shares(counts: Sequence[int]) -> list[float]:
    total = sum(counts) or 1
    return [c / total for c in counts]


def multivariate(one: Multivariate, name: str) -> str:
    """Section 8: the classifier's AUC and the band of chance."""

    def paint(figure: Figure) -> None:
        axes = figure.add_subplot()
        axes.axvspan(one.low, one.high, color=MUTED, alpha=0.25, linewidth=0)
        axes.plot([one.auc], [0], marker="o", markersize=9, color=MODEL, clip_on=False)
        axes.set_xlim(min(0.45, one.low, one.auc), 1.0)
        axes.set_ylim(-1, 1)
        axes.set_yticks([])
        axes.spines["left"].set_visible(False)
        axes.grid(False)
        axes.set_xlabel("AUC (.5: cannot be told apart; grey: by chance)")

    return _draw(name, "Then and now told apart", (370, 84), paint, (14, 14, 6, 36))


def quadrant(drift: FeatureDrift, name: str) -> str:
    """Section 11: how far each feature moved, and how much it tells of the answer."""
    points = [
        (f.spread.psi, f.importance, f.name)
        for f in drift.features
        if f.spread.psi is not None and f.importance is not None
    ]

    def paint(figure: Figure) -> None:
        axes = figure.add_subplot()
        axes.grid(True, axis="both")
        xs, ys = [max(p[0], 1e-3) for p in points], [p[1] for p in points]
        axes.axvline(0.25, color=WARN, linewidth=0.9, linestyle=(0, (5, 3)))
        axes.scatter(xs, ys, s=26, color=MODEL, linewidths=0)
        axes.set_xscale("log")
        axes.xaxis.set_major_formatter(FuncFormatter(lambda v, _: f"{v:g}"))
        axes.xaxis.set_minor_formatter(FuncFormatter(lambda v, _: ""))
        axes.set_ylim(bottom=-0.02 * max([*ys, 0.1]))
        axes.margins(x=0.12, y=0.15)
        axes.set_xlim(5e-4, max(xs) * 30)
        axes.set_xlabel("moved (PSI)")
        axes.set_ylabel("influence")
        for x, y, label in sorted(zip(xs, ys, (p[2] for p in points), strict=True),
                                  key=lambda p: -p[0] * (p[1] + 0.01))[:6]:  # fmt: skip
            axes.annotate(label[:16], (x, y), xytext=(5, 4), textcoords="offset points",
                          fontsize=9, color=MUTED)  # fmt: skip

    if not points:
        return ""
    return _draw(name, "Moved features and their influence", (370, 260), paint)
