"""The language model: which targets count, what it writes, and its rows' independence."""

import dataclasses
import functools
import importlib.util
import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special
import scipy.stats

from genaug import export, layouts, parallel
from genaug.bundle import load_sampler
from genaug.devices import Mesh, make_mesh
from genaug.hlo_text import parse
from genaug.models.transformer_lm import TransformerLM, gpt2, target_nll
from genaug.nets import transformer
from genaug.sampling import make_sampler
from genaug.state import Adam
from genaug.types import LabelSpec, TokenSpec, UserError

TEXT, CLASSES, LENGTH = 13, 3, 12
END = TEXT
CONFIG = TransformerLM(num_layers=2, num_heads=4, num_kv_heads=2, embed_dim=16)


def spec_of(num_classes=CLASSES, length=LENGTH, num_text=TEXT):
    return {
        "tokens": TokenSpec(length, num_text, num_classes),
        "segments": jax.ShapeDtypeStruct((length,), np.int32),
        "num_bytes": jax.ShapeDtypeStruct((), np.int32),
    }


@functools.lru_cache
def made(num_classes=CLASSES, **changes):
    """A model whose weights are far from a fresh one's, so that its next tokens differ."""
    config = dataclasses.replace(CONFIG, **changes)
    model = config.make(spec_of(num_classes))
    weights = jax.jit(lambda key: model.weights(model.init(key)))(jax.random.key(0))
    keys = iter(jax.random.split(jax.random.key(10), len(jax.tree.leaves(weights))))
    noise = lambda leaf: leaf + 0.3 * jax.random.normal(next(keys), leaf.shape)  # noqa: E731
    return model, jax.tree.map(noise, weights), jax.jit(model.sample)


def cond_of(index, num_classes=CLASSES, **more):
    cond = {"index": jnp.asarray(index, jnp.int32), **more}
    return cond | ({"label": cond["index"] % num_classes} if num_classes else {})


def prompts(lengths, seed=0):
    ids = np.random.default_rng(seed).integers(0, TEXT, (len(lengths), LENGTH), np.int32)
    return {"prompt": jnp.asarray(ids), "prompt_length": jnp.asarray(lengths, jnp.int32)}


def constant(name, value, rows):
    return {name: jnp.full(rows, value, jnp.int32 if name == "top_k" else jnp.float32)}


def net_of(config=CONFIG, num_classes=CLASSES):
    """The same net, through no more than its public constructor."""
    return transformer.Transformer(
        layer=transformer.Layer(
            num_heads=4,
            num_kv_heads=2,
            mlp_dim=48,
            activation="swiglu",
            norm="rms",
            epsilon=1e-5,
            use_bias=False,
            dropout=0.0,
            residual_scale=0.5,
            remat=False,
        ),
        num_layers=2,
        vocab_size=TEXT + 1 + num_classes,
        context=LENGTH - 1,
        embed_dim=16,
        positions=config.positions,
        rope_base=10_000.0,
        tie_embeddings=True,
        scan_layers=config.scan_layers,
        dtype="float32",
    )


@functools.lru_cache
def forward(net):
    return jax.jit(lambda weights, tokens, mask: net.apply(weights, tokens, mask)[0])


def whole_logits(weights, tokens, config=CONFIG, num_classes=CLASSES):
    """The logits of every position by one forward pass over the row, no cache."""
    inputs = jnp.asarray(tokens)[:, :-1]
    mask = transformer.document_mask(jnp.ones(inputs.shape, jnp.int32))
    return np.asarray(forward(net_of(config, num_classes))(weights, inputs, mask), np.float64)


