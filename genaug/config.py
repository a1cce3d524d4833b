"""An experiment: what a run does, as one frozen dataclass; from a file, the command line, JSON."""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import importlib
import importlib.util
import io
import re
import traceback
import typing
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from genaug.augmentation import Balance, Filters
from genaug.data.config import Data
from genaug.data.text import TextData
from genaug.devices import Mesh
from genaug.evaluation.study import Study
from genaug.train import Train
from genaug.types import ModelConfig, UserError


@dataclass(frozen=True, kw_only=True)
class Experiment:
    """Everything that determines a run's results."""

    name: str  # the run folder is runs/NAME
    model: ModelConfig
    data: Data | TextData = field(default_factory=Data)
    train: Train = field(default_factory=Train)
    balance: Balance = field(default_factory=Balance)
    filters: Filters = field(default_factory=Filters)
    study: Study = field(default_factory=Study)
    mesh: Mesh = field(default_factory=Mesh)
    seed: int = 0


def load(path: str) -> Experiment:
    """The experiment that a Python file's `config()` returns. The file is code, and is run."""
    file = Path(path)
    if not file.is_file():
        known = sorted(str(p) for p in Path("experiments").glob("*.py"))
        raise UserError(f"There is no experiment file {path}.{nearest_name(path, known)}")
    spec = importlib.util.spec_from_file_location(f"experiment_{file.stem}", file)
    if spec is None or spec.loader is None:
        raise UserError(f"{path} is no Python file: an experiment is a .py file with config().")
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
        make = getattr(module, "config", None)
        experiment = make() if callable(make) else None
    except UserError:
        raise
    except SyntaxError as error:
        raise UserError(f"{path}, line {error.lineno}: {error.msg}.") from error
    except Exception as error:  # the user's own code
        lines = [f.lineno for f in traceback.extract_tb(error.__traceback__)
                 if f.filename == str(file)]  # fmt: skip
        line = f", line {lines[-1]}" if lines else ""
        words = f"{type(error).__name__}: {error}.{_nearest_field(error, module)}"
        raise UserError(f"{path}{line}: {words}") from error
    if not isinstance(experiment, Experiment):
        raise UserError(f"{path} has no function config() that returns a genaug Experiment.")
    return experiment


def _nearest_field(error: Exception, module: Any) -> str:
    """` Did you mean X?` of an argument that a dataclass does not take, or nothing."""
    unknown = re.fullmatch(r"(\w+)\.__init__\(\) got an unexpected .*'(\w+)'", str(error))
    kind = getattr(module, unknown[1], None) if unknown else None
    if not unknown or not dataclasses.is_dataclass(kind):
        return ""
    return nearest_name(unknown[2], [field.name for field in dataclasses.fields(kind)])


def nearest_name(name: str, known: list[str]) -> str:
    """` Did you mean X?` for the known name that is most like a mistyped one, or nothing."""
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    return f" Did you mean {close[0]}?" if close else ""


def flags(config: Any, prefix: str = "--") -> list[str]:
    """The flag of every field, nested ones dotted: `--model.latent-dim`."""
    names = []
    for entry in dataclasses.fields(config):
        value, name = getattr(config, entry.name), prefix + entry.name.replace("_", "-")
        if dataclasses.is_dataclass(value):
            names += flags(value, name + ".")
        elif isinstance(value, bool):
            negated = ".no-".join(name.rsplit(".", 1)) if "." in name else f"--no-{name[2:]}"
            names += [name, negated]
        else:
            names.append(name)
    return names


def override(
    experiment: Experiment, arguments: list[str], options: Sequence[str] = ()
) -> Experiment:
    """The experiment with fields replaced by `--field value` arguments, checked by type.

    options: what the command takes beside them; one of these may have been meant.
    """
    import tyro

    known = flags(experiment)
    for argument in arguments:
        flag = argument.split("=")[0].replace("_", "-")
        if argument.startswith("--") and argument != "--help" and flag not in known:
            raise UserError(
                f"There is no field {flag}.{nearest_name(flag, [*known, *options])} "
                "All fields: add --help after the experiment file."
            )
    printed = io.StringIO()
    capture = contextlib.nullcontext() if "--help" in arguments else _captured(printed)
    try:
        with capture:
            parsed = tyro.cli(
                tyro.conf.AvoidSubcommands[_concrete(experiment)],  # type: ignore[misc]
                args=arguments,
                default=_concrete(experiment)(**vars(experiment)),
                prog="genaug run EXPERIMENT",
            )
    except SystemExit as stop:
        if stop.code in (0, None):
            raise
        raise UserError(_one_line(printed.getvalue())) from None
    return dataclasses.replace(experiment, **vars(parsed))


