"""Text from the PyTorch twin of the language model, with a cache of keys and values.

And the same weights in Hugging Face's GPT-2, whose `generate` is what most would use.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.lm_twin import GPT


class Decoder:
    """The likeliest token after each, from a start token on.

    static: the cache is attended to as a whole under a mask, which is what compiles to one program;
            else only as far as it is filled.
    """

    def __init__(self, net: GPT, rows: int, length: int, static: bool):
        self.net, self.length = net, length
        heads = net.num_heads
        shape = (rows, heads, length - 1, net.tokens.weight.shape[1] // heads)
        self.cache = [(torch.zeros(shape), torch.zeros(shape)) for _ in net.layers]
        self.one = torch.compile(self._masked) if static else self._filled
        self.static = static

    def _qkv(self, layer: Any, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        q, k, v = (
            layer.qkv(layer.attention_norm(x)).view(len(x), 3, layer.num_heads, 1, -1).unbind(1)
        )
        return q, k, v

    def _rest(self, layer: Any, x: Tensor, y: Tensor) -> Tensor:
        x = x + layer.out(y.reshape(x.shape))
        return x + layer.mlp_out(F.gelu(layer.mlp_in(layer.mlp_norm(x)), approximate="tanh"))

    def _filled(self, token: Tensor, position: int) -> Tensor:
        net = self.net
        x = net.tokens(token) + net.positions.weight[position]
        for layer, (keys, values) in zip(net.layers, self.cache, strict=True):
            q, k, v = self._qkv(layer, x)
            keys[:, :, position : position + 1] = k
            values[:, :, position : position + 1] = v
            seen = slice(0, position + 1)
            y = F.scaled_dot_product_attention(q, keys[:, :, seen], values[:, :, seen])
            x = self._rest(layer, x, y)
        return (net.norm(x) @ net.tokens.weight.T).argmax(1)

    def _masked(self, token: Tensor, position: Tensor) -> Tensor:
        net = self.net
        x = net.tokens(token) + net.positions.weight[position]
        mask = (torch.arange(self.length - 1) <= position)[None, None, None]
        for layer, (keys, values) in zip(net.layers, self.cache, strict=True):
            q, k, v = self._qkv(layer, x)
            keys.index_copy_(2, position, k)
            values.index_copy_(2, position, v)
            y = F.scaled_dot_product_attention(q, keys, values, attn_mask=mask)
            x = self._rest(layer, x, y)
        return (net.norm(x) @ net.tokens.weight.T).argmax(1)

    @torch.inference_mode()
    def __call__(self, start: np.ndarray) -> np.ndarray:
        """Rows [n, length] that begin with these tokens [n]."""
        tokens = torch.empty(len(start), self.length, dtype=torch.long)
        tokens[:, 0] = torch.from_numpy(start)
        for position in range(self.length - 1):
            where: Any = torch.tensor([position]) if self.static else position
            tokens[:, position + 1] = self.one(tokens[:, position], where)
        return tokens.numpy()


def hugging_face(net: GPT, length: int) -> Callable[[np.ndarray], np.ndarray]:
    """`transformers`' GPT-2 with the twin's weights, and its `generate`."""
    import transformers

    dim, layers = net.tokens.weight.shape[1], len(net.layers)
    config = transformers.GPT2Config(
        vocab_size=len(net.tokens.weight),
        n_positions=length,
        n_embd=dim,
        n_layer=layers,
        n_head=net.num_heads,
        activation_function="gelu_new",
        bos_token_id=0,
        eos_token_id=None,
    )
    model = transformers.GPT2LMHeadModel(config).eval()
    own = {"ln_1": "attention_norm", "attn.c_attn": "qkv", "attn.c_proj": "out",
           "ln_2": "mlp_norm", "mlp.c_fc": "mlp_in", "mlp.c_proj": "mlp_out"}  # fmt: skip
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()  # the biases, which the twin lacks
        model.transformer.wte.weight.copy_(net.tokens.weight)
        model.transformer.wpe.weight[: length - 1].copy_(net.positions.weight)
        model.transformer.ln_f.weight.copy_(net.norm.weight)
        for block, layer in zip(model.transformer.h, net.layers, strict=True):
            for theirs, ours in own.items():
                weight = layer.get_submodule(ours).weight
                target = block.get_submodule(theirs).weight
                target.copy_(weight.T if weight.ndim == 2 else weight)

    @torch.inference_mode()
    def generate(start: np.ndarray) -> np.ndarray:
        ids = torch.from_numpy(start).long()[:, None]
        return model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=length - 1,
            do_sample=False,
            use_cache=True,
            pad_token_id=0,
        ).numpy()

    return generate
