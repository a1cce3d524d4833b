"""Experiments: JSON and back, typed overrides, files that are code and JSON that is not."""

import dataclasses
import json
from dataclasses import dataclass, field

import pytest
from tiny_run import tiny

from genaug import config
from genaug.config import Experiment, from_json, load, override, to_json
from genaug.evaluation.study import Study
from genaug.files import differences
from genaug.models.cvae import CVAE
from genaug.models.vae import VAE
from genaug.nets.autoencoder import MLP, ConvNet
from genaug.nets.likelihoods import Bernoulli
from genaug.state import SGD
from genaug.types import UserError


@pytest.mark.parametrize(
    "experiment",
    [
        tiny(),
        Experiment(name="vae", model=VAE()),
        Experiment(name="net", model=CVAE(net=ConvNet(), optimizer=SGD(momentum=0.9))),
        Experiment(name="none", model=CVAE(), study=Study(weights=(0.1,)), seed=5),
    ],
    ids=lambda e: e.name,
)
def test_json_and_back_is_the_same_experiment(experiment):
    text = json.dumps(to_json(experiment))
    assert from_json(json.loads(text)) == experiment
    assert config.experiment_from_json(json.loads(text), "here") == experiment


@pytest.mark.parametrize(
    "value, words",
    [
        ({"type": "os:system", "command": "true"}, "no dataclass of genaug"),
        ({"type": "subprocess:Popen", "args": "true"}, "no dataclass of genaug"),
        ({"type": "genaugment:Evil"}, "no dataclass of genaug"),
        ({"name": "x"}, "None is no dataclass of genaug"),
        ({"type": "genaug.cli:main", "arguments": ["--help"]}, "genaug.cli:main is no dataclass"),
        ({"type": "genaug.config:Path"}, "genaug.config:Path is no dataclass"),
        ({"type": "genaug.train:Trains"}, "this genaug has no genaug.train:Trains"),
        ({"type": "genaug.absent:Train"}, "this genaug has no genaug.absent:Train"),
        (
            {"type": "genaug.train:Train", "num_step": 3},
            "no field num_step. Did you mean num_steps",
        ),
        ({"type": "genaug.config:Experiment", "seed": 1}, "needs a value for name, model"),
    ],
)
def test_json_makes_nothing_but_dataclasses_of_genaug(value, words):
    with pytest.raises(UserError, match=words.replace("?", r"\?")):
        from_json(value)


def test_json_that_holds_another_dataclass_is_no_experiment():
    with pytest.raises(UserError, match="holds no experiment"):
        config.experiment_from_json(to_json(tiny().train), "x/config.json")


def test_an_error_in_json_says_where(tmp_path):
    value = to_json(tiny())
    value["model"]["net"]["hiden"] = [3]
    with pytest.raises(UserError, match=r"config\.model\.net: MLP has no field hiden.*hidden"):
        from_json(value)


def test_differences_name_the_nested_fields():
    old = tiny()
    new = dataclasses.replace(
        old, seed=3, model=dataclasses.replace(old.model, latent_dim=9, net=MLP(hidden=(5,)))
    )
    assert differences(to_json(old), to_json(old)) == []
    assert sorted(differences(to_json(old), to_json(new))) == [
        "model.latent-dim: 4 -> 9",
        "model.net.hidden: [32] -> [5]",
        "seed: 0 -> 3",
    ]


