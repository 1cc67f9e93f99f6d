"""Self-contained HTML pages: everything is inside the file, so it can be mailed, and opened years later."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterable, Sequence
from html import escape
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.figure import Figure

STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 76rem; padding: 0 1rem; color: #1c1f24; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.15rem; margin-top: 2rem; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; margin: .6rem 0; }
th, td { padding: .2rem .9rem .2rem 0; text-align: left; border-bottom: 1px solid #dfe3e8; vertical-align: top; }
td.number, th.number { text-align: right; }
.verdict { font-size: 1.1rem; border-left: 4px solid #2f6fde; padding: .4rem .9rem; background: #f2f6fd; }
.note { color: #5b6470; } img.plot { max-width: 100%; }
"""


def make_page(title: str, parts: Iterable[str], *, style: str = "", script: str = "") -> str:
    """A whole HTML document. parts: HTML that goes below the title, in order."""
    code = f"<script>\n{script}\n</script>" if script else ""
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{escape(title)}</title>\n'
        f"<style>{STYLE}{style}</style></head>\n<body><h1>{escape(title)}</h1>\n" + "\n".join(parts) + f"\n{code}\n"
        "</body></html>\n"
    )


def heading(text: str) -> str:
    """A section's title."""
    return f"<h2>{escape(text)}</h2>"


def paragraph(text: str, kind: str = "") -> str:
    """Plain text; kind: a class of STYLE, `verdict` or `note`."""
    return f'<p class="{kind}">{escape(text)}</p>' if kind else f"<p>{escape(text)}</p>"


def html_table(header: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A table; cells that look like numbers stand on the right. Text is escaped."""
    body = [[str(cell) for cell in row] for row in rows]
    numeric = [all(_is_number(row[column]) for row in body) for column in range(len(header))]
    lines = [_row("th", header, numeric), *(_row("td", row, numeric) for row in body)]
    return "<table>\n" + "\n".join(lines) + "\n</table>"


def text_table(header: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """The same for a terminal: columns in line, numbers on the right."""
    body = [[str(cell) for cell in row] for row in rows]
    numeric = [all(_is_number(row[column]) for row in body) for column in range(len(header))]
    lines = [list(map(str, header)), *body]
    widths = [max(len(line[column]) for line in lines) for column in range(len(header))]
    aligned = (
        "  ".join(
            cell.rjust(width) if right else cell.ljust(width)
            for cell, width, right in zip(line, widths, numeric, strict=True)
        )
        for line in lines
    )
    return "\n".join(line.rstrip() for line in aligned)


def new_figure(width: float = 9.0, height: float = 3.2) -> Figure:
    """An empty figure of that many inches; no pyplot, whose figures are global state."""
    # Only here: it takes half a second to load and few runs draw.
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # noqa: PLC0415
    from matplotlib.figure import Figure  # noqa: PLC0415

    figure = Figure(figsize=(width, height), dpi=100, layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def figure_html(figure: Figure, description: str) -> str:
    """A figure as an image inside the page; description: for those who cannot see it."""
    return f'<img class="plot" alt="{escape(description)}" src="{data_uri(figure_png(figure), "image/png")}">'


def figure_png(figure: Figure) -> bytes:
    """The figure as a PNG file."""
    data = io.BytesIO()
    figure.savefig(data, format="png", metadata={"Software": None})
    return data.getvalue()


def data_uri(data: bytes, media_type: str) -> str:
    """Bytes as an address that holds them."""
    return f"data:{media_type};base64,{base64.b64encode(data).decode('ascii')}"


def _is_number(text: str) -> bool:
    words = text.replace(",", "").split()
    return not text or (text[0] in "+-.0123456789" and len(words) <= 2) or text in ("nan", "inf")


def _row(kind: str, cells: Sequence[object], numeric: Sequence[bool]) -> str:
    marks = [' class="number"' if right else "" for right in numeric]
    inside = "".join(f"<{kind}{mark}>{escape(str(cell))}</{kind}>" for cell, mark in zip(cells, marks, strict=True))
    return f"<tr>{inside}</tr>"
