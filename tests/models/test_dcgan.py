"""DCGAN: both networks against PyTorch twins, the projection, spectral norm, and the update."""

import functools
import importlib.util
import re
from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from genaug.models import dcgan
from genaug.models.dcgan import DCGAN
from genaug.nets import dcgan as nets
from genaug.nets import layers
from genaug.nets.adversarial import Hinge, NonSaturating, WassersteinGP
from genaug.state import SGD
from genaug.transforms.diffaugment import PAPER, DiffAugment
from genaug.types import LabelSpec, UserError, row_uniform, split_keys

SHAPE, CLASSES, LATENT = (8, 12, 3), 4, 5
SPEC = {"image": jax.ShapeDtypeStruct(SHAPE, np.uint8), "label": LabelSpec(CLASSES)}
RATE = 1000.0  # so large that the difference of two parameters is the gradient, to its last digits
CONFIG = DCGAN(
    latent_dim=LATENT,
    generator_features=(6, 4),
    discriminator_features=(4, 6),
    generator_optimizer=SGD(learning_rate=RATE),
    discriminator_optimizer=SGD(learning_rate=RATE),
)
LABEL = jnp.array([0, 3, 1, 1, 2, 0], jnp.int32)


def batch(count=6, seed=0):
    images = np.random.default_rng(seed).integers(0, 256, (count, *SHAPE)).astype(np.uint8)
    return {"image": jnp.asarray(images), "label": jnp.resize(LABEL, count)}


def perturbed(params, seed=0):
    """Parameters away from zero, so that nothing is hidden by small weights or equal gains."""
    leaves, structure = jax.tree.flatten(params)
    keys = jax.random.split(jax.random.key(seed), len(leaves))
    moved = [x + 0.2 * jax.random.normal(k, x.shape) for x, k in zip(leaves, keys, strict=True)]
    return jax.tree.unflatten(structure, moved)


def modules(config):
    classes = CLASSES if config.conditional else None
    return (
        nets.Generator(config.generator_features, SHAPE, classes),
        nets.Discriminator(config.discriminator_features, config.norm, classes),
    )


def prepared(**changes):
    """A config, its bound functions, and a state whose parameters are `perturbed`."""
    config = replace(CONFIG, **changes)
    state = jax.jit(config.make(SPEC).init)(jax.random.key(0))

    def moved(network, seed):
        params = perturbed(network.variables["params"], seed)
        ema = jax.tree.map(jnp.copy, params)
        return network.replace(variables={**network.variables, "params": params}, ema=ema)

    state = dcgan.GANState(moved(state.generator, 1), moved(state.discriminator, 2))
    return config, dcgan.bind(config, *modules(config)), state


# PyTorch's layouts, there and back.
TO_TORCH = {
    "linear": lambda k: k.T,
    "conv": lambda k: k.transpose(3, 2, 0, 1),
    "transposed": lambda k: k[::-1, ::-1].transpose(2, 3, 0, 1),
    "same": lambda k: k,
}
FROM_TORCH = {
    "linear": lambda k: k.T,
    "conv": lambda k: k.transpose(2, 3, 1, 0),
    "transposed": lambda k: k.transpose(2, 3, 0, 1)[::-1, ::-1],
    "same": lambda k: k,
}


class Twin:
    """A PyTorch module of layers that carry the weights of a parameter tree."""

    def __init__(self, params):
        self.torch = pytest.importorskip("torch", reason="the twins are written in PyTorch")
        self.params, self.copied = params, {}

    def put(self, target, path, layout="same"):
        """Copy one leaf into a torch parameter, and remember where its gradient belongs."""
        leaf = functools.reduce(lambda tree, name: tree[name], path, self.params)
        value = self.torch.tensor(np.ascontiguousarray(TO_TORCH[layout](np.asarray(leaf))))
        with self.torch.no_grad():
            target.copy_(value.reshape(target.shape))
        self.copied[path] = target, layout, leaf.shape

    def check_gradients(self, loss, grads, rtol=1e-5):
        """The gradients of a torch loss are `grads`, relative to the largest of each leaf's."""
        targets = [target for target, _, _ in self.copied.values()]
        assert len(targets) == len(jax.tree.leaves(grads)), "every parameter is compared"
        found = self.torch.autograd.grad(loss, targets)
        for (path, (_, layout, shape)), want in zip(self.copied.items(), found, strict=True):
            got = np.asarray(functools.reduce(lambda tree, name: tree[name], path, grads))
            want = FROM_TORCH[layout](want.numpy()).reshape(shape)
            np.testing.assert_allclose(
                got, want, rtol=rtol, atol=rtol * np.abs(want).max(), err_msg=str(path)
            )


