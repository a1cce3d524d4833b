"""Training raced against PyTorch and plain Flax.

A call makes `steps` updates. Before anything is timed, genaug and a twin with its weights and its
noise make a call's updates, and the mean losses must agree.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import plain
from benchmarks.race import Arm, Case, Race, left_out
from genaug import flops, hlo, layouts, parallel
from genaug.devices import Mesh, make_mesh
from genaug.models import dcgan
from genaug.models.cvae import CVAE
from genaug.models.dcgan import DCGAN
from genaug.models.ddpm import DDPM, spread
from genaug.models.transformer_lm import TransformerLM
from genaug.models.vae import VAE
from genaug.nets.autoencoder import MLP
from genaug.nets.unet import UNet
from genaug.state import Adam
from genaug.types import (
    Batch,
    GenerativeModel,
    LabelSpec,
    Spec,
    TokenSpec,
    row_index,
    row_keys,
    row_normal,
    row_uniform,
    split_keys,
)

PART = "training"
KEY = 7
IMAGES: Spec = {
    "image": jax.ShapeDtypeStruct((28, 28, 1), np.uint8),
    "label": LabelSpec(10),
}

Noise = Callable[[jax.Array, Batch], tuple[jax.Array, ...]]
"""What a family draws for a batch with this key, as its twin takes it."""


class Twin(NamedTuple):
    """A family in PyTorch. make: `(state, wrap) -> step(batch, *noise) -> loss`."""

    make: Callable[[Any, Callable[[Any], Any]], Callable[..., Any]]
    noise: Noise


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


class Updates:
    """genaug's compiled updates on a stack of batches: `calls` calls of them are one of the race's.

    start: the state before them, on the host.
    first: the mean loss of the first call, which also warms up.
    """

    def __init__(self, model: GenerativeModel, stack: Any, devices: int, calls: int):
        mesh = make_mesh(Mesh(data=devices))
        template = layouts.abstract(model.init, mesh)
        program = parallel.compile_steps(model.step, mesh, template)
        self.stack = layouts.split_rows(stack, mesh, axis=1)
        self.steps = len(next(iter(stack.values())))
        self.key = jax.random.key(KEY)
        self.state = parallel.compile_init(model.init, mesh)(jax.random.key(0))
        self.start = jax.device_get(self.state)
        began = time.perf_counter()
        self.program = program.lower(self.state, self.stack, self.key, jnp.int32(0)).compile()
        self.compile_s = time.perf_counter() - began
        self.bytes = hlo.measure(self.program.as_text()).hbm_bytes * devices / self.steps
        self.devices, self.calls, self.done = devices, calls, 0
        self.first = self._once()

    def _once(self) -> Any:
        self.state, metrics = self.program(self.state, self.stack, self.key, jnp.int32(self.done))
        self.done += self.steps
        return metrics["loss"]

    def __call__(self) -> object:
        """Go on training."""
        for _ in range(self.calls):
            loss = self._once()
        return jax.block_until_ready(loss)


def fastest(model: GenerativeModel, stack: Any, calls: int) -> Updates:
    """On one device or one per core (`--mesh.data`), whichever is faster: PyTorch chooses too."""
    found = [Updates(model, stack, n, calls) for n in sorted({1, jax.device_count()})]
    seconds: list[list[float]] = [[] for _ in found]
    for _ in range(4):
        for one, times in zip(found, seconds, strict=True):
            began = time.perf_counter()
            one()
            times.append(time.perf_counter() - began)
    return found[int(np.argmin([min(times) for times in seconds]))]


def race(
    model: GenerativeModel,
    stack: dict[str, np.ndarray],
    twin: Twin,
    *,
    calls: int = 1,
    compiled: bool = True,
    against_flax: bool = False,
    scanned: bool = False,
) -> Race:
    """genaug's updates against its twin's, eager and compiled, and those of plain Flax.

    compiled: whether PyTorch's compiler is waited for.
    """
    ours = fastest(model, stack, calls)
    first = {name: value[0] for name, value in stack.items()}
    state = jax.eval_shape(model.init, jax.random.key(0))
    traced = jax.make_jaxpr(model.step)(state, first, jax.random.key(0))
    arms = [
        Arm("PyTorch, eager", partial(_torch, stack, twin, ours, False), torch=True),
        Arm(
            "PyTorch, compiled",
            partial(_torch, stack, twin, ours, True) if compiled else left_out,
            torch=True,
        ),
    ]
    if against_flax:
        arms.append(Arm("plain Flax, a step a call", partial(_flax, model, stack, ours)))
    if scanned:
        arms.append(Arm("plain Flax in a scan", partial(_flax, model, stack, ours, scan=True)))
    steps = ours.steps * calls
    rows = len(next(iter(first.values())))
    per_row = first["tokens"].shape[1] - 1 if "tokens" in first else 1
    return Race(
        work=float(steps * rows * per_row),
        ours=ours,
        arms=arms,
        steps=steps,
        flops=flops.of(traced.jaxpr, platform=jax.default_backend()).total,
        bytes=ours.bytes,
        remark=f"genaug on {ours.devices} device(s), compiled in {ours.compile_s:.1f} s",
    )


def _torch(
    stack: Any, twin: Twin, ours: Updates, compiled: bool
) -> tuple[Callable[[], object], float]:
    import torch

    torch._dynamo.reset()
    wrap = torch.compile if compiled else lambda function: function
    step = twin.make(ours.start, wrap)
    batches = [
        {name: torch.from_numpy(np.array(value[i])) for name, value in stack.items()}
        for i in range(ours.steps)
    ]
    noise = jax.jit(twin.noise)
    losses = []
    for i, batch in enumerate(batches):
        rows = {name: value[i] for name, value in stack.items()}
        rows["index"] = np.arange(len(next(iter(rows.values()))), dtype=np.int32)
        drawn = noise(jax.random.fold_in(jax.random.key(KEY), i), rows)
        given = [torch.from_numpy(np.array(one)) for one in drawn]
        losses.append(float(step(batch, *given)))
    want = float(ours.first)

    def call() -> object:
        for _ in range(ours.calls):
            for batch in batches:
                loss = step(batch)
        return float(loss)

    return call, abs(float(np.mean(losses)) - want) / abs(want)


def _flax(
    model: GenerativeModel, stack: Any, ours: Updates, scan: bool = False
) -> tuple[Callable[[], object], float]:
    """The same updates of the same model in plain layers: one by one, or in one scan."""
    state = jax.tree.map(jnp.asarray, ours.start)
    key = jax.random.key(KEY)

    def one(state: Any, number_and_batch: Any) -> tuple[Any, jax.Array]:
        number, batch = number_and_batch
        rows = len(jax.tree.leaves(batch)[0])
        batch = {**batch, "index": jnp.arange(rows)}
        state, metrics = model.step(state, batch, jax.random.fold_in(key, number))
        return state, metrics["loss"]

    def many(state: Any, first: Any, stack: Any) -> tuple[Any, jax.Array]:
        return jax.lax.scan(one, state, (first + jnp.arange(ours.steps), stack))

    batches = [{n: jnp.asarray(v[i]) for n, v in stack.items()} for i in range(ours.steps)]
    number = jnp.int32(0)
    with plain.layers():
        if scan:
            step = jax.jit(many, donate_argnums=0).lower(state, number, stack).compile()
        else:
            made = jax.jit(one, donate_argnums=0).lower(state, (number, batches[0]))
            step = made.compile()
    holder, done = [state], [0]

    def once() -> list[jax.Array]:
        begin = done[0]
        done[0] += ours.steps
        if scan:
            holder[0], losses = step(holder[0], jnp.int32(begin), stack)
            return [losses.mean()]
        losses = []
        for i, batch in enumerate(batches):
            holder[0], loss = step(holder[0], (jnp.int32(begin + i), batch))
            losses.append(loss)
        return losses

    found = float(np.mean(jax.device_get(once())))

    def call() -> object:
        for _ in range(ours.calls):
            losses = once()
        return jax.block_until_ready(losses[-1])

    return call, abs(found - float(ours.first)) / abs(float(ours.first))


def _autoencoder(config: VAE | CVAE, steps: int, rows: int, calls: int) -> Race:
    labelled = isinstance(config, CVAE)

    def make(state: Any, wrap: Callable[[Any], Any]) -> Callable[..., Any]:
        from benchmarks import twins

        net = twins.Autoencoder(state.variables["params"], 10 if labelled else 0)
        adam = config.optimizer
        assert isinstance(adam, Adam)
        return twins.Trainer(wrap(net.loss), net.parameters(), adam, config.ema_decay).step

    def noise(key: jax.Array, batch: Batch) -> tuple[jax.Array, ...]:
        keys, _ = split_keys(row_keys(key, batch), 2)
        return (row_normal(keys, (config.latent_dim,)),)

    return race(config.make(IMAGES), images(steps, rows), Twin(make, noise), calls=calls)


GAN = DCGAN(latent_dim=64, generator_features=(128, 64), discriminator_features=(64, 128))


def _dcgan(rows: int) -> Race:
    config = GAN

    def make(state: Any, wrap: Callable[[Any], Any]) -> Callable[..., Any]:
        from benchmarks import twins

        return twins.GAN(state, config, IMAGES["image"].shape, wrap).step

    def noise(key: jax.Array, batch: Batch) -> tuple[jax.Array, ...]:
        keys_d, keys_g, keys_ema = split_keys(row_keys(key, batch), 3)
        of = (split_keys(keys_d, 4)[0], split_keys(keys_g, 2)[0], keys_ema)
        return tuple(dcgan.latents(keys, config.latent_dim) for keys in of)

    twin = Twin(make, noise)
    return race(config.make(IMAGES), images(4, rows), twin, against_flax=True)


UNET = UNet(features=(32, 64, 64), num_blocks=1, attention=(7,))


def _ddpm(rows: int, quick: bool) -> Race:
    config = DDPM(net=UNET)

    def make(state: Any, wrap: Callable[[Any], Any]) -> Callable[..., Any]:
        from benchmarks import twins

        net = twins.UNetTwin(state.variables["params"], UNET)
        whole = twins.Diffusion(net, 10, config.label_dropout)
        adam = config.optimizer
        assert isinstance(adam, Adam)
        return twins.Trainer(wrap(whole.loss), net.parameters(), adam, config.ema_decay).step

    def noise(key: jax.Array, batch: Batch) -> tuple[jax.Array, ...]:
        key_time, key_rows, _ = jax.random.split(key, 3)
        _, keys_eps, keys_label = split_keys(row_keys(key_rows, batch), 3)
        hide = row_uniform(keys_label) < config.label_dropout
        t = spread(key_time, row_index(batch))
        return t, row_normal(keys_eps, (28, 28, 1)), jnp.where(hide, 10, batch["label"])

    twin = Twin(make, noise)
    stack = images(2, rows)
    return race(config.make(IMAGES), stack, twin, compiled=not quick, against_flax=True,
                scanned=not quick and rows == 16)  # fmt: skip


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


def _lm(dim: int, context: int, rows: int, steps: int, compiled: bool) -> Race:
    config, spec = lm_config(dim), text_spec(context + 1)

    def make(state: Any, wrap: Callable[[Any], Any]) -> Callable[..., Any]:
        import torch.nn.functional as F

        from benchmarks import lm_twin, twins

        tokens = spec["tokens"]
        assert isinstance(tokens, TokenSpec)
        net = lm_twin.GPT(config, tokens.vocab_size, context)
        lm_twin.copied(net, state.variables["params"])

        def loss(batch: Mapping[str, Any]) -> Any:
            tokens = batch["tokens"].long()
            logits = net.logits(tokens[:, :-1])
            return F.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten())

        adam = config.optimizer
        assert isinstance(adam, Adam)
        return twins.Trainer(wrap(loss), net.parameters(), adam, 0.0).step

    twin = Twin(make, lambda key, batch: ())
    stack = texts(steps, rows, context + 1)
    return race(config.make(spec), stack, twin, compiled=compiled, against_flax=True)


def profile_text(name: str) -> str:
    """Where the time of an update of a case goes."""
    from genaug.profiling import kinds_table, profile

    small = VAE(net=MLP(hidden=(64,)))
    configs: dict[str, tuple[Any, Spec]] = {
        "vae": (small, IMAGES),
        "cvae": (CVAE(), IMAGES),
        "dcgan": (GAN, IMAGES),
        "unet": (DDPM(net=UNET), IMAGES),
    }
    family, size = name.rsplit("-", 1)
    if family == "lm":
        spec, rows = (text_spec(65), 12) if size == "128" else (text_spec(129), 16)
        config: Any = lm_config(int(size))
    else:
        (config, spec), rows = configs[family], 32 if size == "small" else int(size)
    model = config.make(spec)
    found = profile(model, spec, make_mesh(Mesh(data=1)), rows)
    return kinds_table(found.bytes, found.seconds, "an update")


def cases(quick: bool) -> list[Case]:
    """Every race of training, in the order of the table."""
    small = VAE(net=MLP(hidden=(64,)))
    flax = "plain Flax"

    def case(name: str, title: str, unit: str, must: dict[str, float], make: Any) -> Case:
        return Case(name, PART, title, unit, must, make)

    found = [
        case("vae-small", "VAE, 64 hidden units, batch 32, 20 steps a call", "examples",
             {"PyTorch": 2.0}, lambda: _autoencoder(small, 20, 32, 5)),
        case("cvae-128", "CVAE, 400-200 hidden units, batch 128, 20 steps a call", "examples",
             {"PyTorch": 1.0}, lambda: _autoencoder(CVAE(), 20, 128, 1)),
        case("dcgan-64", "DCGAN 28x28, both updates, batch 64", "examples",
             {"PyTorch": 1.0, flax: 4.0}, lambda: _dcgan(64)),
        case("unet-16", "DDPM U-Net 28x28, batch 16", "examples",
             {"PyTorch": 0.8, flax: 1.7, f"{flax} in a scan": 30.0},
             lambda: _ddpm(16, quick)),
        case("lm-128", "LM 4 layers of 128, 12 rows of 64", "tokens",
             {"PyTorch": 0.9, flax: 1.5}, lambda: _lm(128, 64, 12, 10, True)),
        case("lm-256", "LM 4 layers of 256, 16 rows of 128", "tokens",
             {"PyTorch": 0.9, flax: 1.5}, lambda: _lm(256, 128, 16, 2, not quick)),
    ]  # fmt: skip
    if not quick:
        found += [
            case("dcgan-32", "DCGAN 28x28, both updates, batch 32", "examples",
                 {"PyTorch": 1.0, flax: 4.0}, lambda: _dcgan(32)),
            case("unet-64", "DDPM U-Net 28x28, batch 64", "examples",
                 {"PyTorch": 0.8, flax: 1.7}, lambda: _ddpm(64, False)),
        ]  # fmt: skip
    return found
