"""The report: safe with any class name, whole with any piece missing, readable at any width."""

import dataclasses
import html
import json
import math
import re
import shutil
import subprocess

import numpy as np
import pytest

from genaug.charts import Axis, change, number, points
from genaug.evaluation import to_json
from genaug.evaluation.meanings import FURTHER, LIKENESS, MEMORISATION
from genaug.evaluation.results import Result
from genaug.pictures import grid
from genaug.report import write_report
from genaug.types import UserError

NASTY = ["<img src=x onerror=alert(1)>", "</script><script>alert(1)</script>", "\x1b[31mred\x07"]
SENTENCE = (
    "DO NOT USE IT: no gain is shown for classical + generated, weight 0.1: +0.2 points of "
    "balanced accuracy (95 % interval -0.3 to +0.7) against affine, the best arm without a "
    "generator."
)
CSP = (
    '<meta http-equiv="Content-Security-Policy" '
    "content=\"default-src 'none'; img-src data:; style-src 'unsafe-inline'\">"
)
ARMS = {  # name -> family, base, weight, score
    "none": ("none", "none", 0.0, 0.815),
    "oversampling": ("oversampling", "oversampling", 0.0, 0.83),
    "affine": ("affine", "affine", 0.0, 0.95),
    "generated, weight 0.1": ("generated", "oversampling", 0.1, 0.86),
    "generated, weight 1": ("generated", "oversampling", 1.0, 0.85),
    "classical + generated, weight 0.1": ("classical + generated", "affine", 0.1, 0.952),
    "classical + generated, weight 1": ("classical + generated", "affine", 1.0, 0.91),
}


def make_results(class_names, rare=(0,), num_seeds=3):
    """A results.json as the main job writes it."""
    k = len(class_names)

    def scores(mean):
        seeds = [mean + 0.003 * i for i in range(num_seeds)]
        recall = [[math.nan, *[mean] * (k - 1)] for _ in seeds]  # class 0 is not in the test data
        names = ["accuracy", "balanced_accuracy", "macro_f1", "ece", *["rare_recall"] * bool(rare)]
        return dict.fromkeys(names, seeds) | {"recall": recall}

    def arm(name, family, base, weight, score):
        gain = [score - 0.95, score - 0.955, score - 0.945]
        metrics = ["balanced_accuracy", *(f"recall/{c}" for c in range(1, k))]
        return {
            "name": name,
            "family": family,
            "base": base,
            "generative": weight > 0,
            "weight": weight,
            "valid": scores(score),
            "test": scores(score - 0.001),
            "against_bar": dict.fromkeys(metrics, gain),
        }

    audit = {
        "value": 0.4,
        "low": 0.3,
        "high": math.inf,
        "n": 36,
        "better": "lower",
        "group": None,
        "share": True,
        "meaning": "How far.",
        "remarks": ["Few examples."],
    }
    return {
        "format": 1,
        "name": "</title><script>alert(1)</script>",
        "data": {
            "name": "tiny",
            "licence": "CC0",
            "origin": "made here",
            "class_names": class_names,
            "counts": {split: [12] * k for split in ("train", "valid", "test")},
        },
        "rare_classes": list(rare),
        "metric": "balanced_accuracy",
        "level": 0.95,
        "num_seeds": num_seeds,
        "training": [
            {"step": step, "loss": math.nan if step == 20 else 100 / step} for step in (10, 20, 30)
        ]
        + [{"step": 30, "valid_elbo": -120.0, "valid_iwae": None}],
        "drawn": {
            "wanted": [9] + [0] * (k - 1),
            "drawn": [20] + [0] * (k - 1),
            "kept": [8] + [0] * (k - 1),
            "refused": {"label": [12] + [0] * (k - 1)},
        },
        "arms": [arm(name, *rest) for name, rest in ARMS.items()],
        "bar": "affine",
        "chosen": {
            "generated": "generated, weight 0.1",
            "classical + generated": "classical + generated, weight 0.1",
        },
        "candidate": "classical + generated, weight 0.1",
        "verdict": {"use": False, "sentence": SENTENCE},
        "audit": [
            audit | {"name": "fd/classifier", "floor": None, "share": False},
            audit | {"name": "near_copies", "floor": 0.1},
            audit | {"name": "coverage", "floor": 0.9, "group": "<b>a</b>", "better": "higher"},
        ],
    }