class GeneratorTwin(Twin):
    def __init__(self, params, train=True):
        super().__init__(params)
        nn = self.torch.nn
        self.project = nn.Linear(len(params["project"]["kernel"]), 2 * 3 * 6, bias=False)
        self.convs = [
            nn.ConvTranspose2d(6, 4, 4, 2, 1, bias=False),
            nn.ConvTranspose2d(4, 3, 4, 2, 1),
        ]
        self.norms = [nn.BatchNorm2d(width, affine=False, momentum=1.0) for width in (6, 4)]
        self.put(self.project.weight, ("project", "kernel"), "linear")
        self.tables = []
        for level, (norm, conv) in enumerate(zip(self.norms, self.convs, strict=True)):
            norm.train(train)
            pair = []
            for name in ("gain", "bias"):
                leaf = params[f"norm_{level}"][name]
                pair.append(nn.Parameter(self.torch.zeros(leaf.shape)))
                self.put(pair[-1], (f"norm_{level}", name))
            self.tables.append(pair)
            self.put(conv.weight, (f"conv_{level}", "kernel"), "transposed")
        self.put(self.convs[1].bias, ("conv_1", "bias"))

    def __call__(self, z, label):
        torch = self.torch
        x = torch.tensor(np.asarray(z))
        rows = torch.tensor(np.zeros(len(z)) if label is None else np.asarray(label)).long()
        if label is not None:
            x = torch.cat([x, torch.nn.functional.one_hot(rows, CLASSES)], dim=1)
        x = self.project(x).view(-1, 2, 3, 6).permute(0, 3, 1, 2)
        for norm, conv, (gain, bias) in zip(self.norms, self.convs, self.tables, strict=True):
            gain, bias = (table[rows][:, :, None, None] for table in (gain, bias))
            x = conv(torch.relu(gain * norm(x) + bias))
        return torch.tanh(x)


class DiscriminatorTwin(Twin):
    def __init__(self, variables, norm):
        super().__init__(variables["params"])
        nn = self.torch.nn
        self.norm = norm
        plain = norm in ("spectral", "none")
        self.convs = [nn.Conv2d(3, 4, 4, 2, 1), nn.Conv2d(4, 6, 4, 2, 1, bias=plain)]
        self.psi = nn.Linear(2 * 3 * 6, 1)
        self.scale, self.shift = nn.Parameter(self.torch.ones(6)), nn.Parameter(self.torch.zeros(6))
        self.v = nn.Embedding(CLASSES, 2 * 3 * 6) if "projection" in self.params else None
        for level, conv in enumerate(self.convs):
            self.put_matrix(conv, (f"conv_{level}", "kernel"), "conv", variables)
            if conv.bias is not None:
                self.put(conv.bias, (f"conv_{level}", "bias"))
        self.put_matrix(self.psi, ("psi", "kernel"), "linear", variables)
        self.put(self.psi.bias, ("psi", "bias"))
        if self.v is not None:
            self.put_matrix(self.v, ("projection",), "same", variables)
        if not plain:
            gain = "gain" if norm == "batch" else "scale"
            self.put(self.scale, ("norm_1", gain))
            self.put(self.shift, ("norm_1", "bias"))

    def put_matrix(self, module, path, layout, variables):
        if self.norm == "spectral":
            # Of an embedding [classes, features] the vector here is on the features' side.
            self.torch.nn.utils.spectral_norm(module, eps=1e-12, dim=int(layout == "same"))
            u = functools.reduce(lambda tree, name: tree[name], path, variables["spectral"])
            module.weight_u.copy_(self.torch.tensor(np.asarray(u)))
        target = module.weight_orig if self.norm == "spectral" else module.weight
        self.put(target, path, layout)

    def __call__(self, x, label):
        torch = self.torch
        if not torch.is_tensor(x):
            x = torch.tensor(np.asarray(x)).permute(0, 3, 1, 2)
        x = torch.nn.functional.leaky_relu(self.convs[0](x), 0.2)
        x = self.convs[1](x)
        if self.norm == "batch":
            x = torch.nn.functional.batch_norm(x, None, None, self.scale, self.shift, True)
        if self.norm == "layer":
            x = torch.nn.functional.group_norm(x, 1, self.scale, self.shift, eps=1e-6)
        x = torch.nn.functional.leaky_relu(x, 0.2)
        phi = x.permute(0, 2, 3, 1).reshape(len(x), -1)
        logits = self.psi(phi)[:, 0]
        if self.v is not None:
            logits = logits + (self.v(torch.tensor(np.asarray(label))) * phi).sum(1)
        return logits


