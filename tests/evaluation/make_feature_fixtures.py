"""Writes inception.npz and efficientnet.npz beside this file: what PyTorch's networks compute.

    pip install torch && pip install --no-deps torch-fidelity
    python tests/evaluation/make_feature_fixtures.py

The weights are made by `recipe.py`, and again by the tests. torch-fidelity is used without its
`__init__`, which wants torchvision; written with torch-fidelity 0.4.0 and torch 2.13.0.
"""

import importlib.util
import sys
import types
from pathlib import Path

import efficientnet_twin
import numpy as np
import recipe
import torch

from genaug.evaluation.efficientnet import efficientnet_shapes
from genaug.evaluation.inception import inception_shapes

HERE = Path(__file__).parent


def peers():
    """torch-fidelity's module of the network, and its resize."""
    found = importlib.util.find_spec("torch_fidelity")
    package = types.ModuleType("torch_fidelity")
    package.__path__ = list(found.submodule_search_locations)
    sys.modules["torch_fidelity"] = package
    from torch_fidelity import feature_extractor_inceptionv3, interpolate_compat_tensorflow

    resize = interpolate_compat_tensorflow.interpolate_bilinear_2d_like_tensorflow1x
    return feature_extractor_inceptionv3, resize


def filled(net, arrays):
    """The network with these weights; every array is used, and nothing but counters is left."""
    state = net.state_dict()
    rest = {name for name in state if name not in arrays}
    assert all(name.endswith("num_batches_tracked") or name.startswith("_fc.") for name in rest)
    torch.nn.Module.load_state_dict(net, state | {k: torch.tensor(v) for k, v in arrays.items()})
    return net.eval()


def as_torch(images):
    return torch.tensor(images).permute(0, 3, 1, 2).contiguous()


def thinned(taps):
    return {name: tap.numpy()[:, :: recipe.EVERY] for name, tap in taps.items()}


@torch.no_grad()
def inception():
    module, resize = peers()
    module.load_state_dict_from_url = lambda *_, **__: {}

    class Unfilled(module.FeatureExtractorInceptionV3):
        def load_state_dict(self, state):
            assert not state

    names = module.FeatureExtractorInceptionV3.get_provided_features_list()
    net = filled(Unfilled("inception-v3-compat", list(names)), recipe.inception(inception_shapes()))
    taps = dict(zip(names, net(as_torch(recipe.patches(24, 40))), strict=True))
    resized = {}
    for side in (24, 1000):
        images = as_torch(recipe.noise("resized", (1, side, 40, 3))).float()
        image = resize(images, size=(299, 299), align_corners=False)
        resized[f"resized_{side}"] = image[0, :, ::23, ::29].permute(1, 2, 0).numpy()
    np.savez(HERE / "inception.npz", **thinned(taps), **resized)


@torch.no_grad()
def efficientnet():
    net = filled(efficientnet_twin.Twin(), recipe.efficientnet(efficientnet_shapes()))
    taps = net((as_torch(recipe.patches(48, 48)).float() - 127) / 128)
    np.savez(HERE / "efficientnet.npz", **thinned({name: taps[name] for name in TAPS}))


TAPS = ("40", "112", "320", "1280")

if __name__ == "__main__":
    inception()
    efficientnet()
    for name in ("inception", "efficientnet"):
        for tap, values in np.load(HERE / f"{name}.npz").items():
            print(name, tap, values.shape, f"up to {np.abs(values).max():.3g}")
            if not tap.startswith("resized"):
                print("  images differ by", f"{np.abs(values[0] - values[1]).mean():.3g}")
