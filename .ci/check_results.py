"""Assert that a run folder holds what the main job promises."""

import json
import sys
from pathlib import Path

run = Path(sys.argv[1])
results = json.loads((run / "results.json").read_text())
arms = {arm["name"]: arm for arm in results["arms"]}

for name in ("none", "none, longer", "class weights", "oversampling", "SMOTE", "affine"):
    assert name in arms, f"the arm {name} is missing"
assert any(arm["generative"] for arm in arms.values()), "no arm uses generated images"
assert results["bar"] in arms
assert not arms[results["bar"]]["generative"]
for arm in arms.values():
    seeds = arm["test"]["balanced_accuracy"]
    assert len(seeds) == results["num_seeds"], arm["name"]
    assert all(0.1 < score <= 1 for score in seeds), (arm["name"], seeds)
    estimate, low, high = arm["against_bar"]["balanced_accuracy"]
    assert low <= estimate <= high, arm["name"]
assert results["data"]["counts"]["train"].count(12) == 3, "three classes keep 12 images"
assert sum(results["data"]["counts"]["test"]) == 1500
drawn = results["drawn"]
for c, count in enumerate(drawn["drawn"]):
    refused = sum(kind[c] for kind in drawn["refused"].values())
    assert count == drawn["kept"][c] + refused, "draws are kept or refused for a reason"
assert sum(drawn["kept"]) > 0
assert results["verdict"]["sentence"].startswith(("USE IT", "DO NOT USE IT"))
gain = arms[results["candidate"]]["against_bar"][results["metric"]]
assert results["verdict"]["use"] == (gain[1] > 0), "the verdict follows from the interval"
assert {row["name"] for row in results["audit"]} >= {"fd/classifier", "coverage", "exact_copies"}
elbo = [line["valid_elbo"] for line in results["training"] if "valid_elbo" in line]
assert elbo[-1] > elbo[0], "the generator learns"
for name in (
    "config.json",
    "environment.json",
    "metrics.jsonl",
    "tensorboard",
    "checkpoints",
    "samples/step_001000.png",
    "synthetic/dataset_info.json",
    "export/bundle.json",
    "report.html",
):
    assert (run / name).exists(), f"{name} is missing"
print(f"results.json holds {len(arms)} arms: {results['verdict']['sentence']}")