def make_run(directory, results, channels=1, pictures=True):
    """A finished run folder."""
    (directory / "study").mkdir(parents=True)
    config = {"type": "x:Y", "name": "tiny", "model": {"hidden": [4, 2], "clip": None}}
    for name, value in (("results", results), ("config", config), ("environment", {"jax": "1"})):
        (directory / f"{name}.json").write_text(json.dumps(value))
    if pictures:
        k = len(results["data"]["class_names"])
        images = np.random.default_rng(0).integers(0, 256, (2 * k, 8, 8, channels), np.uint8)
        np.savez(
            directory / "study" / "pictures.npz",
            real=images,
            real_labels=np.repeat(np.arange(k), 2),
            generated=images[:3],
            generated_labels=np.zeros(3, np.int64),  # one class only
            closest_generated=images[:2],
            closest_train=images[2:4],
            closest_labels=np.zeros(2, np.int32),
            closest_distance=np.array([0.5, 1.0], np.float32),
        )
    return directory


def page_of(directory):
    return write_report(directory).read_text(encoding="utf-8")


def visible(page):
    """The text of a page."""
    return re.sub(r"\s+", " ", html.unescape(re.sub(r"<[^>]*>", "", page)))


def test_nothing_from_the_data_becomes_markup(tmp_path):
    page = page_of(make_run(tmp_path / "run <b>", make_results(NASTY)))
    tags = re.findall(r"<[^>]*>", page)
    assert not re.search(r"<\s*(script|iframe|object|link|base)", page, re.IGNORECASE)
    assert not any(re.search(r"\son\w+\s*=", re.sub(r'"[^"]*"', '""', tag)) for tag in tags)
    assert all(re.search(r'src="data:image/png;base64,', tag) for tag in tags if "<img" in tag)
    assert "&lt;img src=x onerror=alert(1)&gt;" in page
    assert "&lt;/script&gt;&lt;script&gt;" in page
    assert not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f]", page)
    assert "red" in page
    assert "[31m" not in page


def test_the_page_loads_nothing_and_answers(tmp_path):
    directory = make_run(tmp_path / "run", make_results(["cat", "dog"]))
    page = page_of(directory)
    assert page.startswith("<!doctype html>")
    assert CSP in page
    assert not re.search(r"https?://|url\(|@import", page)
    assert str(tmp_path) not in page
    text = visible(page)
    assert SENTENCE in text
    assert "genaug run --from-run run" in text
    assert "95.2 ± 0.3" in text  # the mean of the candidate's three seeds
    assert "worse" in text
    assert text.count("few examples.") == 1  # a remark that both audit entries make
    assert sorted(p.name for p in directory.iterdir() if p.suffix == ".html") == ["report.html"]
    assert page_of(directory) == page


def test_the_curve_of_a_family_starts_at_the_arm_it_was_built_on(tmp_path):
    text = visible(page_of(make_run(tmp_path / "run", make_results(["a", "b"]))))
    found = re.findall(r"against weight\. Weight 0 is the arm “([^”]*)”. Chosen: ([\d.]+)\.", text)
    assert found == [("oversampling", "0.1"), ("affine", "0.1")]


def over_splits(results, names):
    """The results of one split in the shape of several."""
    arms = [arm | {"by_split": [0.011, -0.0072, 0.033]} for arm in results["arms"]]
    splits = [
        {"name": name, "seed": 70 + i, "verdict": f"DO NOT USE IT: {name}."}
        for i, name in enumerate(names)
    ]
    interval = f"t over {len(names)} splits"
    return results | {
        "num_splits": len(names),
        "interval": interval,
        "splits": splits,
        "arms": arms,
    }


