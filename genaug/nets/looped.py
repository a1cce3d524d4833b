"""A net's layers as one, compiled once and looped over a stack of their parameters.

Where devices keep a share each of the parameters, who knows the devices says, while a program is
traced, how those of a layer are fetched (`fetching`). They are when the loop comes to it, forward
and backward, so that of a net larger than a device no more than a layer is ever whole on one.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from contextvars import ContextVar
from functools import partial
from typing import Any

import flax.linen as nn

from genaug.nets.told import told

STACKS = ("layers", "blocks")
"""What nets name their stacks: parameters of all layers, along a leading axis. The names are for
`looped` alone: what bears one otherwise would be found in shares, fetched by nobody."""

Fetch = Callable[[str, Any], Any]
"""`(name of the stack, parameters of one layer as they are kept)` to what it computes with."""

_FETCH: ContextVar[Fetch | None] = ContextVar("fetch", default=None)

_OF_PARAMETERS = ("all_gather", "convert_element_type", "reshape", "transpose")
"""Operations that fetch parameters or change their form."""


def fetching(fetch: Fetch | None) -> AbstractContextManager[None]:
    """What is traced within fetches the parameters of a looped layer so."""
    return told(_FETCH, fetch)


def looped(block: type[nn.Module], name: str, length: int, remat: bool) -> Callable[..., nn.Module]:
    """The constructor of `length` layers in a row: `block`'s, with an `x` in and `(x, None)` out.

    What it is called with besides x every layer gets. `name` is one of `STACKS`; with `remat` a
    layer's activations are computed again in the backward pass rather than kept.
    """
    assert name in STACKS, name
    fetch = _FETCH.get()
    if fetch is not None:
        block = nn.map_variables(block, "params", lambda of: {"params": fetch(name, of["params"])})
    if remat:
        block = nn.remat(block)
    elif fetch is not None:
        # Fetched parameters would else be kept for the backward pass: those of all layers.
        block = nn.remat(block, prevent_cse=False, policy=_no_parameters)
    stack = nn.scan(
        block,
        variable_axes={"params": 0},
        split_rngs={"params": True, "dropout": True},
        in_axes=nn.broadcast,
        length=length,
    )
    return partial(stack, name=name)


def _no_parameters(primitive: Any, *_: Any, **__: Any) -> bool:
    """A policy of `jax.checkpoint`: all is kept but fetched parameters, in whatever form."""
    return primitive.name not in _OF_PARAMETERS
