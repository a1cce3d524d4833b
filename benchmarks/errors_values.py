"""Bad inputs: commands, options, and fields of an experiment."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from benchmarks.errors import Case, Place

OWN = ("--data.rare-classes", "--data.rare-count", "None", "--train.batch-size", "8")
"""Fields for a data set of one's own: no rare digits, a small batch."""


def command(*words: Any) -> Callable[[Place], Sequence[Any]]:
    """A command as it stands."""
    return lambda place: words


def fields(*words: Any) -> Callable[[Place], Sequence[Any]]:
    """A run with these fields."""
    return lambda place: ("run", place.experiment, "--run-dir", place.folder / "run", *words)


def experiment(text: str | None) -> Callable[[Place], Sequence[Any]]:
    """A run of an experiment file with this text; None: there is none."""

    def make(place: Place) -> Sequence[Any]:
        file = place.folder / "other.py"
        if text is not None:
            file.write_text(text)
        return ("run", file)

    return make


def given(words: str, code: int, *said: str) -> Case:
    """Fields that cannot be, written as on the command line."""
    return Case("fields", f"`{words}`", fields(*words.split()), code, said)


def typed(words: str, code: int, *said: str, fresh: bool = False) -> Case:
    """A command that cannot be."""
    return Case(
        "commands",
        f"`{f'genaug {words}'.strip()}`",
        command(*words.split()),
        code,
        said,
        fresh=fresh,
    )


TRANSFORMER = """
from genaug.config import Experiment
from genaug.data import {data}
from genaug.models.{module} import {model}
from genaug.train import Train

def config():
    train = Train(num_steps=5, batch_size=8, steps_per_call=5, evaluate_every=5, sample_every=5,
                  checkpoint_every=5)
    return Experiment(name="other", data={data}({source}), model={model}(), train=train)
"""


def pairing(model: str, module: str, data: str, source: str = "") -> str:
    """An experiment of a family and a kind of data."""
    return TRANSFORMER.format(model=model, module=module, data=data, source=source)


def _open_cache(place: Place) -> Sequence[Any]:
    (place.folder / "cache").mkdir()
    (place.folder / "cache").chmod(0o777)
    return ("run", place.experiment, "--run-dir", place.folder / "run")


