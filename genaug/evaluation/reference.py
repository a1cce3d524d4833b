"""Moments of real data, computed once and kept: what a run is measured against while it trains."""

from __future__ import annotations

import hashlib
import json
import zipfile
from pathlib import Path

import numpy as np
from jaxtyping import Shaped

from genaug.evaluation.features import FeatureNet
from genaug.evaluation.frechet import Moments, moments
from genaug.evaluation.results import content_digest
from genaug.files import save_arrays


def reference_moments(
    examples: Shaped[np.ndarray, "n ..."], net: FeatureNet, directory: Path
) -> Moments:
    """The moments of the features of `examples`, from `directory` if they are there.

    The file is named by the digest of what it holds is a function of: the examples' bytes, and the
    net's name and provenance. So other data, weights or preprocessing are another file, and no name
    can promise what it does not hold. A net without provenance is known by its name alone, and
    should not be cached. A damaged file is written anew.

    Raises:
        UserError: fewer than 2 examples, or what the net refuses.
    """
    about = json.dumps([net.name, dict(net.provenance)], sort_keys=True)
    key = hashlib.sha256(f"{content_digest(examples)} {about}".encode()).hexdigest()
    path = directory / f"{key}.npz"
    try:
        # Opened here, for NumPy leaves the file open when it is damaged.
        with path.open("rb") as handle, np.load(handle, allow_pickle=False) as file:
            return Moments(file["mean"], file["cov"], int(file["n"]))
    except (OSError, ValueError, KeyError, zipfile.BadZipFile):
        found = moments(net.apply(examples))
    save_arrays(path, {"mean": found.mean, "cov": found.cov, "n": np.asarray(found.n)})
    return found
