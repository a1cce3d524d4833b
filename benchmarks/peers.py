"""Single modules of other packages, to be compared with, without what else those packages load.

torch-fidelity and pytorch-fid load torchvision, SDMetrics plotly and copulas, and
denoising-diffusion-pytorch accelerate, which have no part in what is compared and need not even be
installed.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

EVALUATION_TESTS = Path(__file__).parents[1] / "tests" / "evaluation"


class _Absent(types.ModuleType):
    """Has every name, and nothing behind it but more names."""

    def __getattr__(self, name: str) -> types.ModuleType:
        if name.startswith("__"):
            raise AttributeError(name)
        return _Absent(f"{self.__name__}.{name}")

    def __iter__(self) -> Iterator[str]:
        return iter(())


def require(package: str) -> Path:
    """The folder of an installed package; raises `ModuleNotFoundError` where there is none."""
    loaded = sys.modules.get(package)
    spec = importlib.util.find_spec(package) if loaded is None else None
    places = loaded.__path__ if loaded else spec.submodule_search_locations if spec else None
    if not places:
        raise ModuleNotFoundError(f"No module named {package!r}", name=package)
    return Path(next(iter(places)))


def module(name: str, *absent: str) -> Any:
    """A module whose packages run no `__init__`, and for which `absent` ones are empty."""
    parts = name.split(".")
    folder = require(parts[0])
    for i in range(1, len(parts)):
        package = types.ModuleType(".".join(parts[:i]))
        package.__path__ = [str(folder.joinpath(*parts[1:i]))]
        sys.modules.setdefault(package.__name__, package)
    empty = {other: _Absent(other) for other in absent if other not in sys.modules}
    sys.modules.update(empty)
    try:
        return importlib.import_module(name)
    finally:  # Whoever looks for them later finds what there is.
        for other in empty:
            del sys.modules[other]


def torch_fidelity(name: str) -> Any:
    """`torch_fidelity.<name>`."""
    return module(f"torch_fidelity.{name}", "torch_fidelity.utils")


def pytorch_fid() -> Any:
    """`pytorch_fid.fid_score`."""
    absent = ("torchvision", "torchvision.transforms", "pytorch_fid.inception")
    return module("pytorch_fid.fid_score", *absent)


def sdmetrics_dcr() -> Any:
    """`sdmetrics.single_table.privacy.dcr_utils`."""
    return module("sdmetrics.single_table.privacy.dcr_utils")


def denoising_diffusion() -> Any:
    """`denoising_diffusion_pytorch.denoising_diffusion_pytorch`, without its progress bars."""
    absent = ("accelerate", "ema_pytorch", "torchvision")
    found = module("denoising_diffusion_pytorch.denoising_diffusion_pytorch", *absent)
    found.tqdm = lambda steps, **_: steps
    return found


def of_the_tests(name: str) -> Any:
    """A module beside the tests of evaluation: the weights' recipe, the PyTorch twin."""
    spec = importlib.util.spec_from_file_location(name, EVALUATION_TESTS / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    found = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(found)
    return found
