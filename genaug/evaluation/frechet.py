"""The Fréchet distance between two sets of features, exact in every rank regime.

|m1 - m2|^2 + tr(S1 + S2 - 2 (S1 S2)^(1/2)) (Dowson & Landau 1982; on network features
Heusel et al. 2017, who name it FID). The number is a squared distance and belongs to the features:
only with torch-fidelity's Inception network, and its preprocessing, may it be called FID.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import scipy.linalg
from jaxtyping import Float, Float64
from scipy.linalg import blas, lapack

from genaug.evaluation.distances import require_rows
from genaug.types import UserError

# A distance below this share of the two total variances is rounding, and reported as 0.
_ROUNDING = 1e-10


class Moments(NamedTuple):
    """What a Fréchet distance needs of a set of features."""

    mean: Float64[np.ndarray, " d"]
    cov: Float64[np.ndarray, "d d"]
    n: int


def moments(x: Float[np.ndarray, "n d"]) -> Moments:
    """Mean [d] and unbiased covariance [d, d] of `x` in float64.

    Raises:
        UserError: fewer than 2 rows, NaN or infinity.
    """
    require_rows(x, "the features", 2)
    mean, centred = _centre(x)
    return Moments(mean, centred.T @ centred / (len(x) - 1), len(x))


def frechet_distance(x: Float[np.ndarray, "n d"], y: Float[np.ndarray, "m d"]) -> float:
    """The (squared) Fréchet distance between Gaussians fitted to `x` and `y`.

    With more rows than columns: `frechet_from_moments`. Otherwise the covariances are singular and
    tr (S1 S2)^(1/2) is the nuclear norm of A B^T / sqrt((n-1)(m-1)), A and B the centred rows: no
    matrix root of a singular matrix, and only min(n, d) x min(m, d) entries.
    The estimate is biased upwards by about 1/n: compare at equal n, beside the floor of real data.

    Raises:
        UserError: fewer than 2 rows, NaN or infinity.
    """
    require_rows(x, "the first set of features", 2)
    require_rows(y, "the second set of features", 2)
    if min(len(x), len(y)) > x.shape[1]:
        try:
            a = moments(x)
            return _from_cholesky(a, _cholesky(a), moments(y))
        except np.linalg.LinAlgError:
            pass  # A constant or redundant feature: singular, or nearly, whatever n is.
    (mean_x, f), (mean_y, g) = _factor(x), _factor(y)
    root_trace = _nuclear_norm(f, g)
    return _assemble(mean_x - mean_y, float(np.square(f).sum() + np.square(g).sum()), root_trace)


def frechet_from_moments(a: Moments, b: Moments) -> float:
    """The (squared) Fréchet distance of two sets known by their moments.

    S1 = L L^T, and tr (S1 S2)^(1/2) is the sum of the roots of the eigenvalues of L^T S2 L, which
    is symmetric. (Nearly) singular covariances are factored by their eigenvectors instead.

    Raises:
        UserError: different feature lengths.
    """
    return distance_to(a)(b)


def distance_to(a: Moments) -> Callable[[Moments], float]:
    """`frechet_from_moments(a, .)`, for many sets: the covariance of `a` is factored once."""
    try:
        lower = _cholesky(a)
    except np.linalg.LinAlgError:
        lower = None

    def distance(b: Moments) -> float:
        if a.mean.shape != b.mean.shape:
            raise UserError(
                f"moments of {len(a.mean)} and {len(b.mean)} features: use one feature net for both"
            )
        try:
            if lower is not None:
                return _from_cholesky(a, lower, b)
        except np.linalg.LinAlgError:
            pass
        root_trace = _nuclear_norm(_root(a.cov).T, _root(b.cov).T)
        return _assemble(a.mean - b.mean, float(np.trace(a.cov) + np.trace(b.cov)), root_trace)

    return distance


def _cholesky(a: Moments) -> Float64[np.ndarray, "d d"]:
    """L (its lower triangle) with L L^T the covariance; `LinAlgError` where that is singular."""
    # Transposed, which a symmetric matrix does not mind, it is laid out as LAPACK wants it.
    lower, failed = lapack.dpotrf(a.cov.T, lower=1, clean=0)
    if failed:
        raise np.linalg.LinAlgError
    return np.asarray(lower)


def _from_cholesky(a: Moments, lower: np.ndarray, b: Moments) -> float:
    """Raises `LinAlgError` where squaring, as this does, may lose digits that a reader sees."""
    product, _ = lapack.dsygst(b.cov.T, lower, itype=2, lower=1)  # L^T S2 L, its lower triangle
    eigenvalues = np.maximum(
        scipy.linalg.eigvalsh(product, lower=True, overwrite_a=True, check_finite=False), 0
    )
    traces = float(np.trace(a.cov) + np.trace(b.cov))
    # Rounding moves an eigenvalue by this much at most, its root by no more than the lesser of two.
    sizes = [np.sqrt(np.square(each.cov).sum()) for each in (a, b)]
    moved = np.finfo(float).eps * sizes[0] * sizes[1]
    roots = np.sqrt(eigenvalues)
    least = max(np.sqrt(moved), np.finfo(float).tiny)  # a set without spread moves nothing
    if np.sum(moved / np.maximum(roots, least)) > _ROUNDING * traces:
        raise np.linalg.LinAlgError
    return _assemble(a.mean - b.mean, traces, float(roots.sum()))


def _nuclear_norm(f: Float64[np.ndarray, "n d"], g: Float64[np.ndarray, "m d"]) -> float:
    """The sum of the singular values of F G^T."""
    # SciPy's product, not NumPy's: each brings a BLAS whose threads go on waiting for work, in the
    # way of the other's.
    product = blas.dgemm(1.0, f.T, g.T, trans_a=1)
    return float(scipy.linalg.svdvals(product, overwrite_a=True, check_finite=False).sum())


def _assemble(shift: np.ndarray, traces: float, root_trace: float) -> float:
    between = float(shift @ shift)
    value = between + traces - 2 * root_trace
    return value if value > _ROUNDING * (traces + between) else 0.0


def _centre(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    mean = x.mean(axis=0, dtype=np.float64)
    return mean, x - mean


def _factor(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The mean, and F [min(n, d), d] with F^T F the covariance."""
    mean, centred = _centre(x)
    if len(x) > x.shape[1]:
        centred = np.asarray(np.linalg.qr(centred, mode="r"))
    return mean, centred / np.sqrt(len(x) - 1)


def _root(cov: np.ndarray) -> np.ndarray:
    """F with F F^T = cov, for a covariance of any rank."""
    values, vectors = scipy.linalg.eigh(cov)
    return vectors * np.sqrt(np.maximum(values, 0))
