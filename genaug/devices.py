"""Devices: which there are, how a config shares the work among them, and what they cannot share."""

from __future__ import annotations

import ctypes
import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AxisType

from genaug.types import UserError

_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4  # malloc.h

Shape = tuple[int, int, int]
"""How many devices along data, fsdp and tensor."""

Rule = tuple[str, int]
"""A regular expression searched for in an array's path, and the axis of it that is split."""

TRANSFORMER_RULES: tuple[Rule, ...] = (
    (r"layers?(_\d+)?/(qkv|mlp_gate|mlp_in)/(kernel|bias)$", -1),
    (r"layers?(_\d+)?/(out|mlp_out)/kernel$", -2),
)
"""What a layer computes first is split by what comes out, what it computes next by what goes in: in
between no device needs another's (Shoeybi et al. 2019, section 3)."""


@dataclass(frozen=True, kw_only=True)
class Mesh:
    """How the devices share the work: their number is data x fsdp x tensor."""

    data: int = -1  # groups of devices that hold a copy of the state each; -1 = all there are
    fsdp: int = 1  # devices over which the arrays of a copy are split for keeping
    tensor: int = 1  # devices over which matrices are split for work, by the rules
    rules: tuple[Rule, ...] = TRANSFORMER_RULES  # paths of arrays, and the axis to split
    min_split: int = 2**12  # elements; fsdp leaves smaller arrays whole
    strategy: Literal["jit", "pmap"] = "jit"  # one program over global arrays, or one per device


class DeviceMesh(NamedTuple):
    """The devices that share the work, and how; the rest of the house hands it on.

    Its axes are "data", "tensor" and, between them, one for every prime factor of fsdp ("fsdp",
    "fsdp_1", ...): along those an array can be split over several of its own.
    """

    devices: jax.sharding.Mesh
    config: Mesh

    @property
    def fsdp(self) -> tuple[str, ...]:
        """The axes that the arrays of a state are split over."""
        return self.devices.axis_names[1:-1]

    @property
    def rows(self) -> tuple[str, ...]:
        """The axes that the rows of a batch are split over."""
        return self.devices.axis_names[:-1]

    @property
    def shape(self) -> dict[str, int]:
        """How many devices lie along data, fsdp and tensor."""
        counts = self.devices.shape
        return {"data": counts["data"], "fsdp": self.config.fsdp, "tensor": counts["tensor"]}

    @property
    def size(self) -> int:
        """Over how many groups of devices the rows of a batch are split."""
        return math.prod(self.devices.shape[axis] for axis in self.rows)

    @property
    def platform(self) -> str:
        """What the devices are: "cpu", "gpu" or "tpu"."""
        return next(self.devices.devices.flat).platform


def use_cpu_cores_as_devices() -> None:
    """Make every CPU core a device; call before JAX is first used.

    Seeds of a classifier then train side by side, images are drawn and measured so, and so are the
    parts of a batch: a diffusion U-Net trains a fifth faster, another convolutional net as fast, a
    perceptron takes twice as long as on one (`--mesh.data 1`; benchmarks/CHOICES.md).
    `GENAUG_CPU_DEVICES=1` turns it off. On a machine with an accelerator it changes nothing that
    genaug uses.
    """
    wanted = os.environ.get("GENAUG_CPU_DEVICES") or str(len(os.sched_getaffinity(0)))
    if not wanted.isdigit() or int(wanted) < 1:
        raise UserError(f"GENAUG_CPU_DEVICES is {wanted!r}; it must be a whole number from 1 up.")
    jax.config.update("jax_num_cpu_devices", int(wanted))


