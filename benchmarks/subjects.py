"""What is raced: made-up data, models on it, and their generators."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np

from genaug import flops, layouts, parallel
from genaug.devices import Mesh, make_mesh
from genaug.models.dcgan import DCGAN
from genaug.models.transformer_lm import TransformerLM
from genaug.models.vae import VAE
from genaug.nets.autoencoder import MLP
from genaug.nets.unet import UNet
from genaug.profiling import by_kind, kinds_table
from genaug.state import Adam
from genaug.types import GenerativeModel, LabelSpec, Spec, TokenSpec

IMAGES: Spec = {
    "image": jax.ShapeDtypeStruct((28, 28, 1), np.uint8),
    "label": LabelSpec(10),
}
SMALL = VAE(net=MLP(hidden=(64,)))
GAN = DCGAN(latent_dim=64, generator_features=(128, 64), discriminator_features=(64, 128))
UNET = UNet(features=(32, 64, 64), num_blocks=1, attention=(7,))


def lm_config(dim: int, heads: int = 4) -> TransformerLM:
    """nanoGPT's laptop preset, of a width, at a constant rate."""
    return TransformerLM(
        num_layers=4,
        num_heads=heads,
        embed_dim=dim,
        positions="learned",
        activation="gelu",
        norm="layer",
        optimizer=Adam(learning_rate=1e-3, b2=0.99, weight_decay=0.1, clip_norm=1.0),
        ema_decay=0.0,
    )


def images(steps: int, rows: int) -> dict[str, np.ndarray]:
    """Made-up stacks of batches, blurred: noise alone is nothing to learn."""
    draw = np.random.default_rng(0)
    coarse = draw.integers(0, 256, (steps, rows, 7, 7, 1))
    return {
        "image": coarse.repeat(4, axis=2).repeat(4, axis=3).astype(np.uint8),
        "label": draw.integers(0, 10, (steps, rows)).astype(np.int32),
    }


def texts(steps: int, rows: int, length: int) -> dict[str, np.ndarray]:
    """Made-up stacks of rows of bytes, one document each."""
    draw = np.random.default_rng(0)
    return {
        "tokens": draw.integers(0, 256, (steps, rows, length)).astype(np.int32),
        "segments": np.ones((steps, rows, length), np.int32),
        "num_bytes": np.full((steps, rows), length - 1, np.int32),
    }


def text_spec(length: int) -> Spec:
    """Rows of bytes."""
    tokens = TokenSpec(length, 256)
    whole = jax.ShapeDtypeStruct((), np.int32)
    return {"tokens": tokens, "segments": jax.ShapeDtypeStruct((length,), np.int32),
            "num_bytes": whole}  # fmt: skip


def weights_of(model: GenerativeModel) -> Any:
    """Weights of a model that was not trained, none of them zero, made without compiling anything.

    Kernels keep the variance of what goes through; scales and variances are about one.
    """
    shapes = jax.eval_shape(lambda key: model.weights(model.init(key)), jax.random.key(0))
    draw = np.random.default_rng(0)

    def filled(path: Any, one: jax.ShapeDtypeStruct) -> np.ndarray:
        around = 1.0 if path[-1].key in ("scale", "var") else 0.0
        spread = np.prod(one.shape[:-1]) ** -0.5 if len(one.shape) > 1 else 0.05
        return np.asarray(around + spread * draw.standard_normal(one.shape), one.dtype)

    return jax.device_put(jax.tree_util.tree_map_with_path(filled, shapes))


class Drawing:
    """A call that draws the rows of `cond` on some devices, one per core if `devices` is None."""

    def __init__(self, model: GenerativeModel, weights: Any, cond: Any, devices: int | None = None):
        mesh = make_mesh(Mesh(data=devices or jax.device_count()))
        self.program: Any = parallel.compile_draws(model.sample, mesh)
        self.arguments = layouts.place(weights, mesh), jax.random.key(0), cond
        self.devices = mesh.size

    def __call__(self) -> Any:
        """The rows."""
        return jax.block_until_ready(self.program(*self.arguments))

    def profile(self, trips: int) -> str:
        """Where the time of a call goes whose loops go round `trips` times."""
        compiled = self.program.lower(*self.arguments).compile()  # by JAX's cache nothing anew
        return kinds_table(*by_kind(compiled, self, 1, self.devices, trips), "a call")


def sample_flops(model: GenerativeModel, weights: Any, cond: Any, trips: int) -> float:
    """Of a draw of these rows, whose loops go round `trips` times."""
    traced = jax.make_jaxpr(model.sample)(weights, jax.random.key(0), cond)
    return flops.of(traced.jaxpr, trips, jax.default_backend()).total
