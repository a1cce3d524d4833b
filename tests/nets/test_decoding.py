"""The choice of a token: the rules against Hugging Face's, the draws against the softmax."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from genaug.nets.decoding import Rules, choose, filtered, likeliest, penalised

ROWS, VOCAB = 6, 40
PLACE = jnp.int32(3)


def some_logits(rows=ROWS, vocab=VOCAB, seed=0):
    generator = np.random.default_rng(seed)
    return jnp.asarray(2.5 * generator.normal(size=(rows, vocab)), jnp.float32)


def rules(rows=ROWS, **changes):
    off = {"temperature": 1.0, "top_k": 0, "top_p": 1.0, "min_p": 0.0, "repetition_penalty": 1.0}
    columns = {}
    for name, value in {**off, **changes}.items():
        dtype = jnp.int32 if name == "top_k" else jnp.float32
        columns[name] = jnp.broadcast_to(jnp.asarray(value, dtype), rows)
    return Rules(**columns)


def reference(logits, row_rules, ids):
    """One row through Hugging Face's processors in the order of its `generate`."""
    torch = pytest.importorskip("torch", reason="the reference is written in PyTorch")
    hf = pytest.importorskip("transformers", reason="the reference is Hugging Face's")
    steps = []
    if row_rules.repetition_penalty != 1:
        steps.append(hf.RepetitionPenaltyLogitsProcessor(float(row_rules.repetition_penalty)))
    if row_rules.temperature != 1:
        steps.append(hf.TemperatureLogitsWarper(float(row_rules.temperature)))
    if row_rules.top_k:
        steps.append(hf.TopKLogitsWarper(int(row_rules.top_k)))
    if row_rules.top_p < 1:
        steps.append(hf.TopPLogitsWarper(float(row_rules.top_p)))
    if row_rules.min_p:
        steps.append(hf.MinPLogitsWarper(float(row_rules.min_p)))
    scores = torch.tensor(np.asarray(logits))[None]
    for step in steps:
        scores = step(torch.tensor(np.asarray(ids))[None], scores)
    return scores[0].numpy()


@pytest.mark.parametrize(
    "changes",
    [
        {"top_k": [1, 2, 7, 39, 40, 0]},
        {"top_k": 50},
        {"top_p": [0.1, 0.3, 0.6, 0.9, 0.999, 1.0]},
        {"min_p": [0.0, 0.01, 0.05, 0.2, 0.5, 1.0]},
        {"repetition_penalty": [1.0, 1.3, 2.0, 0.7, 5.0, 1.1]},
        {"temperature": [1.0, 0.5, 2.0, 0.1, 5.0, 0.9]},
        {
            "temperature": [0.7, 1.5, 1.0, 0.5, 2.0, 3.0],
            "top_k": [0, 12, 8, 30, 5, 20],
            "top_p": [0.9, 1.0, 0.8, 0.95, 0.5, 0.7],
            "min_p": [0.05, 0.1, 0.0, 0.02, 0.3, 0.4],
            "repetition_penalty": [1.2, 1.0, 1.5, 0.8, 1.1, 2.0],
        },
    ],
    ids=["top_k", "top_k_of_all", "top_p", "min_p", "repetition", "temperature", "all"],
)
@pytest.mark.parametrize("seed", range(3))
def test_rules_are_hugging_face_s(changes, seed):
    logits, given = some_logits(seed=seed), rules(**changes)
    ids = np.random.default_rng(seed).integers(0, VOCAB, (ROWS, 9))
    seen = jnp.zeros((ROWS, VOCAB), bool).at[np.arange(ROWS)[:, None], ids].set(True)

    @jax.jit
    def run(logits, seen, given):
        scores = penalised(logits, seen, given.repetition_penalty)
        return filtered(scores / jnp.expand_dims(given.temperature, 1), given)

    got = np.asarray(run(logits, seen, given))
    for row in range(ROWS):
        own = Rules(*(np.asarray(column)[row] for column in given))
        np.testing.assert_allclose(got[row], reference(logits[row], own, ids[row]), rtol=1e-5)


