"""The transformer against Hugging Face's GPT-2 and LLaMA with copied weights, and its masks."""

import dataclasses
import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.extend.core import jaxprs_in_params

from genaug.models.transformer_lm import _net, gpt2
from genaug.nets import layers, transformer
from genaug.types import TokenSpec

VOCAB, CONTEXT, DIM, DEPTH = 101, 16, 32, 2

GPT2 = _net(
    dataclasses.replace(gpt2(), num_layers=DEPTH, num_heads=2, embed_dim=DIM),
    TokenSpec(CONTEXT + 1, VOCAB - 1),
)
LLAMA = GPT2.clone(
    layer=dataclasses.replace(
        GPT2.layer,
        num_heads=4,
        mlp_dim=48,
        activation="swiglu",
        norm="rms",
        epsilon=1e-6,
        use_bias=False,
    ),
    positions="rope",
    rope_base=500.0,
    tie_embeddings=False,
)


def assert_close(got, want, tolerance=1e-5):
    """Equal up to `tolerance` of the largest value."""
    got, want = np.asarray(got), np.asarray(want)
    scale = np.abs(want).max()
    assert scale > 1e-3, "all zeros would be equal too"
    np.testing.assert_allclose(got / scale, want / scale, rtol=0, atol=tolerance)


def some_tokens(rows=3, count=CONTEXT, seed=0):
    return jnp.asarray(np.random.default_rng(seed).integers(0, VOCAB, (rows, count), np.int32))


def one_document(tokens):
    return transformer.document_mask(jnp.ones(tokens.shape, jnp.int32))


@functools.lru_cache
def made(net, seed=0):
    """Parameters ten times as large as fresh ones, so that attention attends to something."""
    tokens = some_tokens()
    params = jax.jit(net.init)(jax.random.key(seed), tokens, one_document(tokens))["params"]
    keys = iter(jax.random.split(jax.random.key(seed + 1), len(jax.tree.leaves(params))))
    noise = lambda leaf: leaf + 0.2 * jax.random.normal(next(keys), leaf.shape)  # noqa: E731
    return jax.tree.map(noise, params)


def logits_of(net, params, tokens, mask=None):
    mask = one_document(tokens) if mask is None else mask
    return jax.jit(lambda *given: net.apply({"params": params}, *given)[0])(tokens, mask)


def numbers(tensor):
    return np.asarray(tensor.detach().double().numpy())


def test_equals_hugging_face_s_gpt2():
    torch = pytest.importorskip("torch", reason="the reference is written in PyTorch")
    hf = pytest.importorskip("transformers", reason="the reference is Hugging Face's")
    config = hf.GPT2Config(
        vocab_size=VOCAB, n_positions=CONTEXT, n_embd=DIM, n_layer=DEPTH, n_head=2
    )
    config._attn_implementation = "eager"
    torch.manual_seed(0)
    model = hf.GPT2LMHeadModel(config).double().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    theirs = {name: numbers(value) for name, value in model.state_dict().items()}

    def pair(name, kernel="kernel"):
        return {kernel: theirs[f"{name}.weight"], "bias": theirs[f"{name}.bias"]}

    params = {
        "tokens": {"embedding": theirs["transformer.wte.weight"]},
        "positions": {"embedding": theirs["transformer.wpe.weight"]},
        "norm": pair("transformer.ln_f", "scale"),
    }
    for i in range(DEPTH):
        name = f"transformer.h.{i}"
        params[f"layer_{i}"] = {
            "attention_norm": pair(f"{name}.ln_1", "scale"),
            "qkv": {
                kernel: by_head(*np.split(value, 3, axis=-1), 2)
                for kernel, value in pair(f"{name}.attn.c_attn").items()
            },
            "out": pair(f"{name}.attn.c_proj"),
            "mlp_norm": pair(f"{name}.ln_2", "scale"),
            "mlp_in": pair(f"{name}.mlp.c_fc"),
            "mlp_out": pair(f"{name}.mlp.c_proj"),
        }
    params = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float32), params)
    check_same_shapes(GPT2, params)
    tokens = some_tokens()
    want = model(torch.tensor(np.asarray(tokens), dtype=torch.long)).logits
    assert_close(logits_of(GPT2, params, tokens), numbers(want))


def by_head(q, k, v, groups):
    """Columns of all queries, all keys and all values as ours are: group by group."""
    parts = [part.reshape(*part.shape[:-1], groups, -1) for part in (q, k, v)]
    return np.concatenate(parts, axis=-1).reshape(*q.shape[:-1], -1)