def keep_freed_memory() -> None:
    """Have glibc give freed memory out again, not back to the system; elsewhere nothing happens.

    XLA:CPU asks for the memory of a program's intermediate arrays anew at every call. By itself
    glibc maps pages for whatever is above 32 MB, and the system fills each with zeros at its first
    use. At most 2 GiB are kept at the end of the heap. Of threads other than the main one, on
    which most programs run, glibc keeps no block above 64 MB: many updates in one call (or few
    images in one) are what helps there.
    """
    libc = ctypes.CDLL(None)
    if hasattr(libc, "gnu_get_libc_version"):
        libc.mallopt(_M_MMAP_MAX, 0)
        libc.mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)


def give_back_freed_memory() -> None:
    """What `keep_freed_memory` keeps, to the system: what is held then is what is used."""
    libc = ctypes.CDLL(None)
    if hasattr(libc, "malloc_trim"):
        libc.malloc_trim(0)


def memory_left(mesh: DeviceMesh) -> int | None:
    """Bytes that a device of this process may still take; None where nothing says.

    The devices that CPU cores are share what the machine has left.
    """
    devices = mesh.devices.local_devices
    if mesh.platform != "cpu":
        stats = devices[0].memory_stats() or {}
        return stats["bytes_limit"] - stats["bytes_in_use"] if "bytes_limit" in stats else None
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
    except OSError:
        return None
    kilobytes = [line.split()[1] for line in lines if line.startswith("MemAvailable:")]
    return int(kilobytes[0]) * 1024 // len(devices) if kilobytes else None


def make_mesh(config: Mesh) -> DeviceMesh:
    """The mesh a config asks for, of the devices of all processes; refused if there are fewer."""
    found, processes = jax.devices(), jax.process_count()
    machine = f"all {processes} processes" if processes > 1 else "this machine"
    shape = _shape(config, len(found), machine)
    if processes > 1 and math.prod(shape) < len(found):
        raise UserError(
            f"mesh.data is {config.data}, which leaves some of the {len(found)} devices of "
            f"{processes} processes idle: use --mesh.data -1, or start fewer processes."
        )
    return _arranged(found, shape, config, machine)


def own_mesh() -> DeviceMesh:
    """The devices of this process alone, each with a copy of the state."""
    return _device_mesh(np.array(jax.local_devices()).reshape(-1, 1, 1), Mesh())


def mesh_elsewhere(config: Mesh, name: str, libtpu: tuple[str, dict[str, Any]]) -> DeviceMesh:
    """The mesh a config asks for, of TPUs that are not here: to compile for, not to run on.

    name: what the machine is called in a message. The slices of a machine of several lie along
    "data": what is summed over them is gradients alone.

    Raises:
        UserError: of a config that does not fit, or a machine that libtpu does not know.
    """
    from jax.experimental import topologies

    try:
        found = topologies.get_topology_desc(libtpu[0], "tpu", **libtpu[1]).devices
    except Exception as error:  # libtpu raises whatever the part that refuses raises
        line = str(error).split("\n")[0][:200]
        raise UserError(f"--topology {name}: libtpu makes no such machine ({line}).") from error
    return _arranged(found, _shape(config, len(found), name), config, name)