def test_nothing_is_left_out_where_the_rules_are_off():
    """Not even what the rounded shares before it seem to leave no room for."""
    logits = some_logits(vocab=5000)
    np.testing.assert_array_equal(filtered(logits, rules()), logits)
    ranked = filtered(logits, rules(top_p=[1.0, 1.0, 1.0, 1.0, 1.0, 0.5]))
    np.testing.assert_array_equal(ranked[:-1], logits[:-1])
    assert np.isneginf(ranked[-1]).sum() > 4000


def test_the_likeliest_survives_every_rule():
    kept = np.isfinite(filtered(some_logits(), rules(top_p=0.0)))
    np.testing.assert_array_equal(kept.argmax(axis=1), some_logits().argmax(axis=1))
    assert kept.sum() == ROWS


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"temperature": 0.5},
        {"temperature": 2.0, "top_k": 5},
        {"top_p": 0.8},
        {"min_p": 0.1},
        {"repetition_penalty": 3.0},
        {"temperature": 1.5, "top_k": 9, "top_p": 0.9, "min_p": 0.02, "repetition_penalty": 1.5},
    ],
)
def test_draws_have_the_shares_of_the_softmax(changes, key):
    """Pearson's chi-square of 20,000 draws with a key each, against NumPy's softmax in float64."""
    count, vocab = 20_000, 12
    logits = some_logits(1, vocab, seed=3)
    seen = jnp.arange(vocab).reshape(1, vocab) % 3 == 0
    given = rules(1, **changes)
    wide = lambda x: jnp.broadcast_to(x, (count, *x.shape[1:]))  # noqa: E731
    keys = jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.arange(count))
    drawn = jax.jit(choose)(wide(logits), wide(seen), Rules(*map(wide, given)), keys, PLACE)
    ids = np.flatnonzero(np.asarray(seen[0]))
    scores = reference(logits[0], Rules(*(np.asarray(c)[0] for c in given)), ids)
    shares = np.exp(scores.astype(np.float64) - scores.max())
    shares /= shares.sum()
    found = np.bincount(drawn, minlength=vocab)
    assert (found[shares == 0] == 0).all()
    often = shares * count >= 5
    pooled = lambda x: np.append(x[often], x[~often].sum() + 1e-9)  # noqa: E731
    test = scipy.stats.chisquare(pooled(found), pooled(shares * count), sum_check=False)
    assert test.pvalue > 1e-3


def test_the_likeliest_is_the_first_of_the_largest():
    """As `jnp.argmax`; a row with a NaN has no largest."""
    logits = np.round(some_logits(2000, 7, seed=1))  # ties in most rows
    np.testing.assert_array_equal(likeliest(jnp.asarray(logits)), np.argmax(logits, axis=1))
    assert likeliest(jnp.asarray([[0.0, np.nan, 5.0]])) == 2
    assert likeliest(jnp.full((1, 3), -jnp.inf)) == 0


def test_temperature_zero_takes_the_likeliest_of_the_penalised(key):
    logits = some_logits()
    seen = logits == jnp.max(logits, axis=1, keepdims=True)
    keys = jax.random.split(key, ROWS)
    given = rules(
        temperature=[0.0, 0.0, 0.0, 0.0, 0.0, 1.0], repetition_penalty=[1.0] * 3 + [9.0] * 3
    )
    chosen = np.asarray(choose(logits, seen, given, keys, PLACE))
    second = np.argsort(logits, axis=1)[:, -2]
    np.testing.assert_array_equal(chosen[:3], np.argmax(logits, axis=1)[:3])
    np.testing.assert_array_equal(chosen[3:5], second[3:5])
    assert chosen.dtype == np.int32


def test_a_row_depends_on_its_own_rules_alone(key):
    logits, keys = some_logits(), jax.random.split(key, ROWS)
    seen = jnp.zeros(logits.shape, bool)
    mixed = rules(top_k=[0, 3, 0, 0, 9, 0], top_p=[1.0, 1.0, 0.5, 1.0, 1.0, 0.2])
    together = choose(logits, seen, mixed, keys, PLACE)
    for row in range(ROWS):
        part = slice(row, row + 1)
        own = Rules(*(column[part] for column in mixed))
        np.testing.assert_array_equal(
            choose(logits[part], seen[part], own, keys[part], PLACE), together[part]
        )