def check_same_shapes(net, params):
    shape_of = lambda tree: jax.tree.map(lambda leaf: leaf.shape, tree)  # noqa: E731
    assert shape_of(params) == shape_of(made(net))


@pytest.mark.parametrize("kv_heads", [1, 2, 4])
def test_equals_hugging_face_s_llama(kv_heads):
    torch = pytest.importorskip("torch", reason="the reference is written in PyTorch")
    hf = pytest.importorskip("transformers", reason="the reference is Hugging Face's")
    config = hf.LlamaConfig(
        vocab_size=VOCAB,
        max_position_embeddings=CONTEXT,
        hidden_size=DIM,
        intermediate_size=48,
        num_hidden_layers=DEPTH,
        num_attention_heads=4,
        num_key_value_heads=kv_heads,
        rms_norm_eps=1e-6,
        rope_parameters={"rope_type": "default", "rope_theta": 500.0},
        tie_word_embeddings=False,
        attn_implementation="eager",
    )
    torch.manual_seed(0)
    model = hf.LlamaForCausalLM(config).double().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    theirs = {name: numbers(value) for name, value in model.state_dict().items()}

    def dense(name):
        return {"kernel": theirs[f"{name}.weight"].T}

    params = {
        "tokens": {"embedding": theirs["model.embed_tokens.weight"]},
        "norm": {"scale": theirs["model.norm.weight"]},
        "head": theirs["lm_head.weight"].T,
    }
    for i in range(DEPTH):
        name = f"model.layers.{i}"
        attention, mlp = f"{name}.self_attn", f"{name}.mlp"
        params[f"layer_{i}"] = {
            "attention_norm": {"scale": theirs[f"{name}.input_layernorm.weight"]},
            "qkv": {
                "kernel": by_head(
                    *(theirs[f"{attention}.{x}_proj.weight"].T for x in "qkv"), kv_heads
                )
            },
            "out": dense(f"{attention}.o_proj"),
            "mlp_norm": {"scale": theirs[f"{name}.post_attention_layernorm.weight"]},
            "mlp_gate": dense(f"{mlp}.gate_proj"),
            "mlp_in": dense(f"{mlp}.up_proj"),
            "mlp_out": dense(f"{mlp}.down_proj"),
        }
    params = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float32), params)
    net = LLAMA.clone(layer=dataclasses.replace(LLAMA.layer, num_kv_heads=kv_heads))
    check_same_shapes(net, params)
    tokens = some_tokens()
    want = model(torch.tensor(np.asarray(tokens), dtype=torch.long)).logits
    assert_close(logits_of(net, params, tokens), numbers(want))


@pytest.mark.parametrize("net", [GPT2, LLAMA], ids=["gpt2", "llama"])
def test_no_position_reads_a_later_one_or_another_document(net):
    """Derivatives of every position's logits by every position's input."""
    rows = jnp.array([[1, 1, 1, 2, -2, 2, -3, 3, 3, 0, 0]])
    document, count = np.abs(rows[0]), rows.shape[1]
    mask = transformer.document_mask(rows)
    params = made(net)
    table = params["tokens"]["embedding"]
    tokens = jnp.arange(count).reshape(1, count)  # each its own row of the table

    def outputs(table):
        changed = {**params, "tokens": {"embedding": table}}
        if net.tie_embeddings:  # read the same embeddings, but by another way
            loose = net.clone(tie_embeddings=False)
            changed["head"] = params["tokens"]["embedding"].T
            return loose.apply({"params": changed}, tokens, mask)[0][0].sum(axis=1)
        return net.apply({"params": changed}, tokens, mask)[0][0].sum(axis=1)

    slopes = jax.jit(jax.jacrev(outputs))(table)[:, :count]
    reads = np.abs(slopes).max(axis=2) > 0
    allowed = np.tri(count, dtype=bool) & (document[:, None] == document[None, :])
    np.testing.assert_array_equal(reads, allowed)


def test_packed_documents_have_the_logits_they_have_alone():
    """Under rotary positions, of which only differences count."""
    sizes = [5, 1, 7, 3]
    tokens = some_tokens(1)
    segments = jnp.asarray(np.repeat(np.arange(1, 5), sizes)[None])
    params = made(LLAMA)
    packed = logits_of(LLAMA, params, tokens, transformer.document_mask(segments))
    first = 0
    for size in sizes:
        alone = logits_of(LLAMA, params, tokens[:, first : first + size])
        assert_close(packed[:, first : first + size], alone)
        first += size
    assert np.abs(packed - logits_of(LLAMA, params, tokens)).max() > 0.1