def _concrete(config: Any) -> Any:
    """The dataclass of a config with every field typed by what is in it.

    An experiment's model is any family; its flags are those of the family at hand.
    """
    hints = typing.get_type_hints(type(config))
    fields = [
        (
            f.name,
            type(v) if dataclasses.is_dataclass(v := getattr(config, f.name)) else hints[f.name],
        )
        for f in dataclasses.fields(config)
    ]
    return dataclasses.make_dataclass(type(config).__name__, fields, frozen=True, kw_only=True)


@contextlib.contextmanager
def _captured(into: io.StringIO) -> Iterator[None]:
    with contextlib.redirect_stderr(into), contextlib.redirect_stdout(into):
        yield


def _one_line(box: str) -> str:
    """What a parser's boxed message says: a title, a ruling, the message, a ruling, the field."""
    parts = re.split(r"[─-]{3,}", re.sub(r"[│╭╮╰╯]", " ", box))
    texts = [" ".join(part.split()) for part in parts]
    message = next((text for text in texts[1:] if text), " ".join(texts))
    message = message.split(" Got errors: ")[0].rstrip(".")
    field = re.search(r"Argument helptext:\s+(--.+)", box)  # its first line: flag and type
    expected = re.sub(r"[│\s]+$| \(default.*", "", field[1]) if field else ""
    return f"{message[:1].upper()}{message[1:]}." + (f" Expected: {expected}." if expected else "")


def to_json(config: Any) -> Any:
    """Dataclasses as {"type": "module:name", fields...}, tuples as lists."""
    if dataclasses.is_dataclass(config) and not isinstance(config, type):
        kind = type(config)
        fields = {f.name: to_json(getattr(config, f.name)) for f in dataclasses.fields(config)}
        return {"type": f"{kind.__module__}:{kind.__qualname__}", **fields}
    if isinstance(config, (tuple, list)):
        return [to_json(value) for value in config]
    return config


def from_json(value: Any, where: str = "config") -> Any:
    """The inverse of `to_json`. Only dataclasses of genaug are made: a config is data, not code."""
    if isinstance(value, list):
        return tuple(from_json(item, where) for item in value)
    if not isinstance(value, dict):
        return value
    module, _, name = str(value.get("type", "")).partition(":")
    if module.split(".")[0] != "genaug":
        raise UserError(f"{where}: {value.get('type')!r} is no dataclass of genaug.")
    try:
        kind = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError):
        raise UserError(f"{where}: this genaug has no {module}:{name}.") from None
    if not (isinstance(kind, type) and dataclasses.is_dataclass(kind)):
        raise UserError(f"{where}: {module}:{name} is no dataclass.")
    known = [f.name for f in dataclasses.fields(kind)]
    given = {key: item for key, item in value.items() if key != "type"}
    for key in given:
        if key not in known:
            raise UserError(f"{where}: {name} has no field {key}.{nearest_name(key, known)}")
    made = {key: from_json(item, f"{where}.{key}") for key, item in given.items()}
    try:
        return kind(**made)
    except TypeError:
        missing = ", ".join(key for key in known if key not in given)
        raise UserError(f"{where}: {name} needs a value for {missing}.") from None


def experiment_from_json(value: Any, where: str) -> Experiment:
    """The experiment that a config.json holds."""
    experiment = from_json(value)
    if not isinstance(experiment, Experiment):
        raise UserError(f"{where} holds no experiment: name the folder of a run.")
    return experiment


def rare_classes(experiment: Experiment) -> tuple[str, ...]:
    """The classes that are cut, by name; texts have none."""
    return experiment.data.rare_classes if isinstance(experiment.data, Data) else ()
