"""Training and sampling on meshes that may span processes: what `test_processes` compares.

`python mesh_worker.py OUT.npz COORDINATOR NUM_PROCESSES PROCESS_ID DEVICES` trains every case as
one of several processes; the test calls `trained` itself for what one process finds.
"""

import dataclasses
import importlib.util
import sys
from pathlib import Path

import jax
import numpy as np

from genaug import layouts, parallel, processes
from genaug.data import batches, pipeline
from genaug.devices import Mesh, make_mesh
from genaug.sampling import make_sampler
from genaug.state import SGD

BATCH = 16

CASES = {  # by the number of devices: an experiment, and how its devices share the work
    8: {
        "fsdp": ("mnist_vae", Mesh(data=2, fsdp=4, min_split=64)),
        "pmap": ("mnist_vae", Mesh(strategy="pmap")),
    },
    2: {"tensor over two processes": ("pydoc_lm", Mesh(data=1, tensor=2))},
}


def trained(name: str, config: Mesh) -> dict[str, np.ndarray]:
    """Every array of the state after 4 updates under SGD, and 8 samples."""
    path = Path(__file__).parents[1] / "experiments" / f"{name}.py"
    spec = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    experiment = module.tiny()
    dataset, splits = experiment.data.read()
    model = dataclasses.replace(experiment.model, optimizer=SGD(learning_rate=1e-3)).make(
        dataset.spec
    )
    mesh, key = make_mesh(config), jax.random.key(3)
    rows = layouts.local_rows(BATCH, mesh)
    stream = pipeline(dataset, splits.train, batch_size=BATCH, seed=0, rows=rows)
    found = list(batches(stream, 0, 4))
    stack = {name: np.stack([batch[name] for batch in found]) for name in found[0]}
    state = parallel.compile_init(model.init, mesh)(key)
    run = parallel.compile_steps(model.step, mesh, layouts.abstract(model.init, mesh))
    state, metrics = run(state, layouts.split_rows(stack, mesh, axis=1), key, 0)
    weights = model.weights(state)
    samples = make_sampler(model, weights, mesh, 8)(key, {"index": np.arange(8, dtype=np.int32)})
    tree = {"state": layouts.to_host(state), "metrics": jax.device_get(metrics), "sample": samples}
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(path): np.asarray(leaf) for path, leaf in leaves}


if __name__ == "__main__":
    out, coordinator, num_processes, process_id, devices = sys.argv[1:]
    jax.config.update("jax_num_cpu_devices", int(devices))
    jax.config.update("jax_disable_most_optimizations", True)  # as conftest.py
    meeting = processes.Meeting(
        coordinator=coordinator,
        num_processes=int(num_processes),
        process_id=int(process_id),
        timeout_s=120,
    )
    with processes.joined(meeting):
        arrays = {
            f"{case}: {name}": array
            for case, (experiment, mesh) in CASES[jax.device_count()].items()
            for name, array in trained(experiment, mesh).items()
        }
        if processes.is_first():
            np.savez(out, **arrays)
