"""Masks of pixels: growing, shrinking, cleaning, connected components and hulls, in plain numpy.

Shapes: T frames, H rows, W columns.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float32]
Mask = NDArray[np.bool_]


def eroded(mask_THW: Mask, radius: int = 1) -> Mask:
    """Keep the pixels whose square neighbourhood lies in the mask; outside the frame counts as mask."""
    return ~dilated(~mask_THW, radius)


def dilated(mask_THW: Mask, radius: int = 1) -> Mask:
    """Add the pixels that have a masked one in their square neighbourhood."""
    height, width = mask_THW.shape[1:]
    across = np.pad(mask_THW, ((0, 0), (0, 0), (radius, radius)))
    wide = np.logical_or.reduce([across[:, :, k : k + width] for k in range(2 * radius + 1)])
    down = np.pad(wide, ((0, 0), (radius, radius), (0, 0)))
    return np.asarray(np.logical_or.reduce([down[:, k : k + height] for k in range(2 * radius + 1)]))


def components(mask_HW: Mask) -> list[Mask]:
    """Give the 4-connected components of a mask, the largest first (union of runs, row by row)."""
    parent: list[int] = []
    runs: list[tuple[int, int, int]] = []  # row, first column, column after the last

    def root(index: int) -> int:
        while parent[index] != index:
            parent[index] = parent[parent[index]]
            index = parent[index]
        return index

    edges = np.diff(np.pad(mask_HW, ((0, 0), (1, 1))).astype(np.int8), axis=1)
    (rows, begins), (_, ends) = (np.nonzero(edges == sign) for sign in (1, -1))
    above: list[int] = []
    here: list[int] = []
    for index, run in enumerate(zip(rows.tolist(), begins.tolist(), ends.tolist(), strict=True)):
        row, begin, end = run
        if runs and row != runs[-1][0]:
            above, here = (here if row == runs[-1][0] + 1 else []), []
        runs.append(run)
        parent.append(index)
        here.append(index)
        for other in above:
            if runs[other][1] < end and begin < runs[other][2]:
                parent[root(other)] = root(index)
    parts: dict[int, Mask] = {}
    for index, (row, begin_column, end_column) in enumerate(runs):
        part = parts.setdefault(root(index), np.zeros_like(mask_HW))
        part[row, begin_column:end_column] = True
    return sorted(parts.values(), key=lambda part: -int(part.sum()))


def hull(mask_HW: Mask, num_directions: int = 24) -> Mask:
    """Give about the convex hull of a mask: what lies within its extent in each of some directions."""
    if not mask_HW.any():
        return mask_HW
    rows, columns = np.nonzero(mask_HW)
    y, x = np.ogrid[: mask_HW.shape[0], : mask_HW.shape[1]]
    inside = np.ones_like(mask_HW)
    for angle in np.linspace(0.0, 2 * np.pi, num_directions, endpoint=False):
        cos, sin = np.cos(angle), np.sin(angle)
        inside &= cos * x + sin * y <= (cos * columns + sin * rows).max() + 0.5
    return inside


def centres_and_areas(mask_THW: Mask) -> tuple[Array, Array, Array]:
    """Give mean x, mean y and area of each frame, in units of the shorter side (squared); NaN where nothing is."""
    height, width = mask_THW.shape[1:]
    side = min(height, width)
    weight = mask_THW.sum(axis=(1, 2)).astype(np.float32)
    safe = np.where(weight > 0, weight, np.nan)
    x = (mask_THW.sum(axis=1) @ (np.arange(width) + 0.5)) / safe / side
    y = (mask_THW.sum(axis=2) @ (np.arange(height) + 0.5)) / safe / side
    return x.astype(np.float32), y.astype(np.float32), (weight / side**2).astype(np.float32)