def nhwc(x):
    return x.detach().permute(0, 2, 3, 1).numpy()


def assert_close(got, want, rtol=1e-5):
    want = np.asarray(want)
    np.testing.assert_allclose(got, want, rtol=rtol, atol=rtol * np.abs(want).max())


def test_transposed_convolution_is_pytorch_s_with_the_kernel_flipped(key):
    torch = pytest.importorskip("torch", reason="the twin is written in PyTorch")
    x, k = jax.random.normal(key, (2, 5, 3, 7)), jax.random.normal(key, (4, 4, 7, 6))
    module = torch.nn.ConvTranspose2d(7, 6, 4, 2, 1, bias=False)
    with torch.no_grad():
        module.weight.copy_(torch.tensor(TO_TORCH["transposed"](np.asarray(k)).copy()))
        want = nhwc(module(torch.tensor(np.asarray(x)).permute(0, 3, 1, 2)))
    assert_close(layers.conv_transpose(x, k), want)


@pytest.mark.parametrize("conditional", [False, True])
def test_generator_is_its_pytorch_twin(conditional, key):
    _, bound, state = prepared(conditional=conditional)
    params = state.generator.variables["params"]
    label = LABEL if conditional else None
    z, weights = (
        dcgan.latents(jax.random.split(key, 6), LATENT),
        jax.random.normal(key, (6, *SHAPE)),
    )
    twin = GeneratorTwin(params)
    want = twin(z, label)
    images, moments = bound.generate(params, z, label)
    assert_close(images, nhwc(want))
    for level, norm in enumerate(twin.norms):
        found = moments[f"norm_{level}"]["BatchNorm_0"]
        assert_close(found["mean"], norm.running_mean)
        count = 6 * 6 * 4**level  # PyTorch keeps the unbiased variance
        assert_close(found["var"], norm.running_var * (count - 1) / count)
    grads = jax.grad(lambda p: jnp.sum(weights * bound.generate(p, z, label)[0]))(params)
    loss = (twin.torch.tensor(np.asarray(weights)).permute(0, 3, 1, 2) * want).sum()
    twin.check_gradients(loss, grads)


NORMS = ("batch", "spectral", "layer", "none")
CASES = [(NonSaturating(), norm) for norm in NORMS] + [(Hinge(), "spectral")]
CASES += [(WassersteinGP(), norm) for norm in NORMS[1:]]


