"""A Grain pipeline in which a share of the examples is synthetic; the training knows nothing of it.

    python experiments/import/grain_pipeline.py runs/mnist_rare/export real.npz

real.npz holds `image` uint8 [n, h, w, c] and `label` int [n]; a fifth of it is kept for the test.
The pipeline is cut by host before real and synthetic are mixed, and its iterator saves and restores
its place like any of Grain's.
"""

import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax

import genaug


def pipeline(sampler, images, labels, share: float, batch_size: int):
    """Batches of which this share is synthetic, as many of each class."""
    real = [{"image": i, "label": np.int32(c)} for i, c in zip(images, labels, strict=True)]
    num_classes = sampler.reads["label"].spec.num_classes
    plan = {"label": np.arange(100 * num_classes, dtype=np.int32) % num_classes}
    return (
        genaug.mix(
            real,
            sampler.source(plan, seed=0),
            weights=(1 - share, share),
            seed=1,
            shard=jax.process_index(),
            num_shards=jax.process_count(),
        )
        .batch(batch_size // jax.process_count())
        .to_iter_dataset()
    )


def logits_of(params, images):
    """Two dense layers."""
    x = images.reshape(len(images), -1) / 255.0
    return jax.nn.relu(x @ params["w1"] + params["b1"]) @ params["w2"] + params["b2"]


def main(bundle: str, real: str, num_steps: int = 1000, share: float = 0.25) -> float:
    """Train on the mixture; accuracy on the real examples that were kept out."""
    sampler = genaug.load_sampler(bundle)
    with np.load(real) as file:
        order = np.random.default_rng(0).permutation(len(file["label"]))
        images, labels = file["image"][order], file["label"][order]
    test, classes = len(labels) // 5, sampler.reads["label"].spec.num_classes

    one, two = jax.random.split(jax.random.key(0))
    pixels = images[0].size
    params = {
        "w1": jax.random.normal(one, (pixels, 128)) * (2 / pixels) ** 0.5,
        "b1": jnp.zeros((128,)),
        "w2": jax.random.normal(two, (128, classes)) * 128**-0.5,
        "b2": jnp.zeros((classes,)),
    }
    optimizer = optax.adam(1e-3)
    state = (params, optimizer.init(params))

    @jax.jit
    def step(state, batch):
        def loss(params):
            logits = logits_of(params, batch["image"])
            each = optax.softmax_cross_entropy_with_integer_labels(logits, batch["label"])
            return each.mean()

        params, opt_state = state
        updates, opt_state = optimizer.update(jax.grad(loss)(params), opt_state)
        return optax.apply_updates(params, updates), opt_state

    batches = iter(pipeline(sampler, images[test:], labels[test:], share, batch_size=64))
    for _ in range(num_steps):
        state = step(state, next(batches))
    batches.close()
    predicted = logits_of(state[0], jnp.asarray(images[:test])).argmax(axis=-1)
    return float(np.mean(np.asarray(predicted) == labels[:test]))


if __name__ == "__main__":
    print(f"accuracy on real examples kept out: {main(*sys.argv[1:3]):.3f}")
