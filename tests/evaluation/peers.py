"""Single modules of other packages, to agree with, without what the rest of those packages asks."""

import importlib
import importlib.util
import sys
import types

import pytest


def torch_fidelity(monkeypatch, name):
    """`torch_fidelity.<name>`, whose package would import torchvision; skips where it is not."""
    pytest.importorskip("torch", reason="torch-fidelity needs it")
    utils = types.ModuleType("torch_fidelity.utils")
    for function in (
        "create_feature_extractor",
        "extract_featuresdict_from_input_id_cached",
        "resolve_feature_extractor",
        "resolve_feature_layer_for_metric",
    ):
        setattr(utils, function, None)
    _empty_packages(monkeypatch, "torch_fidelity")
    monkeypatch.setitem(sys.modules, "torch_fidelity.utils", utils)
    return importlib.import_module(f"torch_fidelity.{name}")


def sdmetrics_dcr(monkeypatch):
    """`sdmetrics.single_table.privacy.dcr_utils`; skips where it is not."""
    pytest.importorskip("pandas", reason="SDMetrics needs it")
    privacy = "sdmetrics.single_table.privacy"
    _empty_packages(monkeypatch, "sdmetrics", "sdmetrics.single_table", privacy)
    return importlib.import_module(f"{privacy}.dcr_utils")


def _empty_packages(monkeypatch, root, *inner):
    spec = importlib.util.find_spec(root)
    if spec is None:
        pytest.skip(f"{root} is not installed")
    for name in (root, *inner):
        package = types.ModuleType(name)
        folders = name.split(".")[1:]
        package.__path__ = ["/".join([at, *folders]) for at in spec.submodule_search_locations]
        monkeypatch.setitem(sys.modules, name, package)