@pytest.mark.parametrize("loss, norm", CASES, ids=lambda v: v if v in NORMS else type(v).__name__)
def test_discriminator_update_is_its_pytorch_twin_s(loss, norm, key):
    """Logits, the loss with its penalty, and an SGD step of every parameter."""
    config, bound, state = prepared(loss=loss, norm=norm, conditional=True)
    network, x = state.discriminator, dcgan.to_net(batch()["image"])
    fake = jnp.tanh(jax.random.normal(key, x.shape))
    twin = DiscriminatorTwin(network.variables, norm)
    torch = twin.torch
    real_t, fake_t = (torch.tensor(np.asarray(v)).permute(0, 3, 1, 2) for v in (x, fake))
    if norm == "batch":  # real and generated images are normalised apart
        real_logits, fake_logits = twin(real_t, LABEL), twin(fake_t, LABEL)
    else:  # one call, as a call is a power iteration
        between_t = between(real_t, fake_t, key, torch).requires_grad_()
        logits = twin(torch.cat([real_t, fake_t, between_t]), jnp.tile(LABEL, 3))
        real_logits, fake_logits, between_logits = logits.split(6)
    d_loss = {
        "NonSaturating": lambda r, f: torch.nn.functional.softplus(torch.cat([-r, f])).sum() / 6,
        "Hinge": lambda r, f: torch.relu(1 + torch.cat([-r, f])).sum() / 6,
        "WassersteinGP": lambda r, f: f.mean() - r.mean(),
    }[type(loss).__name__](real_logits, fake_logits)
    if isinstance(loss, WassersteinGP):
        (slopes,) = torch.autograd.grad(between_logits.sum(), between_t, create_graph=True)
        penalty = ((slopes.flatten(1).norm(dim=1) - 1) ** 2).mean()
        d_loss = d_loss + 10 * penalty
    stub = bound._replace(generate=lambda params, z, label: (fake, {}))
    after, metrics = dcgan.discriminator_update(config, stub, {}, network, part(x, LABEL, key))
    assert_close(metrics["d_real"], real_logits.mean().item())
    assert_close(metrics["d_fake"], fake_logits.mean().item())
    assert_close(metrics["d_loss"], d_loss.item())
    if isinstance(loss, WassersteinGP):
        assert_close(metrics["penalty"], penalty.item())
    grads = jax.tree.map(
        lambda old, new: (old - new) / RATE,
        network.variables["params"],
        after.variables["params"],
    )
    twin.check_gradients(d_loss, grads)
    assert int(after.step) == 1
    if norm == "spectral":
        for conv in (0, 1):
            found = after.variables["spectral"][f"conv_{conv}"]["kernel"]
            assert_close(found, twin.convs[conv].weight_u)


def part(x, label, key):
    """Examples, each with a key."""
    return dcgan.Part(x, label, jax.random.split(key, len(x)))


def between(real, fake, key, torch):
    """The points of the penalty, by the same draw."""
    share = row_uniform(split_keys(jax.random.split(key, 6), 4)[3], (1, 1, 1))
    share = torch.tensor(np.asarray(share))
    return share * real + (1 - share) * fake


@pytest.mark.parametrize("norm", ["batch", "spectral"])
def test_generator_update_is_its_pytorch_twin_s(norm, key):
    config, bound, state = prepared(norm=norm, conditional=True)
    network, judged = state.generator, state.discriminator.variables
    examples = part(dcgan.to_net(batch()["image"]), LABEL, key)
    z = dcgan.latents(split_keys(examples.keys, 2)[0], LATENT)
    twin, judge = GeneratorTwin(network.variables["params"]), DiscriminatorTwin(judged, norm)
    loss = twin.torch.nn.functional.softplus(-judge(twin(z, LABEL), LABEL)).mean()
    after, metrics = dcgan.generator_update(config, bound, network, judged, examples)
    assert_close(metrics["g_loss"], loss.item())
    grads = jax.tree.map(
        lambda old, new: (old - new) / RATE, network.variables["params"], after.variables["params"]
    )
    twin.check_gradients(loss, grads)
    # The first step of the average goes nine tenths of the way (genaug/state.py).
    for old, new, ema in zip(
        *map(jax.tree.leaves, (network.ema, after.variables["params"], after.ema)), strict=True
    ):
        assert_close(ema, 0.1 * old + 0.9 * new)


def test_augmentation_reaches_real_and_generated_images_in_both_updates(key):
    def brightness(config, bound, state):
        bound = bound._replace(judge=lambda params, images, label: images.mean((1, 2, 3)))
        generator, examples = state.generator, part(dcgan.to_net(batch()["image"]), None, key)
        _, metrics = dcgan.discriminator_update(
            config, bound, generator.variables["params"], state.discriminator, examples
        )
        _, more = dcgan.generator_update(
            config, bound, generator, state.discriminator.variables, examples
        )
        return np.array([metrics["d_real"], metrics["d_fake"], more["g_loss"]])

    plain = brightness(*prepared(loss=Hinge()))
    changed = brightness(*prepared(loss=Hinge(), augment=DiffAugment(brightness=1.0)))
    assert (np.abs(plain - changed) > 1e-4).all()


