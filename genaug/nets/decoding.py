"""Text from a transformer: the choice of a token from its logits, and the loop that writes rows."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int, Int32

from genaug.nets import transformer
from genaug.types import Batch, TokenSpec

Logits = Float[Array, "n v"]


class Rules(NamedTuple):
    """How each row chooses.

    temperature:        divides the logits; 0 takes the likeliest token.
    top_k:              only the k likeliest; 0 is off.
    top_p:              only the fewest likeliest that together have probability p; 1 is off.
    min_p:              only those with at least this share of the likeliest's probability.
    repetition_penalty: above 1 makes tokens that were seen unlikelier; 1 is off.
    """

    temperature: Float[Array, " n"]
    top_k: Int[Array, " n"]
    top_p: Float[Array, " n"]
    min_p: Float[Array, " n"]
    repetition_penalty: Float[Array, " n"]


def penalised(logits: Logits, seen: Bool[Array, "n v"], penalty: Float[Array, " n"]) -> Logits:
    """Positive logits of tokens seen divided by the penalty, negative ones multiplied by it.

    (Keskar et al. 2019, section 4.1; the sign as in Hugging Face's transformers.)
    """
    penalty = jnp.expand_dims(penalty, 1)
    return jnp.where(seen, jnp.where(logits < 0, logits * penalty, logits / penalty), logits)


def filtered(logits: Logits, rules: Rules) -> Logits:
    """The logits with -inf for what top-k, then top-p, then min-p leave out.

    Top-k (Fan et al. 2018), nucleus (Holtzman et al. 2020, eq. 2-3) and min-p (Nguyen et al. 2024,
    section 3), in the order of Hugging Face's transformers. Tokens as likely as the last one kept
    are kept too; the likeliest always is.
    """

    def by_rank(logits: Logits) -> Logits:
        descending = -jnp.sort(-logits, axis=1)
        last = jnp.where(rules.top_k > 0, rules.top_k, logits.shape[1]) - 1
        last = jnp.expand_dims(jnp.minimum(last, logits.shape[1] - 1), 1)
        of_k = descending >= jnp.take_along_axis(descending, last, axis=1)
        share = jax.nn.softmax(jnp.where(of_k, descending, -jnp.inf))
        before = jnp.cumsum(share, axis=1) - share
        top_p = jnp.expand_dims(rules.top_p, 1)
        # The sum of rounded shares can reach 1 before the last token does.
        of_p = (before < top_p) | (top_p >= 1.0)
        of_p = of_p | jnp.expand_dims(jnp.arange(logits.shape[1]) == 0, 0)
        least = jnp.min(jnp.where(of_k & of_p, descending, jnp.inf), axis=1, keepdims=True)
        return jnp.where(logits >= least, logits, -jnp.inf)

    # Sorting a vocabulary takes longer than a small net: only where a row asks for it.
    ranked = jnp.any((rules.top_k > 0) | (rules.top_p < 1.0))
    logits = lax.cond(ranked, by_rank, lambda logits: logits, logits)
    least = jnp.max(logits, axis=1) + jnp.log(rules.min_p)
    return jnp.where(logits >= jnp.expand_dims(least, 1), logits, -jnp.inf)


def likeliest(logits: Logits) -> Int32[Array, " n"]:
    """The first of each row's largest: `jnp.argmax`, which XLA:CPU computes one by one.

    Of a row with NaNs, the last id.
    """
    last = logits.shape[1] - 1
    largest = logits >= jnp.max(logits, axis=1, keepdims=True)
    return jnp.min(jnp.where(largest, jnp.expand_dims(jnp.arange(last + 1), 0), last), axis=1)


def choose(
    logits: Logits, seen: Bool[Array, "n v"], rules: Rules, keys: jax.Array, place: Int[Array, ""]
) -> Int[Array, " n"]:
    """One token id a row, int32, drawn with `fold_in(key, place)`; `seen` are the penalised."""
    logits = penalised(logits, seen, rules.repetition_penalty)
    greedy = rules.temperature <= 0
    best = likeliest(logits)

    def draw(logits: Logits) -> Array:
        temperature = jnp.expand_dims(jnp.where(greedy, 1.0, rules.temperature), 1)
        place_keys = jax.vmap(jax.random.fold_in, (0, None))(keys, place)
        drawn = jax.vmap(jax.random.categorical)(place_keys, filtered(logits / temperature, rules))
        return jnp.where(greedy, best, drawn)

    # Random numbers for a vocabulary take as long as a small net: only where a row asks for them.
    chosen = lax.cond(jnp.all(greedy), lambda logits: best, draw, logits)
    return chosen.astype(jnp.int32)


class _Writing(NamedTuple):
    """What the generating loop carries.

    position: of the last token of every row.
    tokens:   int32 [n, length].
    size:     int32 [n], tokens up to the end token; `length` until there is one.
    seen:     bool [n, v], the ids in the prompt and the text so far, without the end's.
    cache:    keys and values of every layer.
    """

    position: Int32[Array, ""]
    tokens: Int32[Array, "n t"]
    size: Int32[Array, " n"]
    seen: Bool[Array, "n v"]
    cache: transformer.Cache


def generate(
    net: transformer.Transformer, params: Any, key: jax.Array, cond: Batch, spec: TokenSpec
) -> dict[str, Int32[Array, "n t"]]:
    """Rows of start token, prompt, text and end token, then padding, as one program.

    All rows advance together, one token at a time, from the end of the shortest prompt until every
    row has ended; where a row's prompt is longer, it is what the row "chooses". Token t of row i is
    drawn with `fold_in(fold_in(key, index[i]), t)`, so a row is the same text in any batch. Only
    the text's ids and the end are ever chosen. `prompt_length` counts up to length - 1.
    """
    (length,), end = spec.shape, spec.end
    rows = cond["index"].shape[0]
    net = net.clone(scan_layers=False)
    variables = {"params": transformer.unrolled(params, net.num_layers)}
    keys = jax.vmap(jax.random.fold_in, (None, 0))(key, cond["index"])
    rules = Rules(*(cond[name] for name in Rules._fields))
    start = end + 1 + cond["label"] if spec.num_classes else jnp.full(rows, end, jnp.int32)
    known = jnp.concatenate([jnp.expand_dims(start, 1), cond["prompt"][:, :-1]], axis=1)
    last_known = jnp.clip(cond["prompt_length"], 0, length - 1)
    places = jnp.expand_dims(jnp.arange(length), 0)
    tokens = jnp.where(places <= jnp.expand_dims(last_known, 1), known, end)

    def is_id(token: Array) -> Array:
        return jnp.expand_dims(token, 1) == jnp.expand_dims(jnp.arange(end + 1), 0)

    def extend(tokens: Array, position: Array, cache: transformer.Cache) -> tuple[Array, Any]:
        mask = transformer.causal_mask(position, tokens.shape[1], net.context)
        return net.apply(variables, tokens, mask, position, cache)

    def write(state: _Writing) -> _Writing:
        position = state.position
        token = lax.dynamic_slice_in_dim(state.tokens, position, 1, axis=1)
        logits, cache = extend(token, position, state.cache)
        place = position + 1
        chosen = choose(logits[:, 0, : end + 1], state.seen, rules, keys, place)
        running = (place > last_known) & (state.size == length)
        given = lax.dynamic_index_in_dim(state.tokens, place, axis=1, keepdims=False)
        chosen = jnp.where(running, chosen, given)
        return _Writing(
            position=place,
            tokens=lax.dynamic_update_index_in_dim(state.tokens, chosen, place, axis=1),
            size=jnp.where(running & (chosen == end), place + 1, state.size),
            seen=state.seen | (jnp.expand_dims(running, 1) & is_id(chosen)),
            cache=cache,
        )

    def unfinished(state: _Writing) -> Array:
        return (state.position < length - 1) & jnp.any(state.size == length)

    first = jnp.min(last_known)
    cache = lax.cond(
        first > 0,
        lambda cache: extend(tokens[:, :-1], jnp.zeros((), jnp.int32), cache)[1],
        lambda cache: cache,
        net.empty_cache(tokens),
    )
    seen = jnp.zeros((rows, end + 1), jnp.bool_)
    seen = seen.at[jnp.expand_dims(jnp.arange(rows), 1), tokens].set(True, mode="drop")
    seen = seen & (jnp.expand_dims(jnp.arange(end + 1), 0) < end)
    begun = _Writing(first, tokens, jnp.full(rows, length, jnp.int32), seen, cache)
    written = lax.while_loop(unfinished, write, begun)
    segments = places < jnp.expand_dims(written.size, 1)
    return {"tokens": written.tokens, "segments": segments.astype(jnp.int32)}
