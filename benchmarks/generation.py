"""Generators raced against PyTorch, libraries and plain Flax, and their own throughput.

Samplers of the U-Net are those of `denoising`. Text is the likeliest token after each, so that
what is written can be compared.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import denoising
from benchmarks.race import Arm, Case, Made, Race, left_out, quickest
from benchmarks.subjects import (
    IMAGES,
    UNET,
    Drawing,
    images,
    lm_config,
    sample_flops,
    text_spec,
    weights_of,
)
from genaug import bench, flops
from genaug.devices import Mesh, make_mesh
from genaug.evaluation import classifier
from genaug.models.cvae import CVAE
from genaug.models.dcgan import DCGAN
from genaug.models.ddpm import DDPM
from genaug.models.vae import VAE
from genaug.profiling import by_kind, kinds_table
from genaug.transforms import images as transforms
from genaug.types import GenerativeModel, TokenSpec

PART = "generation"
STUDY = "study"
LENGTH = 65  # a start token and 64 that are written


def _compiled(make: Any, compiled: bool) -> Arm:
    return Arm("PyTorch, compiled", make if compiled else left_out, torch=True)


def text_model(dim: int = 128) -> tuple[GenerativeModel, Any]:
    """A language model that never ends a text: what every row costs is then the same."""
    spec = text_spec(LENGTH)
    model = lm_config(dim).make(spec)
    weights = jax.jit(lambda key: model.weights(model.init(key)))(jax.random.key(0))
    tokens = spec["tokens"]
    assert isinstance(tokens, TokenSpec)
    table = weights["params"]["tokens"]["embedding"]
    table = table.at[tokens.end].multiply(1e-3)
    return model, {"params": {**weights["params"], "tokens": {"embedding": table}}}


def _decoding(rows: int, compiled: bool) -> Race:
    model, weights = text_model()
    spec = text_spec(LENGTH)["tokens"]
    assert isinstance(spec, TokenSpec)
    cond = {
        "index": np.arange(rows, dtype=np.int32),
        "temperature": np.zeros(rows, np.float32),
    }
    # On one device or one per core, as training: whichever is faster.
    counts = [n for n in sorted({1, jax.device_count()}) if rows % n == 0]
    tried = [Drawing(model, weights, cond, n) for n in counts]
    found, *_ = (jax.device_get(one()) for one in tried)
    ours = tried[quickest(tried)]
    assert (found["segments"] > 0).all(), "a row has ended"
    want, start = found["tokens"], np.full(rows, spec.end, np.int64)
    params = jax.device_get(weights["params"])

    def checked(call: Callable[[np.ndarray], np.ndarray]) -> Made:
        return Made(lambda: call(start), float(np.mean(call(start) != want)))

    def net() -> Any:
        from benchmarks import lm_twin

        twin = lm_twin.GPT(lm_config(128), spec.vocab_size, LENGTH - 1)
        lm_twin.copied(twin, params)
        return twin.eval()

    def torch_arm(static: bool) -> Made:
        import torch

        from benchmarks.decoding_twin import Decoder

        torch._dynamo.reset()
        return checked(Decoder(net(), rows, LENGTH, static))

    def flax_arm(scanned: bool) -> Made:
        from benchmarks import plain

        call = plain.decoder(params, 4, rows, LENGTH, scanned)
        return checked(lambda start: np.asarray(call(start)))

    def hf_arm() -> Made:
        from benchmarks.decoding_twin import hugging_face

        return checked(hugging_face(net(), LENGTH))

    return Race(
        work=float(rows * (LENGTH - 1)),
        ours=ours,
        arms=[
            Arm("PyTorch, eager", partial(torch_arm, False), torch=True),
            _compiled(partial(torch_arm, True), compiled),
            Arm("transformers, generate", hf_arm, torch=True),
            Arm("plain Flax, in a scan", partial(flax_arm, False)),
            Arm("plain Flax, layers in a scan too", partial(flax_arm, True)),
        ],
        profile=partial(ours.profile, LENGTH - 1),
        flops=sample_flops(model, weights, cond, LENGTH - 1),
        remark=f"genaug on {ours.devices} device(s)",
    )


def _condition(data: dict[str, np.ndarray], num_steps: int) -> classifier.Condition:
    """Every image as likely as another, none warped."""
    pool, labels = data["image"][0], data["label"][0]
    rows = len(labels)
    return classifier.Condition(
        pool, labels, np.linspace(1 / rows, 1, rows, dtype=np.float32), np.ones(10, np.float32),
        np.int32(num_steps), transforms.Strength().as_arrays(),
    )  # fmt: skip


def _study(num_steps: int, compiled: bool, seeds: int = 10) -> Race:
    """Seeds of the downstream classifier: one program, or one run after another."""
    config = classifier.Classifier(num_steps=num_steps)
    mesh = make_mesh(Mesh())
    condition = _condition(images(1, 1000), num_steps)
    pool, labels = condition.images, condition.labels
    keys = jax.vmap(jax.random.key)(jnp.arange(seeds))
    program: Any = classifier.trainer(config, 10, 0.1, mesh)
    arguments = (condition, pool[:64]), keys
    ours = lambda: jax.block_until_ready(program(*arguments))  # noqa: E731
    net = classifier.net_of(config, 10)
    params = jax.jit(net.init)(jax.random.key(0), classifier.to_net(pool[:1]))["params"]
    want = np.asarray(jax.jit(net.apply)({"params": params}, classifier.to_net(pool[:64]))[0])

    def torch_arm(compiled: bool) -> Made:
        import torch

        from benchmarks import twins

        torch._dynamo.reset()
        host = jax.device_get(params)
        wrap = torch.compile if compiled else lambda function: function
        images, classes = torch.from_numpy(pool), torch.from_numpy(labels).long()
        one = twins.Classifier(host, len(config.features))
        with torch.no_grad():
            got = one(images[:64]).numpy()
        difference = float(np.abs(got - want).max() / np.abs(want).max())
        loss = wrap(partial(twins.classifier_loss, one))
        state = {name: value.clone() for name, value in one.state_dict().items()}

        def call() -> object:
            for _ in range(seeds):
                one.load_state_dict(state)
                twins.train_classifier(one, loss, images, classes, config)
            with torch.no_grad():
                return one(images[:64]).numpy()

        return Made(call, difference)

    def step(x: jax.Array, classes: jax.Array) -> Any:
        def loss(params: Any) -> jax.Array:
            logits, _ = net.apply({"params": params}, classifier.to_net(x))
            return -jnp.mean(jax.nn.log_softmax(logits)[jnp.arange(len(x)), classes])

        return jax.grad(loss)(params)

    def profile() -> str:
        compiled = program.lower(*arguments).compile()
        found = by_kind(compiled, ours, seeds // mesh.size, mesh.size, num_steps)
        return kinds_table(*found, f"a run of {num_steps} updates")

    batch = pool[: config.batch_size], labels[: config.batch_size]
    traced = jax.make_jaxpr(step)(*batch)
    return Race(
        work=float(seeds * num_steps * config.batch_size),
        ours=ours,
        arms=[
            Arm("PyTorch, eager", partial(torch_arm, False), torch=True),
            _compiled(partial(torch_arm, True), compiled),
        ],
        profile=profile,
        steps=seeds * num_steps,
        flops=flops.of(traced.jaxpr, platform=jax.default_backend()).total,
        remark="logits of equal weights agree; both train from there on their own draws",
    )


def cases(quick: bool) -> list[Case]:
    """Every race of generators and of the study, in the order of the table."""
    peers = {"PyTorch": 0.8, "transformers": 2.0, "plain Flax": 4.0}
    steps = f"{denoising.NUM_STEPS} steps of the U-Net, 16 images"
    found = [
        Case("ddim-16", PART, f"DDIM, {steps}", "samples",
             {"PyTorch": 1.0, "diffusers": 1.0, "denoising-diffusion-pytorch": 1.0},
             lambda: denoising.ddim(16, quick)),
        *(
            Case(f"decode-{rows}", PART, f"LM decoding, 64 tokens, batch {rows}", "tokens", peers,
                 partial(_decoding, rows, not quick or rows == 16))
            for rows in (1, 16, 64)
        ),
        Case("study-10", STUDY, "downstream study: 10 seeds of the classifier, "
             f"{25 if quick else 400} updates", "examples", {"PyTorch": 3.0},
             lambda: _study(25 if quick else 400, not quick)),
    ]  # fmt: skip
    if not quick:
        found.insert(1, Case("dpm-16", PART, f"DPM-Solver++(2M), {steps}", "samples",
                             {"diffusers": 1.0}, lambda: denoising.dpm_solver(16)))  # fmt: skip
    return found


def throughput(quick: bool) -> Iterator[dict[str, Any]]:
    """Every family's generator by batch size, as `genaug bench` times it."""
    families: list[tuple[str, Any, Any, Any]] = []
    for name, config in (
        ("VAE, 400-200 hidden units", VAE()),
        ("CVAE, 400-200 hidden units", CVAE()),
        ("DCGAN 28x28", DCGAN(latent_dim=64, generator_features=(128, 64))),
        (
            f"DDPM U-Net 28x28, DDIM {denoising.NUM_STEPS} steps",
            DDPM(net=UNET, num_steps=denoising.NUM_STEPS),
        ),
    ):
        model = config.make(IMAGES)
        families.append((name, model, weights_of(model), IMAGES))
    families.append(("LM 4 layers of 128, 64 tokens a text", *text_model(), text_spec(LENGTH)))
    sizes = (1, 64) if quick else (1, 16, 64, 256)
    for name, model, weights, spec in families:
        subject = bench.of_model(name, model, weights, spec, time.perf_counter())
        for timing in bench.timings(subject, sizes, 5):
            yield {
                "title": name,
                "unit": subject.unit,
                "batch": timing.batch,
                "devices": timing.devices,
                "first_s": timing.first_s,
                "seconds": list(timing.seconds),
                "units": timing.units,
                "peak_bytes": timing.peak_bytes,
            }
