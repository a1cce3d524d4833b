"""A language model trained by genaug and by PyTorch: do both end with the same bits per byte?

    pip install -e ".[twin]" && python -m benchmarks.lm_twin

nanoGPT's recipe for a laptop (4 layers, 4 heads, 128 features, rows of 64, batches of 12, 2,000
updates, no dropout) on the bytes of Python's documentation, written once more in plain PyTorch. The
twin gets genaug's initial weights and must say the same log-likelihoods; then both train from
those, on the same batches. A seed is an initialisation and an order of the data. Bits per byte are
those of the held-out tails of all topics. `--write` puts the table into LM_TWIN.md.
"""

from __future__ import annotations

import argparse
import math
import os
import platform
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from genaug import parallel
from genaug.data import TextData, batches, pipeline
from genaug.devices import Mesh, make_mesh, use_cpu_cores_as_devices
from genaug.evaluation.intervals import paired_t
from genaug.export import named
from genaug.models.transformer_lm import TransformerLM, counted
from genaug.sampling import make_scorer
from genaug.state import Adam
from genaug.train import Train, fit
from genaug.types import TokenSpec

RESULTS = Path(__file__).with_name("LM_TWIN.md")
BATCH, CONTEXT = 12, 64


def recipe(num_steps: int) -> TransformerLM:
    """nanoGPT's model and optimiser (config/train_shakespeare_char.py and its README's laptop)."""
    return TransformerLM(
        num_layers=4,
        num_heads=4,
        embed_dim=128,
        positions="learned",
        activation="gelu",
        norm="layer",
        optimizer=Adam(
            learning_rate=1e-3,
            b2=0.99,
            weight_decay=0.1,
            clip_norm=1.0,
            warmup_steps=100,
            decay_steps=num_steps,
        ),
        ema_decay=0.0,  # the last weights, as nanoGPT
    )


