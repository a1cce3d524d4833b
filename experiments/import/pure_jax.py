"""A model that is a pytree, as in Equinox, and a sampler read without genaug being installed.

    python experiments/import/pure_jax.py runs/mnist_rare/export real.npz

real.npz holds `image` uint8 [n, h, w, c] and `label` int [n]; a fifth of it is kept for the test.
The whole training is one `lax.scan`; the synthetic half of every batch is drawn inside it.
"""

import sys
from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from bundle_reader import load_sampler


@partial(jax.tree_util.register_dataclass, data_fields=["weight", "bias"], meta_fields=[])
@dataclass(frozen=True)
class Linear:
    """y = W x + b of one example."""

    weight: jax.Array
    bias: jax.Array

    @classmethod
    def make(cls, key, size_in, size_out):
        weight = jax.random.normal(key, (size_out, size_in)) * (2 / size_in) ** 0.5
        return cls(weight, jnp.zeros((size_out,)))

    def __call__(self, x):
        return self.weight @ x + self.bias


@partial(jax.tree_util.register_dataclass, data_fields=["hidden", "out"], meta_fields=[])
@dataclass(frozen=True)
class MLP:
    """Logits of one image."""

    hidden: Linear
    out: Linear

    def __call__(self, image):
        return self.out(jax.nn.relu(self.hidden(image.ravel() / 255.0)))


def main(bundle: str, real: str, num_steps: int = 1000, half: int = 32, rate=0.1) -> float:
    """Train on real and synthetic examples; accuracy on the real ones that were kept out."""
    sample, about = load_sampler(bundle)
    num_classes = about["conditions"]["label"]["num_classes"]
    with np.load(real) as file:
        order = np.random.default_rng(0).permutation(len(file["label"]))
        images, labels = file["image"][order], file["label"][order]
    test = len(labels) // 5
    train_images, train_labels = jnp.asarray(images[test:]), jnp.asarray(labels[test:])
    one, two, draws = jax.random.split(jax.random.key(0), 3)
    model = MLP(Linear.make(one, images[0].size, 128), Linear.make(two, 128, num_classes))

    def step(model, number):
        rows = jax.random.randint(jax.random.fold_in(draws, number), half, 0, len(train_labels))
        index = number * half + jnp.arange(half)
        made = sample(draws, {"index": index, "label": index % num_classes})
        image = jnp.concatenate([train_images[rows], made["image"]])
        label = jnp.concatenate([train_labels[rows], made["label"]])

        def loss(model):
            chances = jax.nn.log_softmax(jax.vmap(model)(image))
            return -jnp.take_along_axis(chances, label[:, None], axis=1).mean()

        gradient = jax.grad(loss)(model)
        return jax.tree.map(lambda p, g: p - rate * g, model, gradient), None

    model, _ = jax.jit(lambda model: jax.lax.scan(step, model, jnp.arange(num_steps)))(model)
    predicted = jax.vmap(model)(jnp.asarray(images[:test])).argmax(axis=-1)
    return float(np.mean(np.asarray(predicted) == labels[:test]))


if __name__ == "__main__":
    print(f"accuracy on real examples kept out: {main(*sys.argv[1:3]):.3f}")