BATCH = {
    "tokens": np.array(
        [
            [14, 3, 4, 13, 15, 5, 6, 7, 8, 13, 13, 13],  # two documents, then padding
            [14, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 13],  # one, its first half context only
            [13, 13, 13, 13, 13, 13, 13, 13, 13, 13, 13, 13],  # nothing
        ],
        np.int32,
    ),
    "segments": np.array(
        [
            [1, 1, 1, 1, 2, 2, 2, 2, 2, 2, 0, 0],
            [-1, -1, -1, -1, -1, -1, 1, 1, 1, 1, 1, 1],
            [0] * 12,
        ],
        np.int32,
    ),
    "num_bytes": np.array([6, 7, 0], np.int32),
}
COUNTED = [[0, 1, 2, 4, 5, 6, 7, 8], [5, 6, 7, 8, 9, 10], []]  # of the targets, by hand


def batch():
    return jax.tree.map(jnp.asarray, BATCH)


def reference_nll(weights):
    """Of each document by itself, in NumPy over its logits; rotary positions allow it."""
    totals, count = np.zeros(3), 0
    right = 0
    for row, (first, size, scored_from) in [
        (0, (0, 4, 0)),
        (0, (4, 6, 0)),
        (1, (0, 12, 5)),
    ]:
        document = BATCH["tokens"][row, first : first + size][None]
        logits = whole_logits(weights, document)[0]
        share = scipy.special.log_softmax(logits, axis=1)
        for t in range(scored_from, size - 1):
            totals[row] -= share[t, document[0, t + 1]]
            right += logits[t].argmax() == document[0, t + 1]
            count += 1
    return totals, count, right


def test_score_is_numpy_s_and_a_row_without_text_scores_zero(key):
    model, weights, _ = made()
    want, count, _ = reference_nll(weights)
    assert count == sum(map(len, COUNTED))
    got = jax.jit(model.score)(weights, batch(), key)
    np.testing.assert_allclose(got["nll"], want, rtol=1e-5)
    per_byte = np.append(want[:2] / np.log(2) / BATCH["num_bytes"][:2], 0.0)
    np.testing.assert_allclose(got["bits_per_byte"], per_byte, rtol=1e-5)


def step_metrics(model, weights, key, rows=None):
    state = model.init(key)
    state = state.replace(variables=weights)
    return jax.jit(model.step)(state, batch() if rows is None else rows, key)[1]


def test_loss_is_the_mean_over_the_targets_that_count(key):
    model, weights, _ = made()
    totals, count, right = reference_nll(weights)
    metrics = step_metrics(model, weights, key)
    np.testing.assert_allclose(metrics["loss"], totals.sum() / count, rtol=1e-5)
    np.testing.assert_allclose(metrics["accuracy"], right / count, rtol=1e-5)
    assert right > 0
    want = totals.sum() / np.log(2) / BATCH["num_bytes"].sum()
    np.testing.assert_allclose(metrics["bits_per_byte"], want, rtol=1e-5)
    nothing = jax.tree.map(lambda leaf: leaf[2:], batch())
    empty = step_metrics(model, weights, key, nothing)
    assert all(float(value) == 0 for value in empty.values())


def test_a_target_that_does_not_count_moves_nothing_and_is_never_right(key):
    """Its gradient is zero: the targets' slopes are non-zero at those that count alone."""
    logits = jax.random.normal(key, (3, LENGTH - 1, TEXT + 1 + CLASSES))
    slopes = jax.grad(lambda logits: jnp.sum(target_nll(logits, batch())[0]))(logits)
    moved = np.abs(slopes).max(axis=2) > 0
    for row, places in enumerate(COUNTED):
        np.testing.assert_array_equal(np.flatnonzero(moved[row]), places)
    oracle = jax.nn.one_hot(batch()["tokens"][:, 1:], TEXT + 1 + CLASSES)
    for found in target_nll(oracle, batch())[1:]:
        np.testing.assert_array_equal(found, moved)


