"""A decoder-only transformer language model (Radford et al. 2019).

Objective, minimised: the mean over the targets that count of -log p(token t+1 | its document's
tokens up to t) in nats (Bengio et al. 2003, eq. 4). A document is [start, text..., end]; the start
is the end's id or, where the texts have classes, the class's own (Keskar et al. 2019).

Batch: "tokens" int32 [n, length]; "segments" int32 [n, length]: the document's number in its row,
       from 1; 0 is padding, negative the same document as context only; "num_bytes" int32 [n]: the
       text that a row's targets stand for. The target at t+1 counts where segments[t+1] > 0 and
       segments[t] is of the same document.
Cond:  "index" int32 [n], "label" int32 [n] where the texts have classes; and a value per row of
       "prompt" int32 [n, length] and "prompt_length" int32 [n]: text to go on from, no start token;
       "temperature" (0: the likeliest token), "top_p", "min_p", "repetition_penalty" float32 [n],
       "top_k" int32 [n] (0: off).
"""

from __future__ import annotations

from dataclasses import dataclass, field

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from genaug.nets import transformer
from genaug.nets.decoding import generate
from genaug.state import Adam, Optimizer, Variables, from_loss
from genaug.types import (
    Batch,
    CondField,
    GenerativeModel,
    LabelSpec,
    Metrics,
    Spec,
    TokenSpec,
    UserError,
    Weights,
    row_index,
)


def _optimizer() -> Adam:
    return Adam(learning_rate=1e-3, b2=0.99, weight_decay=0.1, clip_norm=1.0, warmup_steps=100)


@dataclass(frozen=True, kw_only=True)
class TransformerLM:
    """Hyper-parameters of a transformer language model."""

    num_layers: int = 4
    num_heads: int = 4
    num_kv_heads: int | None = None  # heads of keys and values; None: as many as of queries
    embed_dim: int = 128
    mlp_dim: int | None = None  # None: 4 embed_dim for gelu; for swiglu 8/3, rounded up to 8s
    positions: transformer.Positions = "rope"
    rope_base: float = 10_000.0
    activation: transformer.Activation = "swiglu"
    norm: transformer.Norm = "rms"
    norm_epsilon: float = 1e-5
    use_bias: bool = False
    tie_embeddings: bool = True  # the output layer is the embedding, transposed
    dropout: float = 0.0  # of the embeddings and of what each layer adds
    scan_layers: bool = False  # one compiled layer, looped: for accelerators and deep nets
    remat: bool = False  # a layer's activations are computed twice rather than kept
    dtype: transformer.Dtype = "float32"  # of the activations
    optimizer: Optimizer = field(default_factory=_optimizer)
    ema_decay: float = 0.999
    # Where `cond` names none:
    temperature: float = 1.0  # of the next token; 0 takes the likeliest
    top_k: int = 0  # only the k likeliest tokens; 0 is off
    top_p: float = 1.0  # only the likeliest tokens that together have this probability
    min_p: float = 0.0  # only tokens with at least this share of the likeliest's probability
    repetition_penalty: float = 1.0  # above 1 makes the text's own tokens unlikelier

    def make(self, spec: Spec) -> GenerativeModel:
        """The language model of rows shaped as `spec["tokens"]`."""
        tokens = spec.get("tokens")
        if not isinstance(tokens, TokenSpec):
            raise UserError("A language model needs text, and this dataset has none.")
        _check(self)
        net = _net(self, tokens)
        fields = _fields(self, tokens)
        context = tokens.shape[0] - 1

        def init(key: jax.Array) -> Variables:
            row = jnp.zeros((1, context), jnp.int32)
            return {"params": net.init(key, row, row)["params"]}

        def nll(
            variables: Variables, batch: Batch, key: jax.Array | None = None
        ) -> tuple[Float[Array, "n t"], Bool[Array, "n t"], Bool[Array, "n t"]]:
            rngs, index = (None, None) if key is None else ({"dropout": key}, row_index(batch))
            inputs, segments = batch["tokens"][:, :-1], batch["segments"][:, :-1]
            logits, _ = net.apply(variables, inputs, segments, index=index, rngs=rngs)
            return target_nll(logits, batch)

        def loss(
            variables: Variables, batch: Batch, key: jax.Array
        ) -> tuple[Array, tuple[Metrics, Variables]]:
            values, right, counts = nll(variables, batch, key)
            total, count = jnp.sum(values), jnp.maximum(jnp.sum(counts), 1)
            metrics = {
                "loss": total / count,
                "bits_per_byte": bits_per_byte(total, jnp.sum(batch["num_bytes"])),
                "accuracy": jnp.sum(right) / count,
            }
            # Optimised over all positions: the mean of a batch's parts is then that of the batch.
            return total / values.size, (metrics, {})

        def score(weights: Weights, batch: Batch, key: jax.Array) -> Metrics:
            del key
            total = jnp.sum(nll(weights, batch)[0], axis=1)
            return {"bits_per_byte": bits_per_byte(total, batch["num_bytes"]), "nll": total}

        def sample(weights: Weights, key: jax.Array, cond: Batch) -> Batch:
            return generate(net, weights["params"], key, _complete(cond, fields), tokens)

        return from_loss(
            init,
            loss,
            sample,
            self.optimizer,
            score=score,
            ema_decay=self.ema_decay,
            cond=fields,
        )