CASES = [
    typed("runn", 2, "runn", "Did you mean run?"),
    typed("", 2, "COMMAND", fresh=True),
    typed("run", 2, "Name an experiment file, or --from-run DIR"),
    typed("run absent.py", 2, "There is no experiment file absent.py"),
    typed("evaluate a b --hold-out c", 2, "--hold-out", "Did you mean --holdout?"),
    typed("report x --frobnicate", 2, "--frobnicate"),
    typed("sample x --n many", 2, "--n", "'many'"),
    typed("sample x --format png", 2, "--format", "'png'", "npz"),
    typed("data lost", 2, "'lost'", "list"),
    typed("train x.py --supervise", 2, "name its folder, --run-dir DIR"),
    typed("train x.py --supervise --run-dir r --stall-after 0", 2, "stall-after is 0.0"),
    typed("doctor --process-id 1", 2, "--coordinator", "--num-processes"),
    typed("bench absent --rounds 0", 2, "--rounds is 0", "at least 1"),
    typed("plan", 2, "Name an experiment file"),
    typed("launch x.py --to cluster --run-dir /r", 2, "--to must be one of"),
    typed("tokenizer absent.txt --out t.json", 3, "absent.txt"),
    typed("tokenizer pydoc_topics --vocab-size 10 --out t.json", 2, "--vocab-size is 10", "256"),
    Case("commands", "an option of `genaug run` mistyped", fields("--alow-change", "seed"), 2,
         ("--alow-change", "Did you mean --allow-change?")),
    Case("commands", "an experiment and `--from-run`",
         lambda p: ("run", p.experiment, "--from-run", p.finished), 2, ("and not both",)),
    Case("commands", "`GENAUG_CPU_DEVICES=two`", fields(), 2, ("GENAUG_CPU_DEVICES is 'two'",),
         environment={"GENAUG_CPU_DEVICES": "two"}),
    Case("commands", "a compile cache that others may write to", _open_cache, 2,
         ("JAX_COMPILATION_CACHE_DIR is cache", "others may write to", "chmod 700"),
         environment={"JAX_COMPILATION_CACHE_DIR": "cache"}),
    Case("experiment files", "none of that name", experiment(None), 2,
         ("There is no experiment file", "other.py")),
    Case("experiment files", "no `config()`", experiment("x = 1\n"), 2,
         ("other.py", "no function config()")),
    Case("experiment files", "a mistake in the syntax", experiment("def config(:\n"), 2,
         ("other.py, line 1: ",)),
    Case("experiment files", "an error in it", experiment("import absent_module\n"), 2,
         ("other.py, line 1: ModuleNotFoundError",)),
    Case("experiment files", "a field that there is not",
         experiment("from genaug.train import Train\ndef config():\n    Train(nm_steps=3)\n"), 2,
         ("other.py, line 3: ", "nm_steps", "Did you mean num_steps?"), fresh=True),
    Case("experiment files", "a model of images for texts",
         experiment(pairing("CVAE", "cvae", "TextData")), 2, ("CVAE needs 'image'", "have tokens")),
    Case("experiment files", "a model of texts for images",
         experiment(pairing("TransformerLM", "transformer_lm", "Data", 'source="digits"')), 2,
         ("A language model needs text",)),
    Case("experiment files", "a model without classes for the comparison",
         experiment(pairing("VAE", "vae", "Data", 'source="digits"')), 2,
         ("class-conditional model", "genaug train")),
    given("--model.latent-dmi 3", 2, "--model.latent-dmi", "Did you mean --model.latent-dim?"),
    given("--train.nm-steps=3", 2, "Did you mean --train.num-steps?"),
    given("--model.latent-dim abc", 2, "'abc'. Expected: --model.latent-dim INT."),
    given("--model.latent-dim 1e3", 2, "'1e3'. Expected: --model.latent-dim INT."),
    given("--data.skip-bad false", 2, "Unrecognized options: false."),
    given("--study.metric beauty", 2, "Invalid choice 'beauty' for argument '--study.metric'"),
    given("--seed", 2, "Missing value for argument '--seed'"),
    given("--seed 1 2", 2, "Unrecognized options: 2."),
    given("stray", 2, "Unrecognized options: stray."),
    given("--data.image-size x", 2, "from ['x']. Expected: --data.image-size {None}|INT."),
    given("--model.net.hidden 3 x", 2, "['3', 'x']. Expected: --model.net.hidden [INT"),
    given("--allow-change seeed", 2, "--allow-change seeed", "Did you mean seed?"),
    given("--seed -1", 2, "seed is -1", "at least 0"),
    given("--model.latent-dim 0", 2, "model.latent-dim", "at least 1"),
    given("--model.temperature -1", 2, "model.temperature is -1", "0 or more"),
    given("--model.optimizer.learning-rate -1", 2, "learning-rate is -1"),
    given("--model.optimizer.learning-rate nan", 2, "learning-rate is nan"),
    given("--model.optimizer.b2 1.5", 2, "b2 is 1.5"),
    given("--model.net.hidden 0", 2, "model.net.hidden is 0", "at least 1"),
    given("--model.ema-decay 1", 2, "model.ema-decay is 1.0", "from 0 to below 1"),
    given("--model.score-samples 0", 2, "model.score-samples is 0", "at least 1"),
    given("--data.source digit", 3, "'digit'", "did you mean 'digits'?"),
    given("--data.source absent.npz", 3, "absent.npz", "accepted are"),
    given("--data.rare-classes twelve", 2, "'twelve'", "digits has 0, 1, 2"),
    given("--data.rare-count None", 2, "--data.rare-classes and --data.rare-count go together"),
    given("--data.rare-count 1000", 2, "--data.rare-count is 1000", "choose a smaller"),
    given("--data.rare-count 0", 2, "--data.rare-count is 0", "1 or more"),
    given("--data.test-fraction 1", 2, "--data.test-fraction is 1.0", "below 1"),
    given("--data.test-fraction nan", 2, "data.test-fraction is nan"),
    given("--data.test-fraction 0", 2, "no images to compare arms on", "--data.test-fraction"),
    given("--data.valid-fraction 0", 2, "no images to compare arms on", "--data.valid-fraction"),
    given("--data.valid-fraction 0.8", 2, "leave nothing to train on"),
    given("--data.channels 2", 2, "--data.channels is 2"),
    given("--data.image-size 0", 2, "--data.image-size is 0"),
    given("--data.background 300", 2, "--data.background is 300"),
    given("--data.float-range 1 0", 2, "--data.float-range is (1.0, 0.0)"),
    given("--data.split-seed -1", 2, "--data.split-seed is -1"),
    given("--train.num-steps 0", 2, "train.num-steps must be at least 1"),
    given("--train.num-steps 21", 2, "21 is not a multiple of train.steps-per-call 5: use 25"),
    given("--train.batch-size 63", 2, "train.batch-size 63", "2 devices", "use 62 or 64"),
    given("--train.batch-size 2000", 2, "train.batch-size is 2000", "only 795 training examples"),
    given("--train.accumulate 0", 2, "train.accumulate must be at least 1"),
    given("--train.class-balance 1.5", 2, "train.class-balance is 1.5", "from 0 to 1"),
    given("--train.largest-norm 0", 2, "train.largest-norm is 0.0", "above 0"),
    given("--train.spike-factor 0.5", 2, "train.spike-factor is 0.5", "above 1"),
    given("--train.patience 0", 2, "train.patience must be at least 1"),
    given("--train.start-from absent", 2, "absent is no run folder"),
    given("--train.coverage-samples 3", 2, "train.coverage-samples is 3", "6 or more"),
    given("--train.distance-samples 1", 2, "train.distance-samples is 1", "2 or more"),
    given("--mesh.data 9", 2, "mesh.data is 9", "8 device(s)"),
    given("--mesh.fsdp 0", 2, "mesh.fsdp is 0"),
    given("--mesh.strategy pmapp", 2, "Invalid choice 'pmapp'", "--mesh.strategy"),
    given("--balance.per-class 0", 2, "balance.per-class is 0", "at least 1"),
    given("--balance.per-class 1", 2, "asks for nothing", "--balance.factor 2"),
    given("--balance.factor 0.5", 2, "balance.factor is 0.5", "at least 1"),
    given("--balance.max-draws 0", 2, "balance.max-draws is 0", "at least 1"),
    given("--filters.label 2", 2, "filters.label is 2.0", "from 0 to 1"),
    given("--filters.closeness -1", 2, "filters.closeness is -1.0", "from 0 to 1"),
    given("--filters.duplicate 1.01", 2, "filters.duplicate is 1.01", "from 0 to 1"),
    given("--study.num-seeds 0", 2, "study.num-seeds is 0", "at least 1"),
    given("--study.weights 0.5 1.5", 2, "study.weights is 1.5", "from 0 to 1"),
    given("--study.weights nan", 2, "study.weights is nan", "from 0 to 1"),
    given("--study.weights 0", 2, "study.weights must name at least one share, each above 0"),
    given("--study.weights", 2, "study.weights must name at least one share"),
    given("--study.weights 0.5 0.5", 2, "study.weights names (0.5, 0.5) with a value twice"),
    given("--study.level 95", 2, "study.level is 95.0", "from 0 to 1"),
    given("--study.level 1", 2, "study.level is 1.0", "as 0.95"),
    given("--study.bootstrap-draws 0", 2, "study.bootstrap-draws is 0", "at least 2"),
    given("--study.imbalances 2", 2, "study.imbalances needs study.budgets"),
    given("--study.classifier.num-steps 0", 2, "study.classifier.num-steps is 0"),
    given(f"--study.metric rare_recall {' '.join(OWN)}", 2, "rare_recall needs data.rare-classes"),
    Case("run folders", "an address for a folder",
         lambda p: ("train", p.experiment, "--run-dir", "gs://bucket/run"), 2,
         ("gs:/bucket/run is an address: use a folder",)),
]  # fmt: skip