def test_projection_is_the_product_of_a_class_s_row_and_the_features(key):
    """f(x, y) - psi(phi(x)) = V[y] . phi(x): in NumPy, phi being read off with psi's weights."""
    _, bound, state = prepared(norm="none", conditional=True)
    params = state.discriminator.variables["params"]
    x = jax.random.normal(key, (6, *SHAPE))

    def psi_with(kernel):
        psi = {"kernel": jnp.reshape(kernel, (-1, 1)), "bias": jnp.zeros(1)}
        without = {**params, "psi": psi, "projection": jnp.zeros_like(params["projection"])}
        return np.asarray(bound.judge(without, x, LABEL))

    phi = np.stack([psi_with(row) for row in jnp.eye(36)], axis=1)
    kernel, bias = params["psi"]["kernel"][:, 0], params["psi"]["bias"][0]
    want = phi @ np.asarray(kernel) + bias
    want = want + np.einsum("nd,nd->n", np.asarray(params["projection"])[np.asarray(LABEL)], phi)
    assert_close(bound.judge(params, x, LABEL), want)


def test_spectral_norm_converges_to_the_largest_singular_value(key):
    params = {
        "conv": {"kernel": jax.random.normal(key, (3, 3, 4, 6)), "bias": jnp.ones(6)},
        "projection": jax.random.normal(key, (5, 7)),
    }
    vectors = nets.spectral_vectors(params, key)
    assert jax.tree.map(jnp.shape, vectors) == {"conv": {"kernel": (6,)}, "projection": (7,)}
    for _ in range(200):
        normal, vectors = nets.spectral_normalise(params, vectors)
    np.testing.assert_array_equal(normal["conv"]["bias"], 1)
    for found, given in [
        (normal["conv"]["kernel"], params["conv"]["kernel"]),
        (normal["projection"], params["projection"]),
    ]:
        matrix = np.asarray(given, np.float64).reshape(-1, given.shape[-1])
        sigma = np.linalg.svd(matrix, compute_uv=False)[0]
        np.testing.assert_allclose(np.asarray(given) / found, sigma, rtol=1e-5)


def test_an_update_is_one_power_iteration_for_both_kinds_of_images(key):
    config, bound, state = prepared(norm="spectral")
    x = dcgan.to_net(batch()["image"])
    generator, network = state.generator.variables["params"], state.discriminator
    after, _ = dcgan.discriminator_update(config, bound, generator, network, part(x, None, key))
    _, want = nets.spectral_normalise(network.variables["params"], network.variables["spectral"])
    jax.tree.map(np.testing.assert_array_equal, after.variables["spectral"], want)


def told(images):
    """Which number a uniform image shows."""
    return jnp.round((images[:, 0, 0, 0] + 1) * 127.5 / 10)


def test_each_discriminator_update_of_a_step_sees_its_own_part_of_the_batch(key):
    """Images show their row's number; the judge says its square, times whether the label fits."""
    config, bound, state = prepared(
        conditional=True, norm="none", loss=WassersteinGP(critic_steps=3)
    )
    rows = np.arange(12)
    image = np.broadcast_to(rows.reshape(-1, 1, 1, 1) * 10, (12, *SHAPE)).astype(np.uint8)
    data = {"image": jnp.asarray(image), "label": jnp.asarray(rows % CLASSES, jnp.int32)}

    def judge(params, images, label):
        return told(images) ** 2 * (told(images) % CLASSES == label)

    _, metrics = dcgan.adversarial_step(config, bound._replace(judge=judge), state, data, key)
    np.testing.assert_allclose(metrics["d_real"], np.mean(rows**2.0), rtol=1e-6)