def gpt2() -> TransformerLM:
    """GPT-2's smallest net, 124 M parameters (Radford et al. 2019, table 2), trained as nanoGPT.

    (Its rate ends at a tenth of the peak, ours at 0.)

    The shapes are GPT-2's over rows of 1024 + 1 tokens of its vocabulary (50,256 text ids).
    """
    return TransformerLM(
        num_layers=12,
        num_heads=12,
        embed_dim=768,
        positions="learned",
        activation="gelu",
        norm="layer",
        use_bias=True,
        optimizer=Adam(
            learning_rate=6e-4,
            b2=0.95,
            weight_decay=0.1,
            clip_norm=1.0,
            warmup_steps=2000,
            decay_steps=600_000,
        ),
    )


def _check(config: TransformerLM) -> None:
    """Refuse hyper-parameters that fit no net or no rule."""
    kv_heads = config.num_heads if config.num_kv_heads is None else config.num_kv_heads
    mlp_dim = 1 if config.mlp_dim is None else config.mlp_dim
    sizes = {
        "num-layers": config.num_layers,
        "num-heads": config.num_heads,
        "num-kv-heads": kv_heads,
        "embed-dim": config.embed_dim,
        "mlp-dim": mlp_dim,
    }
    for name, size in sizes.items():
        if size < 1:
            raise UserError(f"model.{name} is {size}; it must be at least 1.")
    if config.embed_dim % config.num_heads:
        raise UserError(
            f"model.num-heads is {config.num_heads}, which does not divide model.embed-dim "
            f"{config.embed_dim}: change one of them."
        )
    if config.num_heads % kv_heads:
        raise UserError(
            f"model.num-kv-heads is {kv_heads}, which does not divide model.num-heads "
            f"{config.num_heads}: change one of them."
        )
    head_dim = config.embed_dim // config.num_heads
    if config.positions == "rope" and head_dim % 2:
        raise UserError(
            f"model.embed-dim {config.embed_dim} gives each of {config.num_heads} heads {head_dim} "
            "features; rotary positions turn pairs: make it even, or use learned positions."
        )
    ranges = {
        "dropout": (config.dropout, 0.0 <= config.dropout < 1.0, "from 0 to below 1"),
        "temperature": (config.temperature, config.temperature >= 0, "0 or more"),
        "top-k": (config.top_k, config.top_k >= 0, "0 (off) or more"),
        "top-p": (config.top_p, 0.0 < config.top_p <= 1.0, "above 0 and at most 1 (off)"),
        "min-p": (config.min_p, 0.0 <= config.min_p <= 1.0, "from 0 (off) to 1"),
        "repetition-penalty": (
            config.repetition_penalty,
            config.repetition_penalty > 0,
            "above 0 (1 is off)",
        ),
    }
    for name, (value, fits, bounds) in ranges.items():
        if not fits:
            raise UserError(f"model.{name} is {value}; it must be {bounds}.")


