"""The model card: what it says is what was measured, and nothing in it is obeyed."""

import json

import numpy as np
import pytest
import yaml
from PIL import Image

from genaug.bundle import load_sampler
from genaug.card import card, escaped
from genaug.files import read_json, without_folders

pytest_plugins = ["tiny_run"]


def test_a_run_s_card_says_what_was_measured(run_cli, finished, tmp_path, capsys):
    out = tmp_path / "card"
    assert run_cli("export", finished, out, "--card") == 0
    assert "genaug.load_sampler" in capsys.readouterr().out
    text = (out / "README.md").read_text()
    results = read_json(finished / "results.json")
    head = yaml.safe_load(text.split("---")[1])
    assert head["library_name"] == "genaug"
    assert head["license_name"] == results["data"]["licence"]
    assert escaped(results["verdict"]["sentence"]) in text
    arm = next(a for a in results["arms"] if a["name"] == results["candidate"])
    assert f"{100 * arm['against_bar'][results['metric']][0]:+.2f} points" in text
    for row in results["audit"]:
        if row["group"] is None:
            assert f"| {escaped(row['name'])} | {row['value']:.4g} |" in text
    drawn = results["drawn"]
    assert f"| 5 | 12 | {drawn['drawn'][5]} | {drawn['kept'][5]} |" in text
    assert json.loads((out / "config.json").read_text())["name"] == "tiny"
    with Image.open(out / "samples.png") as picture:
        assert np.ptp(np.asarray(picture)) > 10
    load_sampler(out)


def about(**data):
    return {
        "genaug": "0",
        "jax": "0",
        "weights_digest": "0",
        "spec": {"image": {}},
        "conditions": {"index": {}},
        "config": {"name": "x", "model": {"type": "genaug.models.vae:VAE"}},
        "data": {"name": "d", "origin": "o", "licence": "l", "fingerprint": "f", **data},
    }


def test_text_of_data_is_shown_and_never_obeyed():
    evil = "<script>alert(1)</script>\n# [x](javascript:y) `z` | a_b $m$ \x1b[31m"
    text = card(about(name=evil, licence=evil, class_names=[evil]), pictured=True)
    _, head, body = text.split("---\n", 2)
    assert yaml.safe_load(head)["license_name"].startswith("<script>")
    assert "<script>" not in body
    assert "[x](javascript" not in body
    assert "\x1b" not in text
    assert "\n# [x]" not in body
    rows = [line for line in body.splitlines() if line.startswith("| &lt;")]
    assert len(rows) == 1
    assert rows[0].replace(r"\|", "").count("|") == 5, "a name adds no column"


def test_a_sampler_of_which_nothing_was_measured_says_so():
    text = card(about(), pictured=False)
    assert "None was measured" in text
    assert "have not been checked" in text
    assert "samples.png" not in text


def test_nothing_tells_where_the_data_lies(run_cli, finished_copy, tmp_path):
    """Not the card, the bundle or the report: folders are named after people and projects."""
    for name, field in (("config", "data"), ("data", None), ("results", "data")):
        path = finished_copy / f"{name}.json"
        content = read_json(path)
        about = content[field] if field else content
        if name == "config":
            about["directory"] = "/home/ada/ward 7/prepared"
        else:
            about["origin"] = "image folder ~ada/ward 7/scans"
        path.write_text(json.dumps(content))
    out = tmp_path / "out"
    assert run_cli("export", finished_copy, out, "--card") == 0
    assert run_cli("report", finished_copy) == 0
    written = [finished_copy / "report.html", *(p for p in out.iterdir() if p.is_file())]
    for path in written:
        assert b"ward 7" not in path.read_bytes(), path
    assert "prepared" in (out / "config.json").read_text()
    for page in (out / "README.md", finished_copy / "report.html"):
        assert "image folder scans" in page.read_text()


@pytest.mark.parametrize(
    ("told", "left"),
    [
        ("/home/ada/scans", "scans"),
        ("C:\\Users\\ada\\scans", "scans"),
        ("image folder /home/ada/my scans/x", "image folder x"),
        ("TFDS mnist/3.0.1", "TFDS mnist/3.0.1"),
        ("corpus/", "corpus/"),
        ("genaug.models.vae:VAE", "genaug.models.vae:VAE"),
        ("https://example.org/a/b", "https://example.org/a/b"),
        ({"a": ["~/x/y", 3, None]}, {"a": ["y", 3, None]}),
    ],
)
def test_of_a_place_the_last_name_is_left(told, left):
    assert without_folders(told) == left
