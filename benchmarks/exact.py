"""The Fréchet distance of few rows, slowly, in long double, and by a route of its own.

Long double has 64 bits of mantissa on x86-64 and elsewhere often no more than double.
"""

from __future__ import annotations

import numpy as np

_SWEEPS, _ORTHOGONAL = 60, 1e-14


def nuclear_norm(matrix: np.ndarray) -> float:
    """The sum of the singular values, by Jacobi's rotations of pairs of rows (Hestenes 1958).

    In each round of a tournament n / 2 disjoint pairs are made orthogonal, the longer row of each
    first; orthogonal rows are as long as the singular values.

    Raises:
        ArithmeticError: the rows did not become orthogonal.
    """
    rows = np.asarray(matrix, np.longdouble)
    rows = np.pad(rows, ((0, len(rows) % 2), (0, 0)))
    order, half = np.arange(len(rows)), len(rows) // 2
    negligible = np.finfo(np.longdouble).eps * np.sqrt((rows * rows).sum())
    for _ in range(_SWEEPS):
        worst = 0.0
        for _ in range(len(rows) - 1):
            pairs = np.sort([order[:half], order[half:][::-1]], axis=0)
            a, b = rows[pairs[0]], rows[pairs[1]]
            aa, bb, ab = (a * a).sum(axis=1), (b * b).sum(axis=1), (a * b).sum(axis=1)
            lengths = np.maximum(np.sqrt(aa), negligible) * np.maximum(np.sqrt(bb), negligible)
            worst = max(worst, float((np.abs(ab) / lengths).max()))
            angle = (np.arctan2(2 * ab, aa - bb) / 2)[:, None]
            rows[pairs[0]] = np.cos(angle) * a + np.sin(angle) * b
            rows[pairs[1]] = np.cos(angle) * b - np.sin(angle) * a
            order = np.concatenate([order[:1], np.roll(order[1:], 1)])
        if worst < _ORTHOGONAL:
            return float(np.sqrt((rows * rows).sum(axis=1)).sum())
    raise ArithmeticError(f"rows are not orthogonal after {_SWEEPS} sweeps: {worst:.1e}")


def exact_frechet(x: np.ndarray, y: np.ndarray) -> float:
    """The Fréchet distance of sets with fewer rows than features, in long double throughout."""
    (mean_x, f), (mean_y, g) = _factor(x), _factor(y)
    shift = mean_x - mean_y
    return float(shift @ shift + (f * f).sum() + (g * g).sum() - 2 * nuclear_norm(f @ g.T))


def _factor(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The mean, and F with F^T F the covariance."""
    rows = x.astype(np.longdouble)
    mean = rows.mean(axis=0)
    return mean, (rows - mean) / np.sqrt(np.longdouble(len(x) - 1))
