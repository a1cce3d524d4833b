"""The Inception network against torch-fidelity's, whose activations a fixture keeps."""

from pathlib import Path

import jax
import numpy as np
import pytest
import recipe

from genaug.evaluation.inception import (
    InceptionV3,
    inception_params,
    inception_shapes,
    read_inception,
)
from genaug.evaluation.resizing import preprocess
from genaug.types import DataError, UserError

FIXTURE = dict(np.load(Path(__file__).with_name("inception.npz")))
TAPS = {name: values for name, values in FIXTURE.items() if not name.startswith("resized")}
WIDTHS = {"64": 64, "192": 192, "768": 768, "2048": 2048, "logits_unbiased": 1008, "logits": 1008}


@pytest.fixture(scope="module")
def arrays():
    return recipe.inception(inception_shapes())


def test_every_tap_is_torch_fidelitys(arrays):
    """Resize included, from the weights of `recipe.py`; the images are not square."""

    def taps(params, images):
        return InceptionV3().apply({"params": params}, preprocess(images, "torch-fidelity"))

    got = jax.device_get(jax.jit(taps)(inception_params(arrays), recipe.patches(24, 40)))
    assert {name: tap.shape for name, tap in got.items()} == {
        name: (2, width) for name, width in WIDTHS.items()
    }
    assert TAPS.keys() == WIDTHS.keys()
    for name, want in TAPS.items():
        assert np.abs(want[0] - want[1]).mean() > 0.1, "the images must make a difference"
        scale = np.abs(want).max()
        np.testing.assert_allclose(
            got[name][:, :: recipe.EVERY] / scale, want / scale, rtol=0, atol=1e-5, err_msg=name
        )


def test_it_has_the_parameters_of_the_paper(arrays):
    stored = [array.size for name, array in arrays.items() if "running" not in name]
    assert len(arrays) == 94 * 5 + 2
    assert sum(array.size for array in arrays.values()) == 23_885_392
    assert sum(stored) == 23_850_960


def test_other_networks_are_refused(arrays):
    lacking = {name: array for name, array in arrays.items() if "Mixed_6b.branch1x1" not in name}
    with pytest.raises(DataError, match=r"Mixed_6b\.branch1x1\.conv\.weight.*missing"):
        inception_params(lacking)
    torchvisions = arrays | {"fc.weight": np.zeros((1000, 2048)), "fc.bias": np.zeros(1000)}
    with pytest.raises(DataError, match=r"fc.* is \(2048, 1000\), not \(2048, 1008\)"):
        inception_params(torchvisions)


def test_the_file_must_be_the_one_of_the_paper(tmp_path):
    path = tmp_path / "inception.pth"
    with pytest.raises(UserError, match=r"cannot be read.*github\.com/mseitzer/pytorch-fid"):
        read_inception(path)
    path.write_bytes(b"other weights")
    with pytest.raises(UserError, match="6726825d"):
        read_inception(path)