def test_every_metric_of_an_audit_stands_with_its_interval_and_its_floor(tmp_path):
    """All that an audit can measure, each with figures of its own."""
    entries = []
    for i, (name, meaning) in enumerate((LIKENESS | MEMORISATION | FURTHER).items()):
        value = (20 + i) / (100 if meaning.share else 1)
        entry = Result(name=name, value=value, low=value * 0.9, high=value * 1.1, floor=value * 0.7,
                       better=meaning.better, n=50 + i, share=meaning.share, meaning=meaning.text,
                       remarks=(f"Remark {i}.",))  # fmt: skip
        entries += [entry, dataclasses.replace(entry, name=f"{name}/net", group="b")]
    results = make_results(["a", "b"]) | {"audit": to_json(entries)}
    page = page_of(make_run(tmp_path / "run", results))
    text = visible(page.replace("<td", " <td").replace("<br", " <br"))
    for i, meaning in enumerate((LIKENESS | MEMORISATION | FURTHER).values()):
        value, unit = 20 + i, " %" if meaning.share else ""
        low, high, floor = (f"{share * value:.1f}" for share in (0.9, 1.1, 0.7))
        assert f"{value:.1f}{unit} {low} to {high} {floor}{unit}" in text
        assert f"{low} to {high} real {floor}" in text
        assert meaning.text in text
        assert f"remark {i}." in text


def test_one_split_says_what_its_interval_is_of(tmp_path):
    text = visible(page_of(make_run(tmp_path / "run", make_results(["a", "b"]))))
    assert "with other test images and other seeds: both are resampled" in text
    assert "trained in every way compared here, 3 times each from different random seeds" in text
    assert "± standard deviation over 3 seeds." in text
    assert "split" not in text.lower()


def test_several_splits_say_what_their_interval_is_of_and_link_their_reports(tmp_path):
    results = over_splits(make_results(["a", "b"]), ["split_0", "split_1", "split_2"])
    page = page_of(make_run(tmp_path / "run", results))
    text = visible(page)
    assert "resampled" not in text
    assert "The interval is Student’s t over the 3 splits’ differences" in text
    assert "3 times each in every split from different random seeds" in text
    assert "± is the standard deviation over all 9 of them" in text
    assert "± standard deviation over 3 seeds in each of 3 splits." in text
    assert "Student’s t over the differences within 3 splits" in text
    assert "a row for each class, in the first split" in text
    assert "The numbers are sums over the splits" in text
    assert "Training of the generator, first split" in text
    links = re.findall(r'<a href="([^"]*)">', page)
    assert links == [f"./split_{i}/report.html" for i in range(3)]
    cells = visible(page.replace("</td>", " </td>"))
    rows = re.findall(r"split_\d \d+ [+−]\d\.\d DO NOT USE IT: split_\d\.", cells)
    assert rows == [
        "split_0 70 +1.1 DO NOT USE IT: split_0.",
        "split_1 71 −0.7 DO NOT USE IT: split_1.",
        "split_2 72 +3.3 DO NOT USE IT: split_2.",
    ]


def test_no_split_becomes_markup_or_another_address(tmp_path):
    names = ["javascript:alert(1)//", '"><script>alert(1)</script>', "//example.org"]
    page = page_of(make_run(tmp_path / "run", over_splits(make_results(["a", "b"]), names)))
    assert not re.search(r"<\s*script", page, re.IGNORECASE)
    links = re.findall(r'<a href="([^"]*)">', page)
    assert len(links) == 3
    assert all(link.startswith("./") for link in links)


@pytest.mark.parametrize("channels", [1, 3])
def test_missing_pieces(tmp_path, channels):
    results = make_results(["a", "b"], rare=(), num_seeds=1)
    results |= {"training": [], "audit": [], "chosen": {}}
    results["arms"][0]["against_bar"]["balanced_accuracy"] = [None, None, None]
    page = page_of(make_run(tmp_path / "bare", results, channels, pictures=channels == 3))
    assert SENTENCE in visible(page)
    assert "nan" not in visible(page).lower()
    for title in ("Audit of", "Training of", "How much generated data"):
        assert title not in page


def test_an_unfinished_run_is_said_to_be_one(tmp_path):
    with pytest.raises(UserError, match="finish the run first") as caught:
        write_report(tmp_path)
    assert "\n" not in str(caught.value)