@pytest.mark.parametrize("changes", [{}, {"positions": "learned"}, {"scan_layers": True}])
def test_greedy_text_is_the_argmax_of_whole_rows(changes, key):
    _, weights, sample = made(**changes)
    lengths = [0, 3, 7, 0, 11, 1]
    rows = sample(
        weights, key, cond_of(range(6), **prompts(lengths), **constant("temperature", 0.0, 6))
    )
    tokens = np.asarray(rows["tokens"])
    logits = whole_logits(weights, tokens, dataclasses.replace(CONFIG, **changes))
    allowed = logits[..., : END + 1].argmax(axis=2)
    generated = 0
    for row, length in enumerate(lengths):
        np.testing.assert_array_equal(
            tokens[row, 1 : 1 + length], prompts(lengths)["prompt"][row, :length]
        )
        size = int(rows["segments"][row].sum())
        np.testing.assert_array_equal(
            tokens[row, 1 + length : size], allowed[row, length : size - 1]
        )
        generated += size - 1 - length
    assert generated > 15
    assert len(np.unique(tokens)) > 5


def test_rows_have_the_form_of_the_data(key):
    """Start of the class, text, at most one end, padding; no class is ever chosen."""
    _, weights, sample = made()
    count = 200
    rows = jax.tree.map(np.asarray, sample(weights, key, cond_of(range(count))))
    tokens, segments = rows["tokens"], rows["segments"]
    assert tokens.dtype == segments.dtype == np.int32
    assert tokens.shape == segments.shape == (count, LENGTH)
    np.testing.assert_array_equal(tokens[:, 0], END + 1 + np.arange(count) % CLASSES)
    assert tokens[:, 1:].max() == END
    sizes = segments.sum(axis=1)
    np.testing.assert_array_equal(segments, np.arange(LENGTH) < sizes[:, None])
    for row, size in zip(tokens, sizes, strict=True):
        assert (row[1 : size - 1] < END).all()
        assert (row[size:] == END).all()
        assert size == LENGTH or row[size - 1] == END
    assert (tokens[sizes == LENGTH, -1] < END).any(), "some run to the last place"
    assert (sizes < LENGTH).any()


def test_texts_without_classes_begin_with_the_end_token(key):
    _, weights, sample = made(0)
    rows = sample(weights, key, cond_of(range(20), 0))
    np.testing.assert_array_equal(rows["tokens"][:, 0], END)
    sizes = np.asarray(rows["segments"]).sum(axis=1)
    assert (sizes > 1).all()
    assert (sizes > 2).any()


def test_a_row_is_the_same_text_in_any_batch(key):
    """Whatever the others' prompts, lengths and rules are."""
    _, weights, sample = made()
    lengths = [4, 0, 9, 2, 11, 0, 6, 1]
    more = {
        **prompts(lengths),
        "temperature": jnp.array([1.0, 0.0, 0.5, 1.0, 1.0, 2.0, 1.0, 0.7]),
        "top_k": jnp.array([0, 0, 3, 0, 0, 5, 1, 0], jnp.int32),
        "top_p": jnp.array([1.0, 1.0, 1.0, 0.5, 1.0, 1.0, 1.0, 0.9]),
        "repetition_penalty": jnp.array([1.0, 2.0, 1.0, 1.0, 1.0, 1.5, 1.0, 1.0]),
    }
    whole = cond_of(range(100, 108), **more)
    together = jax.tree.map(np.asarray, sample(weights, key, whole))
    for row in range(8):
        alone = sample(weights, key, jax.tree.map(lambda leaf, row=row: leaf[row : row + 1], whole))
        for name, value in alone.items():
            np.testing.assert_array_equal(value[0], together[name][row])
    other = sample(weights, key, {**whole, "index": whole["index"] + 8})
    assert (np.asarray(other["tokens"]) != together["tokens"]).any(axis=1)[[0, 2, 3, 5]].any()