def _arranged(found: list[jax.Device], shape: Shape, config: Mesh, name: str) -> DeviceMesh:
    """Devices in the order that suits their network: neighbours along the inner axes.

    pmap has an order of its own. Slices of TPUs, joined by a slower network, lie along "data".
    """
    slices = len({getattr(device, "slice_index", 0) for device in found})
    _check_slices(shape, len(found), slices, name)
    if math.prod(shape) < len(found) or config.strategy == "pmap":
        return _device_mesh(np.array(found[: math.prod(shape)]).reshape(shape), config)
    if slices > 1:
        within = (shape[0] // slices, *shape[1:])
        devices = mesh_utils.create_hybrid_device_mesh(
            within, (slices, 1, 1), devices=found, allow_split_physical_axes=True
        )
    else:
        devices = mesh_utils.create_device_mesh(
            shape, devices=found, allow_split_physical_axes=True
        )
    return _device_mesh(devices, config)


def _device_mesh(devices: np.ndarray, config: Mesh) -> DeviceMesh:
    """The mesh of devices [data, fsdp, tensor], with an axis for every prime factor of fsdp."""
    data, fsdp, tensor = devices.shape
    factors = _prime_factors(fsdp) or [1]
    names = ("fsdp", *(f"fsdp_{i}" for i in range(1, len(factors))))
    axes = ("data", *names, "tensor")
    parted = devices.reshape(data, *factors, tensor)
    types = (AxisType.Auto,) * len(axes)
    return DeviceMesh(jax.sharding.Mesh(parted, axes, axis_types=types), config)


def _prime_factors(number: int) -> list[int]:
    """Largest first; none of 1."""
    found, factor = [], 2
    while number > 1:
        while number % factor == 0:
            found.append(factor)
            number //= factor
        factor += 1
    return found[::-1]


def _shape(config: Mesh, available: int, machine: str) -> Shape:
    for name, count in (("fsdp", config.fsdp), ("tensor", config.tensor)):
        if count < 1:
            raise UserError(f"mesh.{name} is {count}; it must be at least 1.")
    group = config.fsdp * config.tensor
    if config.strategy == "pmap" and group > 1:
        raise UserError(
            f"mesh.strategy pmap copies the state to every device, but mesh.fsdp is {config.fsdp} "
            f"and mesh.tensor {config.tensor}: use --mesh.strategy jit, or 1 for both."
        )
    most = available // group
    if not most:
        raise UserError(
            f"mesh.fsdp {config.fsdp} x mesh.tensor {config.tensor} is {group}, but {machine} "
            f"has {available} device(s): their product must be from 1 to {available}."
        )
    data = most if config.data == -1 else config.data
    if not 1 <= data <= most:
        each = f" and fsdp x tensor is {group}" if group > 1 else ""
        raise UserError(
            f"mesh.data is {config.data}, but {machine} has {available} device(s){each}: "
            f"use --mesh.data -1 for all of them, or a number from 1 to {most}."
        )
    if config.data == -1 and available % group:
        raise UserError(
            f"mesh.fsdp x mesh.tensor is {group}, which does not divide the {available} devices of "
            f"{machine}: use a divisor, or --mesh.data {data} to leave {available % group} idle."
        )
    return data, config.fsdp, config.tensor


def _check_slices(shape: tuple[int, int, int], available: int, slices: int, machine: str) -> None:
    if slices > 1 and math.prod(shape) < available:
        raise UserError(f"{machine}: use all devices of its {slices} slices (--mesh.data -1).")
    if shape[0] % slices:
        raise UserError(
            f"mesh.data is {shape[0]} on {machine}, whose {slices} slices lie along it: make it a "
            "multiple, with a smaller --mesh.fsdp or --mesh.tensor."
        )


def check_batch_size(batch_size: int, mesh: DeviceMesh, accumulate: int = 1) -> None:
    """Refuse a batch that the devices cannot share equally, each of its parts."""
    _check_rows(batch_size, mesh.size, accumulate)


def check_elsewhere(
    config: Mesh, available: int, slices: int, machine: str, batch_size: int, accumulate: int
) -> None:
    """Refuse a mesh or batch that the devices of a machine that is not here cannot share."""
    shape = _shape(config, available, machine)
    _check_slices(shape, available, slices, machine)
    _check_rows(batch_size, shape[0] * shape[1], accumulate)


def _check_rows(batch_size: int, size: int, accumulate: int) -> None:
    groups = size * accumulate
    if batch_size < 1 or batch_size % groups:
        below = max(batch_size // groups, 1) * groups
        parts = f" times train.accumulate {accumulate}" if accumulate > 1 else ""
        raise UserError(
            f"train.batch-size {batch_size} is not divisible by the {size} devices of the "
            f"mesh (data x fsdp){parts}: use {below} or {below + groups}, or --mesh.data with a "
            "divisor of it."
        )
