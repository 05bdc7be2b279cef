"""How close a decoded clip is to the one that was encoded: PSNR and SSIM.

Shapes: T frames, H rows, W columns. Clips are bytes, (T, H, W, 3).
"""

from __future__ import annotations

from math import log10

import numpy as np
from numpy.typing import NDArray

Bytes = NDArray[np.uint8]

_WINDOW = np.exp(-0.5 * (np.arange(-5, 6) / 1.5) ** 2)
_WINDOW /= _WINDOW.sum()
_C1, _C2 = (0.01 * 255.0) ** 2, (0.03 * 255.0) ** 2


def psnr_db(one_THWC: Bytes, other_THWC: Bytes) -> float:
    """Give the peak signal-to-noise ratio over the whole clip, in dB; 100 where nothing differs."""
    error = float(np.square(one_THWC.astype(np.float64) - other_THWC).mean())
    return min(100.0, 10.0 * log10(255.0**2 / error)) if error else 100.0


def ssim(one_THWC: Bytes, other_THWC: Bytes) -> float:
    """Give the mean structural similarity of the frames' luma (Wang et al. 2004).

    A Gaussian window of 11x11 with sigma 1.5, K1 = 0.01, K2 = 0.03, Rec. 601 luma, no padding.
    """
    x, y = (clip.astype(np.float64) @ np.array([0.299, 0.587, 0.114]) for clip in (one_THWC, other_THWC))
    mean_x, mean_y = _blurred(x), _blurred(y)
    var_x, var_y = _blurred(x * x) - mean_x**2, _blurred(y * y) - mean_y**2
    covariance = _blurred(x * y) - mean_x * mean_y
    like = (2 * mean_x * mean_y + _C1) * (2 * covariance + _C2)
    return float((like / ((mean_x**2 + mean_y**2 + _C1) * (var_x + var_y + _C2))).mean())


def _blurred(luma_THW: NDArray[np.float64]) -> NDArray[np.float64]:
    for axis in (1, 2):
        windows = np.lib.stride_tricks.sliding_window_view(luma_THW, len(_WINDOW), axis=axis)
        luma_THW = windows @ _WINDOW
    return luma_THW