def test_what_stands_beyond_a_prompt_is_not_read(key):
    """Nor does it pad a text that has ended, or count as seen."""
    _, weights, sample = made()
    given = prompts([3, 0, 5, 1] * 8)
    places = jnp.expand_dims(jnp.arange(LENGTH), 0)
    beyond = places >= jnp.expand_dims(given["prompt_length"], 1)
    other = {**given, "prompt": jnp.where(beyond, 0, given["prompt"])}
    one, two = (
        sample(weights, key, cond_of(range(32), **more, **constant("repetition_penalty", 3.0, 32)))
        for more in (given, other)
    )
    np.testing.assert_array_equal(one["tokens"], two["tokens"])


def test_an_end_in_the_prompt_is_text_and_one_after_it_stops(key):
    """Also where the loop steps through it, because another row has no prompt."""
    _, weights, sample = made()
    given = prompts([4] * 49 + [0])
    given["prompt"] = given["prompt"].at[:, 1].set(END)
    rows = sample(weights, key, cond_of(range(50), **given))
    sizes = np.asarray(rows["segments"]).sum(axis=1)[:-1]
    assert sizes.min() > 5
    assert len(np.unique(sizes)) > 2
    np.testing.assert_array_equal(rows["tokens"][:-1, 1:5], given["prompt"][:-1, :4])


def test_the_first_token_has_the_shares_of_the_softmax(key):
    """Over 20,000 indices, among the ids of text and the end."""
    model = dataclasses.replace(CONFIG, temperature=0.8).make(spec_of(length=2))
    _, weights, _ = made()
    count = 20_000
    cond = {"index": jnp.arange(count), "label": jnp.full(count, 1)}
    tokens = np.asarray(jax.jit(model.sample)(weights, key, cond)["tokens"])
    logits = whole_logits(weights, np.array([[END + 2, 0]]))[0, 0, : END + 1]
    shares = scipy.special.softmax(logits / 0.8)
    found = np.bincount(tokens[:, 1], minlength=END + 1)
    often = shares * count >= 5
    pooled = lambda x: np.append(x[often], x[~often].sum() + 1e-9)  # noqa: E731
    assert scipy.stats.chisquare(pooled(found), pooled(shares * count)).pvalue > 1e-3


def test_later_tokens_have_the_shares_of_the_softmax_too(key):
    """A row's draws are independent: the second token given the first, for the likeliest first."""
    model = CONFIG.make(spec_of(length=3))
    _, weights, _ = made()
    count = 20_000
    cond = {"index": jnp.arange(count), "label": jnp.full(count, 1)}
    tokens = np.asarray(jax.jit(model.sample)(weights, key, cond)["tokens"])
    first = np.bincount(tokens[:, 1][tokens[:, 1] < END]).argmax()
    after = tokens[tokens[:, 1] == first, 2]
    logits = whole_logits(weights, np.array([[END + 2, first, 0]]))[0, 1, : END + 1]
    shares = scipy.special.softmax(logits)
    often = shares * len(after) >= 5
    pooled = lambda x: np.append(x[often], x[~often].sum() + 1e-9)  # noqa: E731
    found = np.bincount(after, minlength=END + 1)
    assert scipy.stats.chisquare(pooled(found), pooled(shares * len(after))).pvalue > 1e-3


@pytest.mark.parametrize("penalty", [1.0, 1.5, 20.0])
def test_a_penalty_is_on_the_prompt_s_and_the_text_s_own_tokens(penalty, key):
    """Greedy text is the argmax of whole rows' logits, penalised one token at a time in NumPy."""
    _, weights, sample = made()
    lengths = [3, 0, 6, 1]
    cond = cond_of(range(4), **prompts(lengths), **constant("temperature", 0.0, 4))
    rows = sample(weights, key, {**cond, **constant("repetition_penalty", penalty, 4)})
    logits = whole_logits(weights, rows["tokens"])[..., : END + 1]
    changed = 0
    for row, length in enumerate(lengths):
        tokens = np.asarray(rows["tokens"][row])
        for t in range(length, int(rows["segments"][row].sum()) - 1):
            scores = logits[row, t].copy()
            for seen in set(tokens[1 : t + 1]):
                scores[seen] *= penalty if scores[seen] < 0 else 1 / penalty
            assert tokens[t + 1] == scores.argmax()
            changed += scores.argmax() != logits[row, t].argmax()
    assert (changed > 0) == (penalty > 1)


