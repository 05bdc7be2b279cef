"""Write down what an evaluation found: JSON, a contact sheet, and the table in docs/model.md.

Shapes: T frames, H rows, W columns.
"""

from __future__ import annotations

import io
import json
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from math import isfinite
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vitascope_common.errors import ConfigurationError
from vitascope_common.files import atomic_write, make_folder
from vitascope_trainer.evaluation.judging import Report
from vitascope_trainer.evaluation.scoring import Rate
from vitascope_trainer.generation import Settings
from vitascope_trainer.sheets import contact_sheet

BEGIN, END = "<!-- evaluation: begin -->", "<!-- evaluation: end -->"
"""What lies between them in docs/model.md is written by `make eval-model`."""

_COLUMNS = (
    "all four",
    *("colour", "motion", "background", "shape", "count", "relation", "binding", "binding and motion"),
    *("size", "texture", "camera"),
)
_ON_CARD = ("all four", "colour", "motion", "background", "shape", "count", "relation", "binding")
_LEAST_COMPARED = 64  # prompts, below which 3 points say nothing
_MOST_BYTES = 600_000


def as_json(report: Report) -> str:
    """Give the report as JSON; a rate is its counts, its share and its 95 % interval."""
    values = {
        "model": report.model_id,
        "settings": asdict(report.settings),
        "sets": _rates(report.sets),
        "controls": _rates(report.controls),
        "attention": _rates(report.attention),
        "attention_allowed": report.attention_allowed,
        "formats": _rates(report.formats),
        "given": {
            way: {"rates": _rates({way: each.rates})[way]}
            | ({"kept_db": round(each.kept_db, 2), "next_db": round(each.next_db, 2)} if isfinite(each.kept_db) else {})
            for way, each in report.given.items()
        },
        "consistency": _rounded(report.consistency),
        "vae": _rounded(report.fidelity),
        "seconds_per_clip": round(report.seconds_per_clip, 3),
        "num_threads": report.num_threads,
    }
    return json.dumps(values, indent=2) + "\n"


def _rounded(table: Mapping[str, Mapping[str, float]]) -> dict[str, dict[str, float]]:
    return {name: {column: round(value, 4) for column, value in row.items()} for name, row in table.items()}


def with_scores(card: Mapping[str, Any], report: Report) -> dict[str, Any]:
    """Give a model's card with shares per set of prompts, and with the attentions that may be asked for.

    Those are the ones that passed, if at least 64 prompts compared them on clips of the card's default size and length;
    else they stay as they were. A default that did not pass is replaced by full attention.
    """
    settings = report.settings
    scores = {
        "size": f"{settings.width_px}x{settings.height_px}",
        "num_frames": settings.num_frames,
        "steps": settings.num_steps,
        "solver": settings.solver,
        "guidance_scale": settings.guidance.scale,
        **{
            kind: {"n": table["all four"].num_asked}
            | {name: round(table[name].share, 4) for name in _ON_CARD if name in table}
            for kind, table in report.sets.items()
        },
        "attention": {mode: round(table["all four"].share, 4) for mode, table in report.attention.items()},
        "vae_psnr_db": {size: round(row["psnr_db"], 2) for size, row in report.fidelity.items()},
    }
    attention = card.get("attention", {})
    full = report.attention.get("full", {}).get("all four")
    if full and full.num_asked >= _LEAST_COMPARED and _is_default_clip(card, settings):
        own = attention.get("temporal", "full")
        own = own if own in report.attention_allowed else "full"
        attention = {**attention, "temporal": own, "allowed": list(dict.fromkeys((own, *report.attention_allowed)))}
    return {**card, "attention": attention, "evaluation": scores}


def _is_default_clip(card: Mapping[str, Any], settings: Settings) -> bool:
    defaults = card["defaults"]
    size = f"{settings.width_px}x{settings.height_px}"
    return (size, settings.num_frames) == (defaults["size"], card["num_frames"][defaults["seconds"]])


def _rates(tables: Mapping[str, Mapping[str, Rate]]) -> dict[str, Any]:
    return {
        name: {
            attribute: {
                "right": rate.num_right,
                "asked": rate.num_asked,
                "share": round(rate.share, 4),
                "interval": [round(bound, 4) for bound in rate.interval],
            }
            for attribute, rate in table.items()
        }
        for name, table in tables.items()
    }