@pytest.mark.parametrize("heads, groups, count", [(4, 4, 6), (4, 2, 150), (4, 1, 300)])
def test_the_form_for_cpus_is_jax_s_attention(heads, groups, count, key):
    """In one, two and four blocks of queries, of which the last is shorter."""
    keys = jax.random.split(key, 3)
    q = jax.random.normal(keys[0], (2, count, heads, 8))
    k, v = (jax.random.normal(keys[i], (2, count, groups, 8)) for i in (1, 2))
    segments = 1 + jnp.arange(2 * count).reshape(2, count) // (2 * count // 5)
    mask = transformer.document_mask(segments)

    def run(attend):
        value = lambda *qkv: jnp.sum(jnp.sin(attend(*qkv)))  # noqa: E731
        both = lambda *qkv: (attend(*qkv), *jax.grad(value, argnums=(0, 1, 2))(*qkv))  # noqa: E731
        return jax.jit(both)(q, k, v)

    want = run(lambda *qkv: jax.nn.dot_product_attention(*qkv, mask=mask))
    for got, reference in zip(run(lambda *qkv: transformer.attend(*qkv, mask)), want, strict=True):
        assert_close(got, reference)


@pytest.mark.parametrize("net", [GPT2, LLAMA], ids=["gpt2", "llama"])
def test_a_cache_gives_the_logits_of_whole_rows(net):
    """First some tokens at once, then one by one; what the cache holds beyond them is not read."""
    tokens, params = some_tokens(), made(net)
    want = logits_of(net, params, tokens)

    @functools.partial(jax.jit, static_argnames="count")
    def extend(cache, position, count):
        part = jax.lax.dynamic_slice_in_dim(tokens, position, count, axis=1)
        mask = transformer.causal_mask(position, count, CONTEXT)
        return net.apply({"params": params}, part, mask, position, cache)

    cache = jax.tree.map(lambda leaf: leaf + 9.0, net.empty_cache(tokens))
    got, cache = extend(cache, jnp.int32(0), 5)
    parts = [got]
    for position in range(5, CONTEXT):
        got, cache = extend(cache, jnp.int32(position), 1)
        parts.append(got)
    assert_close(jnp.concatenate(parts, axis=1), want)


def loss_and_grads(net, params, key=None):
    tokens = some_tokens()
    weight = np.random.default_rng(1).normal(size=(*tokens.shape, VOCAB)).astype(np.float32)
    rngs, index = (None, None) if key is None else ({"dropout": key}, jnp.arange(len(tokens)))

    def loss(params):
        logits, _ = net.apply(
            {"params": params}, tokens, one_document(tokens), index=index, rngs=rngs
        )
        return jnp.mean(logits * weight), logits

    grads, logits = jax.jit(jax.grad(loss, has_aux=True))(params)
    return logits, grads


@pytest.mark.parametrize("scan_layers, remat", [(True, False), (False, True), (True, True)])
def test_scanned_or_recomputed_layers_are_the_same_net(scan_layers, remat):
    plain = made(LLAMA)
    net = LLAMA.clone(scan_layers=scan_layers, layer=dataclasses.replace(LLAMA.layer, remat=remat))
    params = plain
    if scan_layers:
        stacked = jax.tree.map(
            lambda *leaves: jnp.stack(leaves), plain["layer_0"], plain["layer_1"]
        )
        params = {k: v for k, v in plain.items() if not k.startswith("layer_")}
        params["layers"] = stacked
        check_same_shapes(net, params)
    logits, grads = loss_and_grads(net, params)
    want_logits, want_grads = loss_and_grads(LLAMA, plain)
    assert_close(logits, want_logits)
    grads = transformer.unrolled(grads, DEPTH)
    assert jax.tree.structure(grads) == jax.tree.structure(want_grads)
    jax.tree.map(assert_close, grads, want_grads)