def test_the_start_token_is_no_repetition_of_the_end(key):
    """Where it is the same id, a penalty does not keep texts from ending."""
    _, weights, sample = made(0)
    cond = cond_of(range(50), 0)

    def first(penalty):
        rows = sample(weights, key, {**cond, **constant("repetition_penalty", penalty, 50)})
        return np.asarray(rows["tokens"])[:, 1]

    np.testing.assert_array_equal(first(50.0), first(1.0))
    assert (first(1.0) == END).any()


def test_defaults_are_the_config_s(key):
    _, weights, sample = made()
    greedy = dataclasses.replace(CONFIG, temperature=0.0).make(spec_of())
    want = sample(weights, key, cond_of(range(4), **constant("temperature", 0.0, 4)))
    got = jax.jit(greedy.sample)(weights, key, cond_of(range(4)))
    np.testing.assert_array_equal(got["tokens"], want["tokens"])
    defaults = {name: field.default for name, field in greedy.cond.items()}
    assert defaults == {
        "label": None,
        "prompt": 0,
        "prompt_length": 0,
        "temperature": 0,
        "top_k": 0,
        "top_p": 1,
        "min_p": 0,
        "repetition_penalty": 1,
    }
    assert isinstance(greedy.cond["label"].spec, LabelSpec)
    assert "label" not in CONFIG.make(spec_of(0)).cond


def test_exported_sampler_is_the_sampler(tmp_path, key):
    model, weights, sample = made()
    export.write_bundle(tmp_path / "export", model, weights, spec_of(), {})
    sampler = load_sampler(tmp_path / "export")
    for count in (1, 5):
        cond = cond_of(range(count), **prompts([2, 0, 7, 1, 0][:count]))
        cond |= {"top_p": jnp.linspace(0.5, 1.0, count)}
        got, want = sampler(key, cond), sample(weights, key, cond)
        for name in want:
            np.testing.assert_array_equal(got[name], want[name])


def test_tensor_parallel_layers_sum_and_send_nothing_else():
    """A device's share of qkv is whole groups of heads; of gate and up it has the same columns."""
    model, mesh = CONFIG.make(spec_of()), make_mesh(Mesh(data=2, tensor=2))
    template = layouts.abstract(model.init, mesh)
    run = parallel.compile_steps(model.step, mesh, template)
    rows = jax.tree.map(lambda x: np.expand_dims(np.concatenate([x, x, x, x]), 0), dict(BATCH))
    stack = layouts.split_rows(rows, mesh, axis=1)
    text = run.lower(template, stack, jax.random.key(0), 0).compile().as_text()
    kinds = r" (all-reduce|all-gather|reduce-scatter|all-to-all|collective-permute)\("
    assert set(re.findall(kinds, text)) == {"all-reduce"}


@pytest.mark.parametrize("rows", [1, 3])
def test_the_loop_that_writes_copies_no_cache(rows, optimized):
    """Keys and values are written and read where they are; XLA would copy some of one row alone."""
    _, weights, sample = made(num_kv_heads=4)
    text = sample.lower(weights, jax.random.key(0), cond_of(range(rows))).compile().as_text()
    program, _ = parse(text)
    size = rows * CONFIG.embed_dim * (LENGTH - 1) * 4
    held = [
        [one for one in computation.instructions.values() if one.arrays[0].bytes == size]
        for computation in program.values()
    ]
    # The loop's body writes the keys and the values of two layers.
    body = max(held, key=lambda held: sum("dynamic-update-slice" in one.name for one in held))
    made_here = [one.name for one in body if one.opcode not in ("get-tuple-element", "parameter")]
    assert len(made_here) == 4, made_here


