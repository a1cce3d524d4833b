"""A process that is told to stop where it says: `signal_worker.py PHASE FOLDER SIGNAL TIMES`.

It trains one number and sends the signal to itself in a phase. Exit codes are the command line's.
"""

import os
import sys
import threading
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

jax.config.update("jax_num_cpu_devices", 2)

from genaug import checkpoint, signals  # noqa: E402
from genaug.devices import Mesh, make_mesh  # noqa: E402
from genaug.train import Hook, Train, fit  # noqa: E402
from genaug.types import GenerativeModel, UserError  # noqa: E402

CONFIG = Train(
    num_steps=40, batch_size=2, steps_per_call=2, evaluate_every=8, sample_every=8,
    checkpoint_every=8,
)  # fmt: skip


def model(at, tell):
    def step(state, batch, key):
        if at == "compile":
            tell()
        now = batch["number"][0]
        jax.debug.callback(lambda n: tell() if at == "step" and n == 10 else None, now)
        return {"x": state["x"] + jax.random.normal(key)}, {"loss": jnp.float32(0.0)}

    return GenerativeModel(
        init=lambda key: {"x": jnp.zeros(())},
        step=step,
        weights=lambda state: state,
        sample=lambda weights, key, cond: cond,
        score=lambda weights, batch, key: {},
    )


def main(phase, folder, number, times):
    told = []

    def tell():
        if not told:
            told.append(time.monotonic())
            for _ in range(times):
                os.kill(os.getpid(), number)
                time.sleep(0.2 if times > 1 else 0)

    def hook(name, at):
        def call(step, state):
            with (folder / "hooks").open("a") as file:
                file.write(f"{name} {step} begun\n")
            if phase == name and step == at:
                if phase == "stuck":
                    threading.Timer(0.5, tell).start()
                    endless = jax.lax.while_loop(lambda x: x >= 0, lambda x: (x + 1) % 7, step)
                    endless.block_until_ready()
                tell()
                time.sleep(0.2)
            with (folder / "hooks").open("a") as file:
                file.write(f"{name} {step} {float(state['x']):.9g}\n")

        return Hook(8, call)

    if phase == "save":
        save = checkpoint.ocp.save

        def slow(path, *arguments, **options):
            if Path(path).name == "16":
                tell()
            save(path, *arguments, **options)

        checkpoint.ocp.save = slow
    if phase == "stuck":
        signals.GRACE_S = 0.5

    try:
        state = fit(
            model(phase, tell),
            lambda start, stop: ({"number": np.full(2, i)} for i in range(start, stop)),
            CONFIG,
            key=jax.random.key(0),
            mesh=make_mesh(Mesh(data=2)),
            checkpoints=folder / "checkpoints",
            hooks=[hook("evaluate", 16), hook("sample", 24), hook("stuck", 16)],
        )
    except UserError as error:
        print(error)
        return error.exit_code
    print(f"{float(state['x']):.9g}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4])))