@pytest.mark.parametrize("loss", [Hinge(critic_steps=2), WassersteinGP()], ids=str)
def test_a_step_is_so_many_discriminator_updates_and_one_of_the_generator(loss, key):
    config = replace(CONFIG, loss=loss, norm="layer", augment=PAPER, conditional=True)
    config = replace(config, generator_optimizer=SGD(learning_rate=1e-3))
    model = replace(config, discriminator_optimizer=SGD(learning_rate=1e-3)).make(SPEC)
    state = jax.jit(model.init)(key)
    after, metrics = jax.jit(model.step)(state, batch(10), key)
    assert int(after.discriminator.step) == loss.critic_steps
    assert int(after.generator.step) == 1
    assert all(np.isfinite(value) for value in metrics.values())
    np.testing.assert_allclose(metrics["loss"], metrics["d_loss"] + metrics["g_loss"], rtol=1e-6)
    assert ("penalty" in metrics) == isinstance(loss, WassersteinGP)


def test_sampling_uses_the_moments_of_the_averaged_weights(key):
    """Updates of rate 0 leave all weights; the statistics then go to the EMA's own moments."""
    frozen = SGD(learning_rate=0.0)
    config, bound, state = prepared(
        generator_optimizer=frozen, discriminator_optimizer=frozen, ema_decay=1.0
    )
    network = state.generator
    state = state._replace(
        generator=network.replace(ema=perturbed(network.ema, 7), step=jnp.int32(2**30))
    )
    ema = state.generator.ema

    @jax.jit
    def train(state, key):
        def step(state, key):
            return dcgan.adversarial_step(config, bound, state, batch(32), key)[0], None

        return jax.lax.scan(step, state, jax.random.split(key, 700))[0]

    after = train(state, key)
    jax.tree.map(np.testing.assert_array_equal, after.generator.ema, ema)
    z = dcgan.latents(jax.random.split(jax.random.key(9), 20_000), LATENT)
    _, want = bound.generate(ema, z, None)
    _, other = bound.generate(network.variables["params"], z, None)
    weights = config.make(SPEC).weights(after)
    jax.tree.map(np.testing.assert_array_equal, weights["params"], ema)
    for level in ("norm_0", "norm_1"):
        found, right, wrong = (
            tree[level]["BatchNorm_0"] for tree in (weights["batch_stats"], want, other)
        )
        deviation = np.sqrt(right["var"])
        # Averaged over some 200 batches of 32; a batch of them lacks 1/32 of the variance at most.
        np.testing.assert_allclose(found["mean"] / deviation, right["mean"] / deviation, atol=0.05)
        np.testing.assert_allclose(found["var"], right["var"], rtol=0.06)
        assert np.abs(wrong["var"] / right["var"] - 1).max() > 0.2


def test_statistics_begin_with_the_first_batch_and_are_averaged_from_then_on(key):
    _, _, state = prepared()
    network = state.generator
    first, second = (
        jax.tree.map(lambda x, v=value: jnp.full_like(x, v), network.variables["batch_stats"])
        for value in (4.0, 8.0)
    )
    once = dcgan.with_statistics(network.replace(step=jnp.int32(1)), first)
    twice = dcgan.with_statistics(once.replace(step=jnp.int32(2)), second)
    late = dcgan.with_statistics(once.replace(step=jnp.int32(10**6)), second)
    for value in jax.tree.leaves(once.variables["batch_stats"]):
        np.testing.assert_allclose(value, 4.0)
    for value in jax.tree.leaves(twice.variables["batch_stats"]):
        np.testing.assert_allclose(value, 8.0 - 4.0 / 11, rtol=1e-6)
    for value in jax.tree.leaves(late.variables["batch_stats"]):
        np.testing.assert_allclose(value, 4.0 + 4.0 * 0.01, rtol=1e-5)