def _net(config: TransformerLM, tokens: TokenSpec) -> transformer.Transformer:
    wide = 4 * config.embed_dim if config.activation == "gelu" else -(-config.embed_dim // 3) * 8
    return transformer.Transformer(
        layer=transformer.Layer(
            num_heads=config.num_heads,
            num_kv_heads=config.num_kv_heads or config.num_heads,
            mlp_dim=config.mlp_dim or wide,
            activation=config.activation,
            norm=config.norm,
            epsilon=config.norm_epsilon,
            use_bias=config.use_bias,
            dropout=config.dropout,
            residual_scale=transformer.residual_scale(config.num_layers),
            remat=config.remat,
        ),
        num_layers=config.num_layers,
        vocab_size=tokens.vocab_size,
        context=tokens.shape[0] - 1,
        embed_dim=config.embed_dim,
        positions=config.positions,
        rope_base=config.rope_base,
        tie_embeddings=config.tie_embeddings,
        scan_layers=config.scan_layers,
        dtype=config.dtype,
    )


def _fields(config: TransformerLM, tokens: TokenSpec) -> dict[str, CondField]:
    """What `sample` reads."""
    real, whole = jax.ShapeDtypeStruct((), jnp.float32), jax.ShapeDtypeStruct((), jnp.int32)
    label = {"label": CondField(LabelSpec(tokens.num_classes))} if tokens.num_classes else {}
    return label | {
        "prompt": CondField(tokens, default=0.0),
        "prompt_length": CondField(whole, default=0.0, low=0.0, high=tokens.shape[0] - 2.0),
        "temperature": CondField(real, default=config.temperature, low=0.0),
        "top_k": CondField(whole, default=float(config.top_k), low=0.0),
        "top_p": CondField(real, default=config.top_p, low=0.0, high=1.0),
        "min_p": CondField(real, default=config.min_p, low=0.0, high=1.0),
        "repetition_penalty": CondField(real, default=config.repetition_penalty, low=0.01),
    }


def _complete(cond: Batch, fields: dict[str, CondField]) -> dict[str, Array]:
    """`cond` with the defaults of what it lacks."""
    rows = cond["index"].shape[0]
    defaults = {
        name: jnp.full((rows, *field.spec.shape), field.default, field.spec.dtype)
        for name, field in fields.items()
        if field.default is not None and name not in cond
    }
    return {**defaults, **cond}


def counted(segments: Int[Array, "n t"]) -> Bool[Array, "n s"]:
    """Which of the targets, tokens 1 and after, count: [n, t - 1]."""
    before, after = segments[:, :-1], segments[:, 1:]
    return (after > 0) & (after == jnp.abs(before))


def target_nll(
    logits: Float[Array, "n s v"], batch: Batch
) -> tuple[Float[Array, "n s"], Bool[Array, "n s"], Bool[Array, "n s"]]:
    """Of every target: -log p in nats or 0, whether it is right, and whether it counts at all.

    Right is a target that counts and has the largest logit; 0 stands for one that does not count.
    """
    counts = counted(batch["segments"])
    # All tokens in a row, as the net has them: XLA for TPUs copies logits that are folded by texts.
    flat = logits.reshape(-1, logits.shape[2])
    targets = jnp.expand_dims(batch["tokens"][:, 1:].reshape(-1), 1)
    of_target = jnp.take_along_axis(flat, targets, axis=1)[:, 0]
    values = (jax.nn.logsumexp(flat, axis=1) - of_target).reshape(counts.shape)
    right = (of_target >= jnp.max(flat, axis=1)).reshape(counts.shape)
    return jnp.where(counts, values, 0.0), counts & right, counts


def bits_per_byte(nats: Float[Array, "*n"], num_bytes: Int[Array, "*n"]) -> Float[Array, "*n"]:
    """Bits that a byte of text takes; where there is no text but its end, the bits of that."""
    return nats / jnp.log(2.0) / jnp.maximum(num_bytes, 1)
