"""The main job: train, draw, compare, audit, report. Every stage leaves a file and is skipped when
that file is there, so the same command goes on where a stopped run ended, to the same results.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from rich.console import Console

from genaug import export, layouts, report
from genaug.arms import Arms
from genaug.augmentation import Drawn, draw, wanted
from genaug.data import write_examples
from genaug.evaluation import classifier
from genaug.evaluation import study as studies
from genaug.evaluation.audit import audit
from genaug.evaluation.features import FeatureNet
from genaug.evaluation.matching import Labels
from genaug.evaluation.results import to_json
from genaug.evaluation.scores import classification_scores
from genaug.files import load_arrays, read_json, save_arrays, write_json
from genaug.generator import announce, keys, train
from genaug.logs import read_metrics
from genaug.runs import Prepared
from genaug.sampling import Sampler, make_sampler
from genaug.types import UserError


def draw_synthetic(
    run: Prepared, sampler: Sampler, missing: np.ndarray, judge: Any, model_digest: str
) -> Drawn:
    """Draw what the balance plan asks for and keep it in `synthetic/`, with its provenance."""
    path = run.directory / "synthetic.npz"
    if not path.is_file():
        experiment = run.experiment
        drawn = draw(
            sampler,
            keys(experiment.seed)["sample"],
            missing,
            experiment.balance,
            experiment.filters,
            judge,
            run.dataset.arrays(run.splits.train),
            run.dataset.arrays(run.splits.valid),
        )
        _write_synthetic(run, drawn, model_digest)
        refused = {f"refused.{name}": counts for name, counts in drawn.refused.items()}
        rest = {k: v for k, v in drawn._asdict().items() if k != "refused"}
        save_arrays(path, {**rest, **refused})
    arrays = load_arrays(path)
    refused = {k.split(".")[1]: arrays.pop(k) for k in list(arrays) if k.startswith("refused.")}
    return Drawn(**arrays, refused=refused)


def _write_synthetic(run: Prepared, drawn: Drawn, model_digest: str) -> None:
    directory = run.directory / "synthetic"
    seed = run.experiment.seed
    train_rows = run.splits.train

    def rows() -> Any:
        for i in range(len(drawn.images)):
            yield {
                "image": drawn.images[i],
                "label": int(drawn.labels[i]),
                "synthetic": True,
                "seed": seed,
                "index": int(drawn.address[i]),
                "model_digest": model_digest,
                "label_probability": float(drawn.label_probability[i]),
                "nearest_train_distance": float(drawn.nearest_train[i]),
                "nearest_train_id": int(train_rows[drawn.nearest_train_row[i]]),
            }

    shutil.rmtree(directory, ignore_errors=True)  # left by a run that was killed right here
    if not len(drawn.images):
        return
    write_examples(
        directory,
        name="synthetic",
        features={
            "image": run.dataset.spec["image"],
            "label": np.int64,
            "synthetic": bool,
            "seed": np.int64,
            "index": np.int64,
            "model_digest": str,
            "label_probability": np.float32,
            "nearest_train_distance": np.float32,
            "nearest_train_id": np.int64,
        },
        examples=rows(),
        class_names=run.dataset.class_names,
        metadata={"data_fingerprint": run.dataset.fingerprint},
        licence=run.dataset.licence,
        description="Synthetic images drawn by genaug.",
    )


def run_job(run: Prepared, console: Console) -> dict[str, Any]:
    """Every stage, and the results as they are written to results.json."""
    experiment, study = run.experiment, run.experiment.study
    announce(run, console)
    weights = train(run, console, "[1/5]")
    sampler = make_sampler(run.model, weights, run.mesh)
    model_digest = export.digest(layouts.to_host(weights))

    real = run.dataset.arrays(run.splits.train)
    counts = np.bincount(real["label"], minlength=len(run.dataset.class_names))
    missing = wanted(counts, experiment.balance)
    pool = studies.make_pool(
        real["image"],
        real["label"],
        studies.smote(real["image"], real["label"], missing),
        int(missing.sum()),
    )
    arms = Arms(run)
    baselines = studies.baseline_arms(pool, missing, study.warp, study.strengths)
    arms.train(baselines, pool, "[2/5] without a generator", console)

    judge = classifier.judge(study.classifier, len(counts), arms.judge_params())
    console.print(f"[3/5] draw {missing.sum():,} samples", end="")
    drawn = draw_synthetic(run, sampler, missing, judge, model_digest)
    refused = {name: int(count.sum()) for name, count in drawn.refused.items()}
    console.print(
        f": kept {len(drawn.images):,} of {drawn.drawn.sum():,}; refused for "
        + ", ".join(f"{name} {count:,}" for name, count in refused.items())
    )
    pool = studies.with_generated(pool, drawn.images, drawn.labels, drawn.label_probability)
    judged = studies.Judged(
        run.dataset.labels[run.splits.valid], run.dataset.labels[run.splits.test], run.rare
    )
    bases = studies.choose_bases(baselines, arms.parts, judged, study)
    generative = studies.generative_arms(pool, missing, study.weights, bases, study.checks)
    arms.train(generative, pool, "[4/5] with generated images", console)
    comparison = studies.compare(baselines, generative, arms.parts, judged, study)

    console.print("[5/5] audit and report")
    audited = run_audit(run, drawn, arms.judge_params(), console)
    results = assemble(run, drawn, baselines, generative, arms.parts, judged, comparison, audited)
    save_arrays(run.directory / "study" / "pictures.npz", pictures(run, drawn))
    write_json(run.directory / "results.json", results)
    about = export.about_run(run.directory)
    export.write_bundle(run.directory / "export", run.model, weights, run.dataset.spec, about)
    report.write_report(run.directory)
    return results


def run_audit(
    run: Prepared, drawn: Drawn, judge_params: Any, console: Console
) -> list[dict[str, Any]]:
    """Likeness, variety and memorisation of the accepted samples, against held-out test images."""
    path = run.directory / "study" / "audit.json"
    if not path.is_file():
        train = run.dataset.arrays(run.splits.train)
        valid = run.dataset.arrays(run.splits.valid)
        test = run.dataset.arrays(run.splits.test)
        config = run.experiment.study.classifier
        net = FeatureNet(
            "classifier",
            classifier.features(config, len(run.dataset.class_names), judge_params),
            {"weights": export.digest(judge_params)},
        )
        try:
            found = audit(
                train["image"],
                test["image"],
                drawn.images,
                net=net,
                second=valid["image"],
                labels=Labels(train["label"], test["label"], drawn.labels, valid["label"]),
                class_names=run.dataset.class_names,
                seed=run.experiment.seed,
                mesh=run.mesh,
            )
        except UserError as error:  # Too few samples were kept: the verdict stands without it.
            console.print(f"no audit: {error}")
            found = []
        write_json(path, to_json(found))
    return read_json(path)


def pictures(run: Prepared, drawn: Drawn, per_class: int = 10) -> dict[str, np.ndarray]:
    """What the report shows: real and generated examples, and the samples closest to training."""
    real = run.dataset.arrays(run.splits.train)

    def first_of_each(labels: np.ndarray) -> np.ndarray:
        rows = [np.flatnonzero(labels == c)[:per_class] for c in np.unique(labels)]
        return np.concatenate(rows) if rows else np.zeros(0, np.int64)

    shown, made = first_of_each(real["label"]), first_of_each(drawn.labels)
    closest = np.argsort(drawn.nearest_train, kind="stable")[:12]
    return {
        "real": real["image"][shown],
        "real_labels": real["label"][shown],
        "generated": drawn.images[made],
        "generated_labels": drawn.labels[made],
        "closest_generated": drawn.images[closest],
        "closest_train": real["image"][drawn.nearest_train_row[closest]],
        "closest_labels": drawn.labels[closest],
        "closest_distance": drawn.nearest_train[closest],
    }


def assemble(
    run: Prepared,
    drawn: Drawn,
    baselines: Sequence[studies.Arm],
    generative: Sequence[studies.Arm],
    parts: Mapping[str, studies.Part],
    judged: studies.Judged,
    comparison: studies.Comparison,
    audited: list[dict[str, Any]],
) -> dict[str, Any]:
    """Everything the report shows; nothing that a second run would find different."""
    study, candidate = run.experiment.study, comparison.candidate
    answer = studies.verdict(
        candidate.name,
        comparison.bar.name,
        comparison.against_bar[candidate.name][study.metric],
        metric=study.metric,
        level=study.level,
        prefers_none=comparison.chosen[candidate.family].weight == 0,
        num_generated=len(drawn.images),
    )

    def scores(probabilities: np.ndarray, labels: np.ndarray) -> dict[str, Any]:
        values = classification_scores(probabilities, labels, judged.rare_classes)
        return {name: np.asarray(value).tolist() for name, value in values.items()}

    def arm_json(arm: studies.Arm) -> dict[str, Any]:
        against = comparison.against_bar[arm.name]
        return {
            "name": arm.name,
            "family": arm.family,
            "base": arm.base,
            "generative": arm.weight > 0,
            "weight": arm.weight,
            "valid": scores(parts[arm.name].valid, judged.valid_labels),
            "test": scores(parts[arm.name].test, judged.test_labels),
            "against_bar": {name: list(interval) for name, interval in against.items()},
        }

    return {
        "format": 1,
        "name": run.experiment.name,
        "seed": run.experiment.seed,
        "data": read_json(run.directory / "data.json"),
        "rare_classes": list(judged.rare_classes),
        "metric": study.metric,
        "level": study.level,
        "interval": "bootstrap over test images and seeds",
        "num_splits": 1,
        "num_seeds": study.num_seeds,
        "training": read_metrics(run.directory),
        "drawn": {
            "wanted": drawn.wanted.tolist(),
            "drawn": drawn.drawn.tolist(),
            "kept": np.bincount(drawn.labels, minlength=len(drawn.wanted)).tolist(),
            "refused": {name: counts.tolist() for name, counts in drawn.refused.items()},
        },
        "arms": [arm_json(arm) for arm in (*baselines, *generative)],
        "bar": comparison.bar.name,
        "chosen": {family: arm.name for family, arm in comparison.chosen.items()},
        "candidate": candidate.name,
        "verdict": {"use": answer.use, "sentence": answer.sentence},
        "audit": audited,
    }