@pytest.mark.parametrize("conditional", [False, True])
def test_samples_are_the_twin_s_in_evaluation_mode(conditional, key):
    config, _, state = prepared(conditional=conditional)
    rng = np.random.default_rng(0)
    stats = jax.tree.map(
        lambda x: jnp.asarray(rng.uniform(0.5, 1.5, x.shape), jnp.float32),
        state.generator.variables["batch_stats"],
    )
    variables = {**state.generator.variables, "batch_stats": stats}
    ema = jax.tree.map(lambda x: 3 * x, state.generator.ema)
    state = state._replace(generator=state.generator.replace(variables=variables, ema=ema))
    model = config.make(SPEC)
    assert set(model.cond) == ({"label", "temperature"} if conditional else {"temperature"})
    index, temperature = jnp.array([3, 0, 8, 1, 2, 5]), jnp.array([1, 1, 0.5, 0, 2, 1.0])
    cond = {"index": index, "temperature": temperature}
    cond |= {"label": LABEL} if conditional else {}
    rows = jax.jit(model.sample)(model.weights(state), key, cond)
    assert set(rows) == ({"image", "label"} if conditional else {"image"})
    z = dcgan.latents(jax.vmap(lambda i: jax.random.fold_in(key, i))(index), LATENT)
    twin = GeneratorTwin(state.generator.ema, train=False)
    for level, norm in enumerate(twin.norms):
        found = stats[f"norm_{level}"]["BatchNorm_0"]
        norm.running_mean.copy_(twin.torch.tensor(np.asarray(found["mean"])))
        norm.running_var.copy_(twin.torch.tensor(np.asarray(found["var"])))
    want = nhwc(twin(jnp.expand_dims(temperature, 1) * z, LABEL if conditional else None))
    got = np.asarray(rows["image"], np.float32)
    np.testing.assert_allclose(got, (want + 1) * 127.5, atol=0.502)
    assert got.std() > 20


def test_noise_is_uniform(key):
    z = np.asarray(dcgan.latents(jax.random.split(key, 1000), LATENT))
    assert -1 <= z.min() < -0.99
    assert 0.99 < z.max() <= 1
    np.testing.assert_allclose(z.var(), 1 / 3, rtol=0.05)


def test_moment_gap_is_in_closed_form():
    """Pixels at -1 and 1 against pixels at 0: means differ by 0, deviations by 1."""
    real = jnp.stack([jnp.full(SHAPE, -1.0), jnp.ones(SHAPE)])
    fake = jnp.zeros((5, *SHAPE))
    np.testing.assert_allclose(dcgan.moment_gap(real, fake), 1.0)
    np.testing.assert_allclose(dcgan.moment_gap(real + 0.25, fake), 1.25)


def test_every_weight_starts_from_the_paper_s_normal(key):
    config = DCGAN(generator_features=(64, 32), discriminator_features=(32, 64), conditional=True)
    state = jax.jit(config.make(SPEC).init)(key)
    for network in state:
        for path, leaf in jax.tree_util.tree_leaves_with_path(network.variables["params"]):
            name = path[-1].key
            centre = {"bias": 0.0, "gain": 1.0}.get(name, 0.0)
            scale = 0.0 if name == "bias" else 0.02
            error = 5 / np.sqrt(leaf.size)
            assert abs(float(leaf.mean()) - centre) <= scale * error + 1e-6, path
            assert abs(float(leaf.std()) - scale) <= scale * error, path


def test_the_published_networks_have_the_published_shapes(key):
    """Radford et al. 2016, figure 1: 100 numbers to 4x4x1024, 8x8x512, ..., 64x64x3."""
    widths = (1024, 512, 256, 128)
    config = DCGAN(generator_features=widths, discriminator_features=widths[::-1])
    spec = {"image": jax.ShapeDtypeStruct((64, 64, 3), np.uint8)}
    state = jax.eval_shape(config.make(spec).init, key)
    shapes = jax.tree.map(lambda leaf: leaf.shape, state.generator.variables["params"])
    assert shapes["project"] == {"kernel": (100, 4 * 4 * 1024)}
    assert [shapes[f"conv_{i}"]["kernel"][2:] for i in range(4)] == [
        (1024, 512), (512, 256), (256, 128), (128, 3)
    ]  # fmt: skip
    biased = {k for k, v in state.discriminator.variables["params"].items() if "bias" in v}
    assert biased == {"conv_0", "norm_1", "norm_2", "norm_3", "psi"}