class Norm(nn.Module):
    """Layer norm without a bias."""

    def __init__(self, dim: int):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(dim))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Normalise the last axis."""
        return F.layer_norm(x, self.weight.shape, self.weight, None, 1e-5)


class Block(nn.Module):
    """Attention, then a perceptron, each of the normalised and added to what came in."""

    def __init__(self, config: TransformerLM):
        super().__init__()
        dim = config.embed_dim
        self.num_heads = config.num_heads
        self.attention_norm, self.mlp_norm = Norm(dim), Norm(dim)
        self.qkv, self.out = nn.Linear(dim, 3 * dim, bias=False), nn.Linear(dim, dim, bias=False)
        self.mlp_in = nn.Linear(dim, 4 * dim, bias=False)
        self.mlp_out = nn.Linear(4 * dim, dim, bias=False)

    def forward(self, x: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
        """One layer; `mask` [n, 1, t, t] says what each position attends to; None: all before."""
        n, count, dim = x.shape
        q, k, v = (
            part.view(n, count, self.num_heads, -1).transpose(1, 2)
            for part in self.qkv(self.attention_norm(x)).split(dim, dim=2)
        )
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=mask is None)
        x = x + self.out(y.transpose(1, 2).reshape(n, count, dim))
        return x + self.mlp_out(F.gelu(self.mlp_in(self.mlp_norm(x)), approximate="tanh"))


class GPT(nn.Module):
    """The twin. Output weights are the embedding's."""

    def __init__(self, config: TransformerLM, vocab_size: int, context: int = CONTEXT):
        super().__init__()
        self.tokens = nn.Embedding(vocab_size, config.embed_dim)
        self.positions = nn.Embedding(context, config.embed_dim)
        self.num_heads = config.num_heads
        self.layers = nn.ModuleList(Block(config) for _ in range(config.num_layers))
        self.norm = Norm(config.embed_dim)

    def logits(self, tokens: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
        """Of the token after each of [n, t]."""
        x = self.tokens(tokens) + self.positions.weight[: tokens.shape[1]]
        for layer in self.layers:
            x = layer(x, mask)
        return self.norm(x) @ self.tokens.weight.T

    def nll(self, rows: dict[str, np.ndarray]) -> tuple[torch.Tensor, torch.Tensor]:
        """Summed -log p in nats of the targets that count, and how many do."""
        tokens = torch.from_numpy(rows["tokens"]).long()
        document = torch.from_numpy(np.abs(rows["segments"]))[:, :-1]
        segments: Any = rows["segments"]  # of the host, which JAX takes for its own
        counts = torch.from_numpy(np.array(counted(segments)))
        same = document[:, :, None] == document[:, None, :]
        mask = (same & torch.ones(same.shape[1:], dtype=torch.bool).tril())[:, None]
        logits = self.logits(tokens[:, :-1], mask)
        values = F.cross_entropy(logits.transpose(1, 2), tokens[:, 1:], reduction="none")
        return (values * counts).sum(), counts.sum()


def copied(twin: GPT, params: Any) -> None:
    """Give the twin genaug's parameters, whose qkv has each head's three together."""
    found = {name: np.array(leaf) for name, leaf in named(params).items()}
    state = {}
    for name, leaf in found.items():
        if name.endswith("qkv.kernel"):
            by_head = leaf.reshape(len(leaf), twin.num_heads, 3, -1)
            leaf = by_head.swapaxes(1, 2).reshape(leaf.shape)
        path = name.replace("layer_", "layers.").removesuffix(".embedding")
        path = path.removesuffix(".kernel").removesuffix(".scale")
        state[f"{path}.weight"] = torch.from_numpy(leaf.T if name.endswith("kernel") else leaf)
    twin.load_state_dict(state)


def train_twin(config: TransformerLM, twin: GPT, stream: Any, num_steps: int) -> None:
    """AdamW with nanoGPT's groups, warm-up and cosine, on the same batches as genaug's."""
    adam = config.optimizer
    assert isinstance(adam, Adam)
    assert adam.clip_norm is not None
    matrices = [p for p in twin.parameters() if p.ndim == 2]
    rest = [p for p in twin.parameters() if p.ndim < 2]
    optimizer = torch.optim.AdamW(
        [{"params": matrices, "weight_decay": adam.weight_decay},
         {"params": rest, "weight_decay": 0.0}],
        lr=adam.learning_rate, betas=(adam.b1, adam.b2),
    )  # fmt: skip
    for step, batch in enumerate(batches(stream, 0, num_steps)):
        warm, share = (
            step / adam.warmup_steps,
            (step - adam.warmup_steps) / (num_steps - adam.warmup_steps),
        )
        rate = warm if warm < 1 else 0.5 * (1 + math.cos(math.pi * share))
        for group in optimizer.param_groups:
            group["lr"] = adam.learning_rate * rate
        total, count = twin.nll(batch)
        optimizer.zero_grad(set_to_none=True)
        (total / count).backward()
        nn.utils.clip_grad_norm_(twin.parameters(), adam.clip_norm)
        optimizer.step()


def bits(nats: float, held: dict[str, np.ndarray]) -> float:
    """Per byte of the held-out text."""
    return nats / math.log(2) / int(held["num_bytes"].sum())


@torch.no_grad()
def twin_bits(twin: GPT, held: dict[str, np.ndarray], block: int = 256) -> float:
    """Bits per byte of the held-out rows."""
    starts = range(0, len(held["tokens"]), block)
    parts = [{name: rows[i : i + block] for name, rows in held.items()} for i in starts]
    return bits(sum(float(twin.nll(part)[0]) for part in parts), held)


def one_seed(seed: int, num_steps: int) -> tuple[float, float, float, float]:
    """Held-out bits per byte of genaug and of the twin, and the seconds that each trained."""
    config = recipe(num_steps)
    dataset, splits = TextData(source="pydoc_topics", holdout="tail", context=CONTEXT).read()
    held = dataset.arrays(splits.valid)
    model, mesh = config.make(dataset.spec), make_mesh(Mesh())
    stream = pipeline(dataset, splits.train, batch_size=BATCH, seed=seed)
    tokens = dataset.spec["tokens"]
    assert isinstance(tokens, TokenSpec)
    twin = GPT(config, tokens.vocab_size)

    def genaug_bits(state: Any) -> float:
        score = make_scorer(model, mesh, block_size=256)
        return bits(float(score(model.weights(state), jax.random.key(0), held)["nll"].sum()), held)

    start = parallel.compile_init(model.init, mesh)(jax.random.key(seed))
    copied(twin, start.variables["params"])
    np.testing.assert_allclose(twin_bits(twin, held), genaug_bits(start), rtol=1e-5)

    began = time.perf_counter()
    train = Train(num_steps=num_steps, batch_size=BATCH, steps_per_call=50)
    key = jax.random.key(seed)
    state = fit(
        model, lambda a, b: batches(stream, a, b), train, key=key, mesh=mesh, start=lambda _: start
    )
    jax.block_until_ready(state)
    between = time.perf_counter()
    train_twin(config, twin, stream, num_steps)
    ended = time.perf_counter()
    return genaug_bits(state), twin_bits(twin, held), between - began, ended - between


def main() -> None:
    """Train, print, and write on request."""
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    arguments.add_argument("--seeds", type=int, default=3)
    arguments.add_argument("--num-steps", type=int, default=2000)
    arguments.add_argument("--write", action="store_true", help="write LM_TWIN.md")
    options = arguments.parse_args()
    use_cpu_cores_as_devices()
    found = []
    for seed in range(options.seeds):
        found.append(one_seed(seed, options.num_steps))
        print(f"seed {seed}: genaug {found[-1][0]:.4f}, PyTorch {found[-1][1]:.4f} bits per byte, "
              f"{found[-1][2]:.0f} and {found[-1][3]:.0f} s", flush=True)  # fmt: skip
    ours, theirs, own_time, their_time = np.array(found).T
    gap = paired_t(ours - theirs, 0.95)
    ratio = their_time / own_time
    lines = [
        "# A language model in genaug and in PyTorch",
        "",
        f"`python -m benchmarks.lm_twin`: {options.seeds} seeds, {options.num_steps} updates of "
        f"{BATCH} rows of {CONTEXT}, from equal weights on equal batches; "
        f"{len(os.sched_getaffinity(0))} core(s) "
        f"({platform.machine()}), jax {jax.__version__}, torch {torch.__version__}.",
        "",
        "| | held-out bits per byte (mean ± sd over seeds) |",
        "|---|---|",
        f"| genaug | {ours.mean():.3f} ± {ours.std(ddof=1):.3f} |",
        f"| the PyTorch twin | {theirs.mean():.3f} ± {theirs.std(ddof=1):.3f} |",
        "| difference (95 %, paired t) "
        f"| {gap.estimate:+.3f} ({gap.low:+.3f} to {gap.high:+.3f}) |",
        "",
        f"Time of the twin / ours, with our compilation in it: {np.median(ratio):.2f} "
        f"({ratio.min():.2f} to {ratio.max():.2f}).",
    ]  # fmt: skip
    print("\n".join(lines))
    if options.write:
        RESULTS.write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
