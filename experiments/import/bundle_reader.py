"""A sampler bundle in a program without genaug: copy this file.

pip install jax safetensors flatbuffers
python bundle_reader.py runs/mnist_rare/export rows.npz 16
"""

import hashlib
import json
import sys
from pathlib import Path

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
from safetensors.numpy import load


def load_sampler(directory):
    """`(sample, about)`: `sample(key, cond) -> rows`, for use inside `jax.jit`, and bundle.json."""
    directory = Path(directory)
    content = {}
    for line in (directory / "SHA256SUMS").read_text().splitlines():
        digest, name = line.split("  ")
        content[name] = (directory / name).read_bytes()
        if hashlib.sha256(content[name]).hexdigest() != digest:
            raise ValueError(f"{directory / name} has been altered")
    about = json.loads(content["bundle.json"])
    program = jax.export.deserialize(bytearray(content["sampler.stablehlo"]))
    weights = load(content["weights.safetensors"])

    def sample(key, cond):
        """One row per row of cond["index"], its address; a row is the same in any batch."""
        if unknown := cond.keys() - about["conditions"].keys():
            raise ValueError(f"this sampler does not read {', '.join(sorted(unknown))}")
        full = {}
        for name, field in about["conditions"].items():
            if name not in cond and "default" not in field:
                raise ValueError(f"cond lacks {name!r}")
            value = cond.get(name, field.get("default"))
            shape = (len(cond["index"]), *field["shape"])
            full[name] = jnp.broadcast_to(jnp.asarray(value, field["dtype"]), shape)
        return program.call(weights, jax.random.key_data(key), full)

    return sample, about


if __name__ == "__main__":
    sample, about = load_sampler(sys.argv[1])
    cond = {"index": jnp.arange(int(sys.argv[3]))}
    if "label" in about["conditions"]:
        cond["label"] = cond["index"] % about["conditions"]["label"]["num_classes"]
    rows = jax.jit(sample)(jax.random.key(0), cond)
    np.savez(sys.argv[2], **rows)
    print(", ".join(f"{name} {row.dtype}{list(row.shape)}" for name, row in rows.items()))
