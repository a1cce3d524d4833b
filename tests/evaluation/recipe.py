"""Weights and images that any machine makes again from their names, so that none are committed.

NumPy promises the raw bits of PCG64, not the values of its distributions.
"""

import zlib

import numpy as np

EVERY = 7
"""Of the activations in a fixture every seventh is kept: it divides no branch's width."""


def raw(name, shape):
    return np.random.PCG64(zlib.crc32(name.encode())).random_raw(int(np.prod(shape))).reshape(shape)


def uniform(name, shape, low, high):
    """float32 values from `low` to `high`."""
    share = (raw(name, shape) >> np.uint64(40)).astype(np.float32) * np.float32(2**-24)
    return share * np.float32(high - low) + np.float32(low)


def noise(name, shape):
    """uint8 images without any likeness among pixels."""
    return (raw(name, shape) >> np.uint64(56)).astype(np.uint8)


def patches(height, width):
    """Two uint8 images of 4 x 4 patches, dark and pale: of pure noise nets see the mean alone."""
    images = noise("patches", (2, height // 4, width // 4, 3)).repeat(4, axis=1).repeat(4, axis=2)
    return np.stack([images[0] // 2, 255 - images[1] // 3])


def convolution(conv, norm, shape):
    """A convolution [out, in, h, w] whose output is about as large as its input, and its norm."""
    bound, out = (6 / np.prod(shape[1:])) ** 0.5, shape[:1]
    return {
        f"{conv}.weight": uniform(f"{conv}.weight", shape, -bound, bound),
        f"{norm}.weight": uniform(f"{norm}.weight", out, 0.7, 1.1),
        f"{norm}.bias": uniform(f"{norm}.bias", out, -0.1, 0.1),
        f"{norm}.running_mean": uniform(f"{norm}.running_mean", out, -0.1, 0.1),
        f"{norm}.running_var": uniform(f"{norm}.running_var", out, 0.5, 1.0),
    }


def torch_shape(module):
    """PyTorch's shape of the kernel of a Flax convolution."""
    height, width, inputs, out = module["kernel"].shape
    return out, inputs, height, width


def inception(shapes):
    """PyTorch's arrays for the parameters of the Inception network."""
    arrays = {
        "fc.weight": uniform("fc.weight", (1008, 2048), -0.04, 0.04),
        "fc.bias": uniform("fc.bias", (1008,), -0.5, 0.5),
    }

    def walk(tree, path):
        if "kernel" in tree:
            name = ".".join(path)
            arrays.update(convolution(f"{name}.conv", f"{name}.bn", torch_shape(tree)))
        else:
            for name, part in tree.items():
                walk(part, (*path, name))

    walk({name: part for name, part in shapes.items() if not name.startswith("fc")}, ())
    return arrays


def efficientnet(shapes):
    """PyTorch's arrays for the parameters of EfficientNet-Lite0."""
    norms = {"expand": "_bn0", "depthwise": "_bn1", "project": "_bn2"}
    arrays = {
        **convolution("_conv_stem", "_bn0", torch_shape(shapes["stem"])),
        **convolution("_conv_head", "_bn1", torch_shape(shapes["head"])),
    }
    for name, block in shapes.items():
        if name.startswith("block_"):
            path = f"_blocks.{name.removeprefix('block_')}"
            for part in block:
                names = f"{path}._{part}_conv", f"{path}.{norms[part]}"
                arrays.update(convolution(*names, torch_shape(block[part])))
    return arrays
