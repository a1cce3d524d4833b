"""Moments of real data that are kept."""

import numpy as np
import pytest

from genaug.evaluation.features import of, pixels
from genaug.evaluation.frechet import moments
from genaug.evaluation.reference import reference_moments

IMAGES = np.random.default_rng(0).integers(256, size=(30, 3, 3, 1)).astype(np.uint8)


def counted():
    calls = []

    def function(images):
        calls.append(len(images))
        return images.reshape(len(images), -1).astype(np.float32)

    return function, calls


def test_they_are_computed_once_and_are_the_same(tmp_path):
    function, calls = counted()
    net = of(function, "net", {"weights": "a"})
    first, again = (reference_moments(IMAGES, net, tmp_path) for _ in range(2))
    assert calls == [30]
    want = moments(net.apply(IMAGES))
    for found in (first, again):
        np.testing.assert_array_equal(found.mean, want.mean)
        np.testing.assert_array_equal(found.cov, want.cov)
        assert found.n == 30


@pytest.mark.parametrize("what", ["images", "weights", "name"])
def test_other_content_is_another_file(tmp_path, what):
    function, calls = counted()
    reference_moments(IMAGES, of(function, "net", {"weights": "a"}), tmp_path)
    name = "other" if what == "name" else "net"
    net = of(function, name, {"weights": "b" if what == "weights" else "a"})
    images = IMAGES.copy()
    images[0, 0, 0, 0] ^= what == "images"
    reference_moments(images, net, tmp_path)
    assert calls == [30, 30]
    assert len(list(tmp_path.iterdir())) == 2


def test_a_damaged_file_is_written_anew(tmp_path):
    want = reference_moments(IMAGES, pixels(), tmp_path)
    (path,) = tmp_path.iterdir()
    path.write_bytes(path.read_bytes()[:100])
    found = reference_moments(IMAGES, pixels(), tmp_path)
    np.testing.assert_array_equal(found.cov, want.cov)
    np.testing.assert_array_equal(reference_moments(IMAGES, pixels(), tmp_path).cov, want.cov)