def as_markdown(report: Report, sheet: str) -> str:
    """Give the tables for docs/model.md; `sheet` is the contact sheet's path as seen from there."""
    settings = report.settings
    lines = [
        f"`{report.model_id}`: clips of {settings.width_px}x{settings.height_px}, {settings.num_frames} frames,"
        f" {settings.num_steps} steps ({settings.solver}), guidance {settings.guidance.scale:g};"
        f" {report.seconds_per_clip:.1f} s to make one clip by itself (threads: {report.num_threads}), loading apart."
        " Shares in %; in brackets the 95 % interval of all four. The row `all` leaves out the few `confusable` prompts"
        " that training may have shown.",
        "",
        *_table("prompts", report.sets),
        "",
        *_table("control", report.controls),
        "",
    ]
    if report.attention:
        lines += [*_table("temporal attention", report.attention), ""]
        allowed = ", ".join(f"`{mode}`" for mode in report.attention_allowed)
        lines += [f"Attentions within 3 points of full on all four: {allowed}.", ""]
    if report.formats:
        lines += [*_table("other sizes, lengths and solvers", report.formats), ""]
    if report.given:
        lines += [*_table("given besides the prompt", {way: each.rates for way, each in report.given.items()}), ""]
        kept = [
            f"{way} {each.kept_db:.1f} and {each.next_db:.1f}"
            for way, each in report.given.items()
            if isfinite(each.kept_db)
        ]
        lines += [f"PSNR in dB of the frames given, and of the four that follow: {'; '.join(kept)}.", ""]
    if any(report.consistency.values()):
        lines += [*_consistency(report.consistency), ""]
    for size, row in report.fidelity.items():
        lines.append(
            f"- VAE, unseen clips of {size}: PSNR {row['psnr_db']:.1f} dB (the worst clip {row['least_psnr_db']:.1f}), "
            f"SSIM {row['ssim']:.3f}"
        )
    return "\n".join([*lines, "", f"![Clips for unseen prompts, one a row]({sheet})"])


def _table(title: str, tables: Mapping[str, Mapping[str, Rate]]) -> list[str]:
    rows = [f"| {title} | n | " + " | ".join(_COLUMNS) + " |", "|---" * (len(_COLUMNS) + 2) + "|"]
    for name, table in tables.items():
        whole = table["all four"]
        low, high = whole.interval
        cells = [f"{100 * whole.share:.1f} ({100 * low:.0f}–{100 * high:.0f})"]
        cells += [f"{100 * table[column].share:.1f}" if column in table else "" for column in _COLUMNS[1:]]
        rows.append(f"| {name} | {whole.num_asked} | " + " | ".join(cells) + " |")
    return rows


def _consistency(table: Mapping[str, Mapping[str, float]]) -> list[str]:
    rows = [
        "| consistency over time | flicker, levels of 255 a frame | colour kept, % | shape kept, % |",
        "|---|---|---|---|",
    ]
    for name, row in table.items():
        if row:
            kept = " | ".join(f"{100 * row[column]:.1f}" for column in ("colour kept", "shape kept"))
            rows.append(f"| {name} | {row['flicker']:.2f} | {kept} |")
    return rows


def check_out(folder: Path) -> None:
    """Find out before the work whether its results can be written to a folder. Raises: ConfigurationError."""
    try:
        make_folder(folder / "images")
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise ConfigurationError(f"--out: nothing can be written to {folder}: {error.strerror}.") from error
    _around(folder / "model.md")


def fill(document: Path, content: str) -> None:
    """Replace what lies between the markers of a document; a document that is not there begins with them.

    Raises:
        ConfigurationError: the document has no markers.
    """
    before, after = _around(document)
    atomic_write(document, f"{before}{BEGIN}\n\n{content}\n\n{END}{after}".encode())


def _around(document: Path) -> tuple[str, str]:
    """Give what lies before and after the markers of a document."""
    if not document.exists():
        return "# The model\n\n", "\n"
    before, begin, rest = document.read_text(encoding="utf-8").partition(BEGIN)
    _, end, after = rest.partition(END)
    if not (begin and end):
        raise ConfigurationError(f"{document} needs the lines {BEGIN} and {END}, between which the tables are written.")
    return before, after


def sheet_bytes(clips_THWC: Sequence[NDArray[np.uint8]], captions: Sequence[str]) -> bytes:
    """Draw a row of frames per clip under its caption, as WebP of at most 600 kB."""
    sheet = contact_sheet(clips_THWC, captions, num_columns=len(clips_THWC[0]))
    for quality in (85, 70, 50, 30):
        content = io.BytesIO()
        sheet.save(content, "WEBP", quality=quality)
        if content.tell() <= _MOST_BYTES:
            break
    return content.getvalue()
