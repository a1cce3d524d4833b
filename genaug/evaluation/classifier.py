"""The downstream classifier, and every replica of one training condition as one program.

A condition is data, not code: a pool of images, the probability with which each is drawn, weights
of the classes in the loss, a warp, a number of steps. So one compiled program serves every arm of a
study, and arms differ in nothing else. Replicas (seeds) run side by side over the devices.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax
from jaxtyping import Array, Float, UInt8

from genaug import parallel
from genaug.devices import DeviceMesh
from genaug.nets import layers
from genaug.transforms import images as transforms

Params = Any


@dataclass(frozen=True, kw_only=True)
class Classifier:
    """A small convolutional classifier and its schedule."""

    features: tuple[int, ...] = (16, 32)  # channels; every level halves the image
    hidden: int = 64  # units before the logits: the features of `fd/classifier`
    num_steps: int = 400
    batch_size: int = 64
    learning_rate: float = 3e-3  # peak; warmed up over a tenth, then cosine to zero
    weight_decay: float = 1e-3
    label_smoothing: float = 0.0


class Net(nn.Module):
    """Strided convolutions, one hidden layer, logits."""

    features: tuple[int, ...]
    hidden: int
    num_classes: int

    @nn.compact
    def __call__(
        self, x: Float[Array, "n h w c"]
    ) -> tuple[Float[Array, "n k"], Float[Array, "n d"]]:
        """Logits, and the hidden layer before them."""
        for features in self.features:
            x = nn.relu(layers.Conv(features, (3, 3), (2, 2))(x))
        hidden = nn.relu(nn.Dense(self.hidden)(x.reshape(x.shape[0], -1)))
        return nn.Dense(self.num_classes)(hidden), hidden


class Condition(NamedTuple):
    """One arm: how a classifier's batches are drawn and weighted."""

    images: Any  # uint8 [p, h, w, c]; NumPy's or JAX's, as all of these
    labels: Any  # int32 [p]
    cumulative: Any  # float32 [p], of the draw probabilities; ends at 1
    class_weights: Any  # float32 [k]
    num_steps: Any  # int32 []
    strength: transforms.Strength


class Trained(NamedTuple):
    """Replicas of one arm: the leading axis is the seed."""

    params: Params
    probabilities: Float[np.ndarray, "s n k"]


def net_of(config: Classifier, num_classes: int) -> Net:
    """The config's net."""
    return Net(config.features, config.hidden, num_classes)


def to_net(images: UInt8[Array, "n h w c"]) -> Float[Array, "n h w c"]:
    """Bytes to [0, 1]."""
    return images.astype(jnp.float32) / 255.0


