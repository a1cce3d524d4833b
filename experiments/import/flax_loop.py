"""A plain Flax and Optax training loop that draws its synthetic examples inside the compiled step.

    python experiments/import/flax_loop.py runs/mnist_rare/export real.npz

real.npz holds `image` uint8 [n, h, w, c] and `label` int [n]; a fifth of it is kept for the test.
Every step sees half a batch of real examples and half a batch that exists nowhere else: drawn for
it, on the device, from the sampler that genaug trained.
"""

import sys

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

import genaug


class Classifier(nn.Module):
    num_classes: int

    @nn.compact
    def __call__(self, images):
        x = images.reshape(len(images), -1) / 255.0
        return nn.Dense(self.num_classes)(nn.relu(nn.Dense(128)(x)))


def main(bundle: str, real: str, num_steps: int = 1000, half: int = 32) -> float:
    """Train on real and synthetic examples; accuracy on the real ones that were kept out."""
    sampler = genaug.load_sampler(bundle)
    num_classes = sampler.reads["label"].spec.num_classes
    with np.load(real) as file:
        order = np.random.default_rng(0).permutation(len(file["label"]))
        images, labels = file["image"][order], file["label"][order]
    test = len(labels) // 5
    train_images, train_labels = jnp.asarray(images[test:]), jnp.asarray(labels[test:])

    model, optimizer = Classifier(num_classes), optax.adam(1e-3)
    params = model.init(jax.random.key(0), train_images[:1])
    state = (params, optimizer.init(params))

    @jax.jit
    def step(state, sampler, number):
        """The sampler is an argument: its weights stay out of the program."""
        params, opt_state = state
        key = jax.random.fold_in(jax.random.key(1), number)
        rows = jax.random.randint(key, half, 0, len(train_labels))
        index = number * half + jnp.arange(half)
        made = sampler(2, {"index": index, "label": index % num_classes})
        image = jnp.concatenate([train_images[rows], made["image"]])
        label = jnp.concatenate([train_labels[rows], made["label"]])

        def loss(params):
            logits = model.apply(params, image)
            return optax.softmax_cross_entropy_with_integer_labels(logits, label).mean()

        updates, opt_state = optimizer.update(jax.grad(loss)(params), opt_state)
        return optax.apply_updates(params, updates), opt_state

    for number in range(num_steps):
        state = step(state, sampler, number)
    predicted = model.apply(state[0], jnp.asarray(images[:test])).argmax(axis=-1)
    return float(np.mean(np.asarray(predicted) == labels[:test]))


if __name__ == "__main__":
    print(f"accuracy on real examples kept out: {main(*sys.argv[1:3]):.3f}")