@pytest.mark.parametrize(
    "arguments, get, value",
    [
        (["--seed", "7"], lambda e: e.seed, 7),
        (["--model.beta", "0.5"], lambda e: e.model.beta, 0.5),
        (["--model.beta=2"], lambda e: e.model.beta, 2.0),
        (["--name", "other"], lambda e: e.name, "other"),
        (["--data.skip-bad"], lambda e: e.data.skip_bad, True),
        (["--data.no-skip-bad"], lambda e: e.data.skip_bad, False),
        (["--data.rare-classes", "1", "x y"], lambda e: e.data.rare_classes, ("1", "x y")),
        (["--data.rare-classes"], lambda e: e.data.rare_classes, ()),
        (["--study.weights", "0.25", "1"], lambda e: e.study.weights, (0.25, 1.0)),
        (["--data.float-range", "0", "255"], lambda e: e.data.float_range, (0.0, 255.0)),
        (["--balance.per-class", "None"], lambda e: e.balance.per_class, None),
        (["--balance.per-class", "9"], lambda e: e.balance.per_class, 9),
        (["--filters.label", "None"], lambda e: e.filters.label, None),
        (["--data.image-size", "16"], lambda e: e.data.image_size, 16),
        (["--study.metric", "macro_f1"], lambda e: e.study.metric, "macro_f1"),
        (["--model.net.hidden", "7", "8"], lambda e: e.model.net.hidden, (7, 8)),
        (["--model.optimizer.clip_norm", "1"], lambda e: e.model.optimizer.clip_norm, 1.0),
    ],
    ids=lambda v: " ".join(v) if isinstance(v, list) else "",
)
def test_a_field_of_every_type_is_overridden(arguments, get, value):
    changed = override(tiny(), arguments)
    assert get(changed) == value
    assert type(get(changed)) is type(value)
    assert type(changed) is Experiment
    assert type(changed.model) is CVAE
    assert len(differences(to_json(tiny()), to_json(changed))) <= 1  # and nothing else changed


def test_no_arguments_change_nothing():
    assert override(tiny(), []) == tiny()


@dataclass(frozen=True, kw_only=True)
class Inner:
    depth: int = 2


@dataclass(frozen=True, kw_only=True)
class OwnModel:
    """A family outside genaug."""

    width: int = 3
    inner: Inner = field(default_factory=Inner)

    def make(self, spec):
        raise NotImplementedError


def test_the_fields_of_a_users_own_model_are_overridden_and_seen_in_differences():
    mine = Experiment(name="mine", model=OwnModel())
    changed = override(mine, ["--model.width", "5", "--model.inner.depth", "1"])
    assert changed.model == OwnModel(width=5, inner=Inner(depth=1))
    assert differences(to_json(mine), to_json(changed)) == [
        "model.width: 3 -> 5",
        "model.inner.depth: 2 -> 1",
    ]
    with pytest.raises(UserError, match="no dataclass of genaug"):  # JSON runs nobody's code
        from_json(to_json(mine))


def test_a_file_gives_what_its_config_returns(tmp_path):
    file = tmp_path / "mine.py"
    file.write_text(
        "from genaug.config import Experiment\nfrom genaug.models.vae import VAE\n"
        "def config():\n    return Experiment(name='mine', model=VAE(latent_dim=3))\n"
    )
    assert load(str(file)) == Experiment(name="mine", model=VAE(latent_dim=3))


@pytest.mark.parametrize(
    "text, words",
    [
        ("x = 1\n", "no function config"),
        ("def config():\n    return 3\n", "no function config"),
        ("config = 3\n", "no function config"),
        ("def config(:\n    pass\n", "line 1: "),
        ("import absent_module\n", "line 1: ModuleNotFoundError: No module named 'absent_module'"),
        ("def config():\n    return 1 / 0\n", "line 2: ZeroDivisionError: division by zero"),
        ("def config(needed):\n    pass\n", r"TypeError: config\(\) missing 1 required"),
        ("from genaug.types import UserError\nraise UserError('Mind.')\n", "^Mind.$"),
    ],
)
def test_a_file_that_is_no_experiment_is_named_with_the_line(tmp_path, text, words):
    file = tmp_path / "wrong.py"
    file.write_text(text)
    with pytest.raises(UserError, match=words):
        load(str(file))


def test_a_misspelt_file_gets_the_nearest(tmp_path, monkeypatch):
    (tmp_path / "experiments").mkdir()
    (tmp_path / "experiments" / "flowers.py").write_text("")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=r"no experiment file .* mean experiments/flowers\.py\?"):
        load("experiments/flower.py")
    (tmp_path / "notes.txt").write_text("")
    with pytest.raises(UserError, match=r"an experiment is a \.py file"):
        load("notes.txt")


def test_the_likelihood_of_a_config_is_the_one_given():
    assert from_json(to_json(CVAE(likelihood=Bernoulli()))).likelihood == Bernoulli()