def apply_blocked(
    net: Net, params: Params, images: UInt8[Array, "n h w c"], block: int = 256
) -> tuple[Float[Array, "n k"], Float[Array, "n d"]]:
    """Logits and hidden features of many images, in blocks of bounded memory."""
    count = images.shape[0]
    num_blocks = -(-count // block)
    padding = [(0, num_blocks * block - count)] + [(0, 0)] * (images.ndim - 1)
    blocks = jnp.pad(images, padding).reshape(num_blocks, block, *images.shape[1:])
    outputs = lax.map(lambda x: net.apply({"params": params}, to_net(x)), blocks)
    return jax.tree.map(lambda a: a.reshape(-1, a.shape[-1])[:count], outputs)


def rate(step: Array, num_steps: Array, peak: float) -> Array:
    """Linear warm-up over the first tenth, then cosine to zero; the length is data."""
    share = (step + 1.0) / num_steps
    return peak * jnp.minimum(share / 0.1, 0.5 * (1.0 + jnp.cos(jnp.pi * share)))


def trainer(
    config: Classifier, num_classes: int, smoothing: float, mesh: DeviceMesh
) -> Callable[..., tuple[Params, Float[Array, "s n k"]]]:
    """The program `((condition, images to judge), keys [s]) -> (params, probabilities)`."""
    return parallel.compile_replicas(replica_fn(config, num_classes, smoothing), mesh)


def replica_fn(
    config: Classifier, num_classes: int, smoothing: float
) -> Callable[..., tuple[Params, Float[Array, "n k"]]]:
    """One replica: `((condition, images to judge), key) -> (params, probabilities)`."""
    net = net_of(config, num_classes)
    optimizer = optax.chain(
        optax.scale_by_adam(), optax.add_decayed_weights(config.weight_decay), optax.scale(-1.0)
    )

    def batch_of(condition: Condition, key: jax.Array) -> tuple[Array, Array]:
        key_draw, key_warp = jax.random.split(key)
        keys = jax.random.split(key_warp, config.batch_size)
        u = jax.random.uniform(key_draw, (config.batch_size,))
        rows = jnp.searchsorted(condition.cumulative, u, side="right")
        rows = jnp.minimum(rows, condition.labels.shape[0] - 1)
        x, strength = to_net(condition.images[rows]), condition.strength
        is_warped = sum(jnp.abs(jnp.asarray(s)) for s in strength) > 0
        x = lax.cond(
            is_warped,
            lambda x: transforms.warp_batch(x, keys, strength, smoothing),
            lambda x: x,
            x,
        )
        return x, condition.labels[rows]

    def loss(params: Params, condition: Condition, x: Array, labels: Array) -> Array:
        logits, _ = net.apply({"params": params}, x)
        targets = optax.smooth_labels(jax.nn.one_hot(labels, num_classes), config.label_smoothing)
        weights = condition.class_weights[labels]
        return jnp.mean(weights * optax.softmax_cross_entropy(logits, targets))

    def replica(shared: tuple[Condition, Array], key: jax.Array) -> tuple[Params, Array]:
        condition, judged = shared
        key_init, key_steps = jax.random.split(key)
        params = net.init(key_init, to_net(condition.images[:1]))["params"]

        def step(index: Array, carry: tuple[Params, Any]) -> tuple[Params, Any]:
            params, opt_state = carry
            x, labels = batch_of(condition, jax.random.fold_in(key_steps, index))
            grads = jax.grad(loss)(params, condition, x, labels)
            updates, opt_state = optimizer.update(grads, opt_state, params)
            scale = rate(index, condition.num_steps, config.learning_rate)
            return optax.apply_updates(
                params, jax.tree.map(lambda u: scale * u, updates)
            ), opt_state

        carry = (params, optimizer.init(params))
        params, _ = lax.fori_loop(0, condition.num_steps, step, carry)
        logits, _ = apply_blocked(net, params, judged)
        return params, jax.nn.softmax(logits)

    return replica


def train_replicas(
    program: Callable[..., tuple[Params, Float[Array, "s n k"]]],
    condition: Condition,
    judged: UInt8[np.ndarray, "n h w c"],
    num_seeds: int,
    mesh: DeviceMesh,
    first_seed: int = 0,
) -> Trained:
    """Train a classifier for each seed from `first_seed` up and judge the images with each.

    Devices take equal shares: a number of seeds they do not divide is rounded up and the extra
    replicas are dropped.
    """
    numbers = first_seed + jnp.arange(-(-num_seeds // mesh.size) * mesh.size)
    keys = jax.vmap(lambda seed: jax.random.fold_in(jax.random.key(0), seed))(numbers)
    params, probabilities = program((condition, judged), keys)
    return Trained(
        params=jax.tree.map(lambda a: np.asarray(a)[:num_seeds], params),
        probabilities=np.asarray(probabilities)[:num_seeds],
    )


def judge(
    config: Classifier, num_classes: int, params: Params
) -> Callable[[UInt8[np.ndarray, "n h w c"]], Float[np.ndarray, "n k"]]:
    """Class probabilities of images, averaged over the replicas in `params`."""
    net = net_of(config, num_classes)

    @jax.jit
    def probabilities(params: Params, images: Array) -> Array:
        logits = lax.map(lambda one: apply_blocked(net, one, images)[0], params)
        return jnp.mean(jax.nn.softmax(logits), axis=0)

    return lambda images: np.asarray(_padded(lambda x: probabilities(params, x), images))


def features(
    config: Classifier, num_classes: int, params: Params
) -> Callable[[UInt8[np.ndarray, "n h w c"]], Float[np.ndarray, "n d"]]:
    """The hidden layer of the first replica in `params`."""
    return _of_first(config, num_classes, params, 1)


def logits(
    config: Classifier, num_classes: int, params: Params
) -> Callable[[UInt8[np.ndarray, "n h w c"]], Float[np.ndarray, "n k"]]:
    """The logits of the first replica in `params`."""
    return _of_first(config, num_classes, params, 0)


def _of_first(
    config: Classifier, num_classes: int, params: Params, which: int
) -> Callable[[np.ndarray], np.ndarray]:
    net = net_of(config, num_classes)
    first = jax.tree.map(lambda a: a[0], params)
    output = jax.jit(lambda params, images: apply_blocked(net, params, images)[which])
    return lambda images: np.asarray(_padded(lambda x: output(first, x), images))


def _padded(function: Callable[[Array], Array], images: np.ndarray, block: int = 512) -> np.ndarray:
    """Call with a multiple of `block` rows, so that few row counts are compiled."""
    count = len(images)
    padding = [(0, -count % block)] + [(0, 0)] * (images.ndim - 1)
    return np.asarray(function(jnp.asarray(np.pad(images, padding))))[:count]