def test_the_larger_preset_runs_at_a_fraction_of_its_width(key):
    """CIFAR-10's shape, on made-up images."""
    model = load_experiment("cifar10_dcgan").config().model
    thin = [
        tuple(w // 32 for w in x) for x in (model.generator_features, model.discriminator_features)
    ]
    model = replace(model, generator_features=thin[0], discriminator_features=thin[1])
    spec = {"image": jax.ShapeDtypeStruct((32, 32, 3), np.uint8), "label": LabelSpec(10)}
    bound = model.make(spec)
    images = jax.random.randint(key, (2, 8, 32, 32, 3), 0, 256).astype(jnp.uint8)
    data = {"image": images, "label": jnp.resize(LABEL, (2, 8))}

    @jax.jit
    def train(key):
        step = lambda state, batch: bound.step(state, batch, key)  # noqa: E731
        return jax.lax.scan(step, bound.init(key), data)

    state, metrics = train(key)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves((state, metrics)))
    rows = jax.eval_shape(
        bound.sample, bound.weights(state), key, {"index": jnp.arange(3), "label": jnp.arange(3)}
    )
    assert (rows["image"].shape, rows["image"].dtype) == ((3, 32, 32, 3), np.uint8)


def load_experiment(name):
    path = Path(__file__).parents[2] / "experiments" / f"{name}.py"
    spec = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


NO_LABELS = {"image": SPEC["image"]}
BARE_LABELS = {"image": SPEC["image"], "label": jax.ShapeDtypeStruct((), np.int32)}


@pytest.mark.parametrize(
    "changes, spec, message",
    [
        ({"conditional": True}, NO_LABELS, "no class labels: use --model.no-conditional"),
        ({"conditional": True}, BARE_LABELS, "no class labels: use --model.no-conditional"),
        (
            {"generator_features": (8, 8, 8)},
            SPEC,
            "model.generator-features has 3 levels, and 8x12 images cannot be halved as often: "
            "give it at most 2 widths, or --data.image-size 16.",
        ),
        (
            {"discriminator_features": (4,)},
            {"image": jax.ShapeDtypeStruct((8, 9, 1), np.uint8)},
            "model.generator-features has 2 levels, and 8x9 images cannot be halved as often: "
            "give it --data.image-size 8.",
        ),
        ({"discriminator_features": ()}, SPEC, "model.discriminator-features is ()"),
        ({"loss": WassersteinGP()}, SPEC, "use --model.norm layer"),
        ({"loss": Hinge(critic_steps=0)}, SPEC, "model.loss.critic-steps is 0"),
        (
            {"loss": WassersteinGP(penalty_weight=-1.0), "norm": "layer"},
            SPEC,
            "model.loss.penalty-weight is -1.0",
        ),
        ({"latent_dim": 0}, SPEC, "model.latent-dim is 0"),
        ({"temperature": -1.0}, SPEC, "model.temperature is -1.0"),
        ({"augment": DiffAugment(cutout=2.0)}, SPEC, "model.augment.cutout is 2.0"),
    ],
)
def test_bad_configs_are_refused(changes, spec, message):
    with pytest.raises(UserError, match=re.escape(message)):
        replace(CONFIG, **changes).make(spec)


def test_an_unknown_norm_is_refused():
    config = replace(CONFIG)
    object.__setattr__(config, "norm", "group")  # as a config.json written by hand can hold
    with pytest.raises(UserError, match=r"model\.norm is 'group'; .* batch, spectral, layer, none"):
        config.make(SPEC)


def test_without_labels_it_is_unconditional(key):
    model = CONFIG.make(NO_LABELS)
    assert "label" not in model.cond
    data = {"image": batch()["image"]}
    jax.eval_shape(model.step, jax.eval_shape(model.init, key), data, key)


def test_a_batch_that_does_not_divide_into_its_parts_is_refused(key):
    model = replace(CONFIG, loss=WassersteinGP(), norm="none").make(SPEC)
    state = jax.eval_shape(model.init, key)
    with pytest.raises(UserError, match=r"train\.batch-size 6 .*critic-steps 5 parts: use 5 or 10"):
        jax.eval_shape(model.step, state, batch(), key)