def test_damaged_pictures_are_named(tmp_path):
    run = make_run(tmp_path / "run", make_results(["a", "b"]))
    (run / "study" / "pictures.npz").write_bytes(b"no zip")
    with pytest.raises(UserError, match=r"pictures\.npz"):
        write_report(run)


def test_numbers():
    assert number(-0.04) == "0.0"
    assert number(-1234.56, signed=True) == "−1,234.6"
    assert number(0.26, signed=True) == "+0.3"
    assert [number(v) for v in (None, math.nan, math.inf)] == ["–", "–", "∞"]
    assert points([0.5]) == "50.0"
    assert points([0.4, 0.6, None]) == "50.0 ± 14.1"
    assert points([]) == "–"
    assert change([0.002, -0.003, 0.0071]) == "+0.2 (−0.3 to +0.7)"


@pytest.mark.parametrize("low, high", [(-14.0, 2.0), (-0.3, 0.7), (0.0, 1e6), (1e-6, 3e-6)])
def test_ticks_are_round_and_inside(low, high):
    ticks = Axis(low, high).ticks()
    assert 3 <= len(ticks) <= 8
    assert all(0 <= at <= 100 for at, _ in ticks)
    assert len({label for _, label in ticks}) == len(ticks)


def test_grid_keeps_every_pixel():
    images = np.arange(3 * 4, dtype=np.uint8).reshape(3, 2, 2, 1)
    sheet = np.asarray(grid(images, columns=2))
    assert sheet.shape == (5, 5)
    np.testing.assert_array_equal(sheet[3:, :2], images[2, :, :, 0])


MEASURE = """<!doctype html><title>measure</title>
{frames}
<output></output>
<script>
addEventListener("load", () => {{
  const found = [...document.querySelectorAll("iframe")].map(frame => {{
    const page = frame.contentDocument;
    page.querySelectorAll("details").forEach(each => {{ each.open = true; }});
    const root = page.documentElement, images = [...page.images];
    return {{
      width: root.clientWidth, needed: root.scrollWidth, height: root.scrollHeight,
      broken: images.filter(each => !each.naturalWidth).length, images: images.length,
      marks: page.querySelectorAll("svg circle, svg rect").length,
      ran: frame.contentWindow.ran === true,
    }};
  }});
  document.querySelector("output").textContent = JSON.stringify(found);
}});
</script>
"""


def test_in_a_browser(tmp_path):
    """Desk and phone: it renders, no page scrolls sideways, no script of the data runs."""
    browsers = map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))
    browser = next(filter(None, browsers), None)
    if browser is None:
        pytest.skip("no chromium, chromium-browser or google-chrome here")
    names = ["<script>window.ran = true</script>", "<img src=x onerror='ran = true'>", "W" * 300]
    names += [f"class {i} with several words in its name" for i in range(37)]
    page = page_of(make_run(tmp_path / "run", make_results(names, rare=range(9)), channels=3))
    frames = "".join(
        f'<iframe style="width:{width}px;height:900px;border:0" srcdoc="{html.escape(page)}">'
        "</iframe>"
        for width in (1280, 390)
    )
    wrapper = tmp_path / "measure.html"
    wrapper.write_text(MEASURE.format(frames=frames), encoding="utf-8")
    command = [browser, "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic",
               "--no-first-run", "--disable-background-networking", "--disable-component-update",
               "--disable-sync", "--hide-scrollbars", f"--user-data-dir={tmp_path / 'profile'}",
               "--window-size=1400,2000", "--dump-dom", wrapper.as_uri()]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    output = re.search(r"<output>(.*?)</output>", done.stdout)
    assert output, done.stderr[-500:]
    desk, phone = json.loads(html.unescape(output[1]))
    assert (desk["width"], phone["width"]) == (1280, 390)
    for seen in (desk, phone):
        assert seen["needed"] == seen["width"]
        assert 1000 < seen["height"] < 60_000
        assert seen["images"] > 40
        assert seen["broken"] == 0
        assert seen["marks"] > 20
        assert not seen["ran"]
