"""Name an object's motion from its path, its size and how its outline turns.

Shapes: T frames. Lengths are in units of the frame's shorter side; y points down.
"""

from __future__ import annotations

import numpy as np

from vitascope_trainer.evaluation.regions import Array
from vitascope_trainer.world.scenes import DIRECTIONS

_MOVED = 0.095  # an object whose path is shorter stays in place
_JUMPED = 0.15
_GREW = 1.28
_TURNED = 0.15

_BY_OCTANT = {
    round(np.degrees(np.arctan2(step_y, step_x)) / 45) % 8: name for name, (step_x, step_y) in DIRECTIONS.items()
}


def name_motion(x_T: Array, y_T: Array, area_T: Array, turning: float, slack: float = 0.0) -> str:
    """Name the motion of an object whose centre and area are known in some frames (the others are NaN).

    `turning` is how much the outline differs from itself, as a share of its area, when centre and size are taken away;
    `slack` is how far the centre may wander although the object stays.
    """
    known = np.isfinite(x_T) & (area_T > 0)
    u = np.linspace(0.0, 1.0, len(x_T), dtype=np.float32)[known]
    x, y = (_smooth(each[known]) for each in (x_T, y_T))
    size = np.sqrt(area_T[known])
    if len(x) < 4:
        return "still"
    range_x, range_y = float(np.ptp(x)), float(np.ptp(y))
    if max(range_x, range_y) < _MOVED + slack:
        return _in_place(size, turning)
    step_x, step_y = _end(x) - _end(x[::-1]), _end(y) - _end(y[::-1])
    around_x, around_y = (_straightened(each, u, step) for each, step in ((x, step_x), (y, step_y)))
    if np.hypot(step_x, step_y) > 0.6 * max(range_x, range_y):
        is_wavy = np.ptp(around_y) > 0.14 and _num_turns(y) >= 2
        if is_wavy and abs(step_x) > 0.5 * range_x:
            return "zigzag"
        return _BY_OCTANT[round(np.degrees(np.arctan2(step_y, step_x)) / 45) % 8]
    if np.ptp(around_x) > 0.45 * np.ptp(around_y):
        return "orbit"
    return "bounce"


def _smooth(values: Array) -> Array:
    """Put single frames that are far from both their neighbours between them."""
    padded = np.concatenate([values[:1], values, values[-1:]])
    middle = np.median(np.stack([padded[:-2], padded[1:-1], padded[2:]]), axis=0)
    return np.where(np.abs(values - middle) > _JUMPED, middle, values)


def _end(values: Array) -> float:
    return float(values[-max(1, len(values) // 10) :].mean())


def _straightened(values: Array, u: Array, step: float) -> Array:
    """Take an even movement away."""
    out: Array = values - values.mean() - step * (u - u.mean())
    return out


def _num_turns(values: Array) -> int:
    """Count how often a path turns back by more than a quarter of its range."""
    least = 0.25 * float(np.ptp(values))
    turns, extreme, heading = 0, float(values[0]), 0
    for value in values:
        if heading == 0:
            if abs(value - extreme) > least:
                heading, extreme = (1 if value > extreme else -1), float(value)
        elif (value - extreme) * heading > 0:
            extreme = float(value)
        elif abs(value - extreme) > least:
            turns, heading, extreme = turns + 1, -heading, float(value)
    return turns


def _in_place(size: Array, turning: float) -> str:
    ends = max(1, len(size) // 6)
    growth = float(np.median(size[-ends:]) / np.median(size[:ends]))
    if growth > _GREW:
        return "grow"
    if growth < 1 / _GREW:
        return "shrink"
    return "spin" if turning > _TURNED else "still"
