"""Synthetic examples as data that any Grain pipeline reads, and real data mixed with them.

    source = load_sampler("runs/mnist_rare/export").source({"label": labels}, seed=0)
    stream = mix(real, source, weights=(0.75, 0.25), seed=0).batch(64)

Example i of a source is a function of (weights, seed, plan row i), so any host may read any part.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, NoReturn, SupportsIndex, overload

import grain
import numpy as np

from genaug.data.splits import permutation
from genaug.types import UserError

Plan = Mapping[str, np.ndarray]
Draw = Callable[[Plan], Mapping[str, np.ndarray]]
_FINITE = 2**40


class SyntheticSource:
    """Random access to what a sampler draws of every row of a plan.

    Rows are drawn in blocks, which are kept for a while; while one is read in order the next is
    drawn by a thread. Read it in order, therefore: to have another order, permute the plan
    (`permuted`), which changes no example. Not to be read by Grain's worker processes, which would
    each start JAX: write the examples with `genaug sample --format arrayrecord` for those.
    """

    def __init__(self, draw: Draw, plan: Plan, *, block_size: int = 256, kept_bytes: int = 2**29):
        """draw: the sampler, bound to its key: one row per row of a plan's part.

        plan:       conditions, one row an example, "index" among them.
        kept_bytes: of blocks, two at least. Grain's threads read a batch each at the same time, so
                    it should hold some 20 batches.
        """
        self._draw, self._plan = draw, dict(plan)
        self._block_size, self._kept_bytes = block_size, kept_bytes
        self._blocks: OrderedDict[int, Future[dict[str, np.ndarray]]] = OrderedDict()
        self._lock = threading.Lock()
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="genaug-draw")

    def __len__(self) -> int:
        return len(self._plan["index"])

    def __repr__(self) -> str:  # Grain keeps it with a pipeline's state: the same in any process
        return f"SyntheticSource({len(self)})"

    def __reduce__(self) -> NoReturn:
        raise UserError(
            "Synthetic examples are drawn in this process, and a worker process was to read them: "
            "use threads, or write them first (genaug sample --format arrayrecord)."
        )

    @property
    def index(self) -> np.ndarray:
        """The address of every example: `fold_in(key, index)` makes it again."""
        return self._plan["index"]

    @overload
    def __getitem__(self, at: SupportsIndex) -> dict[str, np.ndarray]: ...
    @overload
    def __getitem__(self, at: slice) -> SyntheticSource: ...
    def __getitem__(self, at: Any) -> Any:
        """One example; of a slice, a source of those alone, which draws no others."""
        if isinstance(at, slice):
            return self._with({name: column[at] for name, column in self._plan.items()})
        number = at.__index__()
        if not -len(self) <= number < len(self):
            raise IndexError(f"example {number} of {len(self)}")
        block, row = divmod(number % len(self), self._block_size)
        return {name: column[row] for name, column in self._block(block).items()}

    def permuted(self, seed: int) -> SyntheticSource:
        """The same examples in another order."""
        order = permutation(len(self), seed)
        return self._with({name: column[order] for name, column in self._plan.items()})

    def _with(self, plan: Plan) -> SyntheticSource:
        return SyntheticSource(
            self._draw, plan, block_size=self._block_size, kept_bytes=self._kept_bytes
        )

    def _block(self, number: int) -> dict[str, np.ndarray]:
        with self._lock:
            in_order = number == 0 or number - 1 in self._blocks
            for wanted in (number, number + 1) if in_order else (number,):
                if wanted not in self._blocks and wanted * self._block_size < len(self):
                    self._blocks[wanted] = self._thread.submit(self._drawn, wanted)
            found = self._blocks[number]
            self._blocks.move_to_end(number)
        block = found.result()
        most = max(2, self._kept_bytes // max(sum(column.nbytes for column in block.values()), 1))
        with self._lock:
            while len(self._blocks) > most:
                self._blocks.popitem(last=False)
        return block

    def _drawn(self, number: int) -> dict[str, np.ndarray]:
        rows = slice(number * self._block_size, (number + 1) * self._block_size)
        return dict(self._draw({name: column[rows] for name, column in self._plan.items()}))


def mix(
    real: Any,
    synthetic: SyntheticSource,
    weights: Sequence[float] = (0.5, 0.5),
    *,
    seed: int = 0,
    shard: int = 0,
    num_shards: int = 1,
) -> grain.MapDataset:
    """Real and synthetic examples in the proportion of `weights`, without end, each in an order
    that `seed` gives; an epoch of either part begins when that part is through.

    real:   random access to examples with the keys, shapes and dtypes of the synthetic ones.
    shard:  of `num_shards`, which part a host reads. Each part is cut before they are mixed: a cut
            through the mixture, which is periodic, would give one host all of the real ones.

    An element also has "synthetic" int32 (1 or 0) and "source_id" int32, its position in `real` or
    its address in the sampler. Batch it (`.batch(n)`) and iterate (`.to_iter_dataset()`); Grain
    saves and restores the place exactly. Raises UserError for parts that do not fit together.
    """
    if len(weights) != 2 or min(weights) <= 0:
        raise UserError(f"weights are {tuple(weights)}; two numbers above 0, real and synthetic.")
    if not 0 <= shard < num_shards:
        raise UserError(f"shard is {shard} of {num_shards}; expected 0 to {num_shards - 1}.")
    parts = real if isinstance(real, grain.MapDataset) else grain.MapDataset.source(real)
    for name, size in (("real", len(parts)), ("synthetic", len(synthetic))):
        if not num_shards <= size < _FINITE:
            raise UserError(f"The {name} part has {size} examples for {num_shards} hosts.")
    _require_alike(parts[0], synthetic[0])
    mine, count = synthetic.permuted(seed)[shard::num_shards], len(parts)
    # Grain counts on over epochs: the place in a part is what is left of its index.
    return grain.MapDataset.mix(
        [
            parts.map_with_index(lambda i, example: _marked(example, 0, i % count))
            .seed(seed)
            .shuffle()[shard::num_shards]
            .repeat(),
            grain.MapDataset.source(mine)
            .map_with_index(lambda i, example: _marked(example, 1, int(mine.index[i % len(mine)])))
            .repeat(),
        ],
        weights,
    )


def _marked(example: Mapping[str, Any], synthetic: int, source_id: int) -> dict[str, Any]:
    return {**example, "synthetic": np.int32(synthetic), "source_id": np.int32(source_id)}


def _require_alike(real: Any, synthetic: Mapping[str, Any]) -> None:
    if not isinstance(real, Mapping):
        raise UserError(f"A real example is {type(real).__name__}; expected names with arrays.")
    shown = [
        {name: f"{np.asarray(v).dtype}{list(np.shape(v))}" for name, v in example.items()}
        for example in (real, synthetic)
    ]
    for name in sorted(shown[0].keys() | shown[1].keys()):
        have, want = (each.get(name, "nothing") for each in shown)
        if have != want:
            raise UserError(
                f"{name!r} is {have} in the real examples and {want} in the synthetic ones: bring "
                "the real ones to the same with `.map`."
            )