def test_prompts_outside_the_vocabulary_are_refused(key):
    model, weights, _ = made()
    sampler = make_sampler(model, weights, make_mesh(Mesh(data=1)), 4)
    given = {"index": np.arange(2), "label": np.zeros(2, np.int32)}
    wrong = np.full((2, LENGTH), TEXT + 1 + CLASSES, np.int32)
    with pytest.raises(UserError, match=r"prompt.* 17; it must be from 0 to 16"):
        sampler(key, {**given, "prompt": wrong})


def test_gpt2_has_gpt2_s_shapes(key):
    model = gpt2().make(spec_of(0, 1024 + 1, 50_256))
    params = jax.eval_shape(lambda key: model.weights(model.init(key)), key)["params"]
    assert sum(leaf.size for leaf in jax.tree.leaves(params)) == 124_439_808
    shapes = jax.tree.map(lambda leaf: leaf.shape, params)
    assert shapes["tokens"]["embedding"] == (50_257, 768)
    assert shapes["positions"]["embedding"] == (1024, 768)
    assert shapes["layer_11"] == {
        "attention_norm": {"scale": (768,), "bias": (768,)},
        "qkv": {"kernel": (768, 2304), "bias": (2304,)},
        "out": {"kernel": (768, 768), "bias": (768,)},
        "mlp_norm": {"scale": (768,), "bias": (768,)},
        "mlp_in": {"kernel": (768, 3072), "bias": (3072,)},
        "mlp_out": {"kernel": (3072, 768), "bias": (768,)},
    }
    hf = pytest.importorskip("transformers", reason="the reference is Hugging Face's")
    torch = pytest.importorskip("torch", reason="the reference is written in PyTorch")
    with torch.device("meta"):
        theirs = hf.GPT2LMHeadModel(hf.GPT2Config())
    assert sum(p.numel() for p in theirs.parameters()) == 124_439_808