@pytest.mark.parametrize("scan_layers", [False, True])
def test_dropout_is_random_in_training_alone(scan_layers, key):
    layer = dataclasses.replace(LLAMA.layer, dropout=0.5)
    net = LLAMA.clone(layer=layer, scan_layers=scan_layers)
    plain = LLAMA.clone(scan_layers=scan_layers)
    params = made(plain)
    tokens = some_tokens()
    np.testing.assert_array_equal(logits_of(net, params, tokens), logits_of(plain, params, tokens))
    one, other = (loss_and_grads(net, params, jax.random.key(seed))[0] for seed in (1, 2))
    np.testing.assert_array_equal(one, loss_and_grads(net, params, jax.random.key(1))[0])
    assert np.abs(one - other).max() > 0.1


def test_dropout_is_on_the_embeddings_and_twice_in_each_layer_each_its_own(key):
    net = LLAMA.clone(layer=dataclasses.replace(LLAMA.layer, dropout=0.5))
    tokens = some_tokens()
    _, kept = net.apply(
        {"params": made(LLAMA)},
        tokens,
        one_document(tokens),
        index=jnp.arange(len(tokens)),
        rngs={"dropout": key},
        capture_intermediates=lambda module, _: isinstance(module, layers.Dropout),
    )
    masks = np.stack([np.asarray(leaf) != 0 for leaf in jax.tree.leaves(kept)])
    assert masks.shape == (1 + 2 * DEPTH, *tokens.shape, DIM)
    close = 5 * 0.5 / np.sqrt(masks[0].size)
    np.testing.assert_allclose(masks.mean(axis=(1, 2, 3)), 0.5, atol=close)
    for one, other in itertools.combinations(masks, 2):
        np.testing.assert_allclose(np.mean(one == other), 0.5, atol=close)


def products(jaxpr):
    """The dtypes that are multiplied in a program, in loops and calls too."""
    for equation in jaxpr.eqns:
        if equation.primitive.name == "dot_general":
            yield {value.aval.dtype.name for value in equation.invars}
        for inner in jaxprs_in_params(equation.params):
            yield from products(inner)


@pytest.mark.parametrize("looped", [False, True])
@pytest.mark.parametrize("kind", [GPT2, LLAMA], ids=["gpt2", "llama"])
def test_bfloat16_layers_multiply_in_bfloat16(kind, looped):
    net = kind.clone(
        dtype="bfloat16", scan_layers=looped, layer=dataclasses.replace(kind.layer, remat=looped)
    )
    tokens = some_tokens()
    mask = one_document(tokens)
    params = jax.jit(net.init)(jax.random.key(0), tokens, mask)
    program = jax.make_jaxpr(lambda params: net.apply(params, tokens, mask)[0])(params)
    assert program.out_avals[0].dtype == jnp.float32
    found = list(products(program.jaxpr))
    assert len(found) > 4
    assert all(dtypes == {"bfloat16"} for dtypes in found), found
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {jnp.dtype("float32")}


def test_bfloat16_is_near_float32_with_float32_parameters_and_logits():
    net = LLAMA.clone(dtype="bfloat16")
    params = made(net)
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {jnp.dtype("float32")}
    tokens = some_tokens()
    got = logits_of(net, params, tokens)
    assert got.dtype == jnp.float32
    want = logits_of(LLAMA, params, tokens)
    assert_close(got, want, 0.1)  # bfloat16 has 8 bits
    assert np.abs(got - want).max() > 1e-4
    assert all(leaf.dtype == jnp.bfloat16 for leaf in jax.tree.leaves(net.empty_cache(tokens)))


@pytest.mark.parametrize("scan_layers", [False, True])
def test_initial_weights_are_gpt2_s(scan_layers):
    """Normal with deviation 0.02, that of what a layer adds divided by sqrt(2 L); biases zero."""
    net, tokens = GPT2.clone(scan_layers=scan_layers), some_tokens()
    params = jax.jit(net.init)(jax.random.key(0), tokens, one_document(tokens))["params"]
    params = transformer.unrolled(params, DEPTH)
    kernels = []
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        names = [entry.key for entry in path]
        if names[-1] in ("kernel", "embedding"):
            deviation = 0.01 if names[-2] in ("out", "mlp_out") else 0.02
            tolerance = 5 * deviation / np.sqrt(2 * leaf.size)
            np.testing.assert_allclose(np.std(leaf), deviation, atol=tolerance)
            kernels.append(float(leaf.ravel()[0]))
        else:
            np.testing.assert_array_equal(leaf, float(names[-1] == "scale"))
    assert len(set(kernels)) == len(kernels) == 2 + 4 * DEPTH, "each is drawn by itself"
    assert transformer.residual_scale(DEPTH) == 0.5