def gpt2_preset():
    path = Path(__file__).parents[2] / "experiments" / "gpt2.py"
    spec = importlib.util.spec_from_file_location("gpt2", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.config()


def test_the_gpt2_preset_traces_whole_and_takes_updates_at_an_eighth_of_its_width(key):
    """Rows of 1,024 + 1 made-up tokens of its vocabulary, its 12 layers looped, in bfloat16."""
    preset, spec = gpt2_preset(), spec_of(0, 1024 + 1, 50_256)
    rows = {name: jax.ShapeDtypeStruct((2, *one.shape), one.dtype) for name, one in spec.items()}
    whole = preset.model.make(spec)
    _, metrics = jax.eval_shape(whole.step, jax.eval_shape(whole.init, key), rows, key)
    assert metrics["loss"].dtype == jnp.float32
    model = dataclasses.replace(preset.model, embed_dim=96).make(spec)
    tokens = np.random.default_rng(0).integers(0, 50_256, (2, 1025), np.int32)
    batch = {
        "tokens": jnp.asarray(tokens),
        "segments": jnp.ones((2, 1025), jnp.int32),
        "num_bytes": jnp.full(2, 4000, jnp.int32),
    }
    state = jax.jit(model.init)(key)
    assert {leaf.dtype.name for leaf in jax.tree.leaves(state.ema)} == {"float32"}
    step, losses = jax.jit(model.step, donate_argnums=0), []
    for i in range(2):
        state, metrics = step(state, batch, jax.random.fold_in(key, i))
        losses.append(float(metrics["loss"]))
    np.testing.assert_allclose(losses, np.log(50_257), rtol=0.02)


def test_text_is_written_in_bfloat16_from_looped_layers(key):
    model, weights, sample = made(dtype="bfloat16", scan_layers=True, remat=True)
    rows = sample(weights, key, cond_of(range(4)))
    exact, exact_weights, _ = made(scan_layers=True, remat=True)
    assert rows["tokens"].shape == (4, LENGTH)
    scores = [
        jax.jit(m.score)(w, batch(), key)["nll"]
        for m, w in ((model, weights), (exact, exact_weights))
    ]
    np.testing.assert_allclose(*scores, rtol=0.05)  # bfloat16 has 8 bits
    assert np.abs(scores[0] - scores[1]).max() > 0


@pytest.mark.parametrize(
    "changes, want",
    [
        ({"activation": "gelu"}, 4 * 20),
        ({"activation": "swiglu"}, 56),  # 8/3 of 20 is 53.3
        ({"activation": "swiglu", "mlp_dim": 10}, 10),
    ],
)
def test_width_of_the_perceptron(changes, want, key):
    config = TransformerLM(num_layers=1, num_heads=2, embed_dim=20, **changes)
    params = jax.eval_shape(config.make(spec_of()).init, key).ema
    assert params["layer_0"]["mlp_in"]["kernel"].shape == (20, want)


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"num_layers": 0}, "num-layers is 0"),
        ({"num_heads": 0}, "num-heads is 0"),
        ({"num_kv_heads": 0}, "num-kv-heads is 0"),
        ({"embed_dim": 0}, "embed-dim is 0"),
        ({"mlp_dim": 0}, "mlp-dim is 0"),
        ({"num_heads": 3}, "num-heads is 3, which does not divide model.embed-dim 128"),
        ({"num_kv_heads": 3}, "num-kv-heads is 3, which does not divide model.num-heads 4"),
        ({"embed_dim": 12}, "each of 4 heads 3 features.* learned positions"),
        ({"dropout": 1.0}, "dropout is 1.0"),
        ({"temperature": -1.0}, "temperature is -1.0"),
        ({"top_k": -1}, "top-k is -1"),
        ({"top_p": 0.0}, "top-p is 0.0"),
        ({"min_p": 1.5}, "min-p is 1.5"),
        ({"repetition_penalty": 0.0}, "repetition-penalty is 0.0"),
    ],
)
def test_refuses_what_does_not_fit(changes, words):
    with pytest.raises(UserError, match=words):
        TransformerLM(**changes).make(spec_of())


def test_refuses_data_without_text():
    with pytest.raises(UserError, match="needs text"):
        CONFIG.make({"image": jax.ShapeDtypeStruct((8, 8, 1), np.uint8)})


def test_learns_fixed_rows_by_heart_and_writes_them(key):
    """Three classes, one text each; a conditional model tells them apart."""
    texts = [[0, 1, 2, 3], [4, 5, 6, 7, 8, 9], [10, 0, 11]]
    tokens = np.full((3, LENGTH), END, np.int32)
    segments = np.zeros((3, LENGTH), np.int32)
    for label, text in enumerate(texts):
        tokens[label, : len(text) + 1] = [END + 1 + label, *text]
        segments[label, : len(text) + 2] = 1
    rows = {
        "tokens": jnp.asarray(tokens),
        "segments": jnp.asarray(segments),
        "num_bytes": jnp.asarray([len(text) for text in texts], jnp.int32),
    }
    config = dataclasses.replace(CONFIG, optimizer=Adam(learning_rate=1e-2))
    model = config.make(spec_of())

    @jax.jit
    def train(key):
        step = lambda state, i: model.step(state, rows, jax.random.fold_in(key, i))  # noqa: E731
        return jax.lax.scan(step, model.init(key), jnp.arange(300))

    state, metrics = train(key)
    assert metrics["loss"][0] > 2.5
    assert metrics["loss"][-1] < 0.05
    written = jax.jit(model.sample)(
        {"params": state.variables["params"]},
        key,
        cond_of(range(3), **constant("temperature", 0.0, 3)),
    )
    np.testing.assert_array_equal(written["tokens"], tokens)
    np.testing.assert_array_equal(written["segments"], segments)
