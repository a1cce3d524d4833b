"""What a number carries, and which two of them can be compared."""

import dataclasses
import hashlib
import math

import numpy as np
import pytest

from genaug.evaluation import by_remark, change, from_json, to_json
from genaug.evaluation.results import Result, content_digest, provenance
from genaug.types import UserError

REAL = np.arange(12, dtype=np.uint8).reshape(3, 4)
OLD = Result(
    name="recall",
    value=0.5,
    low=0.4,
    high=0.6,
    floor=0.9,
    better="higher",
    n=100,
    share=True,
    meaning="How much.",
    remarks=("Few.",),
    provenance=provenance(REAL, 0, features="pixels"),
)
NEW = dataclasses.replace(OLD, value=0.8, low=0.65, high=0.85)


def test_a_change_has_the_interval_of_two_independent_numbers():
    moved = change(NEW, OLD)
    down, up = math.hypot(0.15, 0.1), math.hypot(0.05, 0.1)
    np.testing.assert_allclose(moved, [0.3, 0.3 - down, 0.3 + up])
    assert change(OLD, OLD).estimate == 0


@pytest.mark.parametrize(
    "other, words",
    [
        ({"name": "precision"}, "name: precision -> recall"),
        ({"group": "8"}, "class: 8 -> None"),
        ({"n": 99}, "n: 99 -> 100"),
        ({"provenance": provenance(REAL, 1, features="pixels")}, "seed: 1 -> 0"),
        ({"provenance": provenance(REAL + 1, 0, features="pixels")}, "reference: .* -> "),
        ({"provenance": provenance(REAL, 0, features="net")}, "features: net -> pixels"),
        ({"provenance": {**OLD.provenance, "jax": "0.1"}}, "jax: 0.1 -> "),
        ({"provenance": {**OLD.provenance, "k": "3"}}, "k: 3 -> None"),
    ],
)
def test_numbers_of_two_kinds_are_not_compared(other, words):
    with pytest.raises(UserError, match=f"two ways.*{words}"):
        change(NEW, dataclasses.replace(OLD, **other))


def test_a_digest_is_of_bytes_shape_and_dtype():
    sha = hashlib.sha256(b"uint8 (3, 4)" + bytes(range(12)))
    assert content_digest(REAL) == sha.hexdigest()
    others = (REAL.T, REAL.reshape(4, 3), REAL.astype(np.int8), REAL + 1)
    assert len({content_digest(each) for each in (REAL, *others)}) == 5
    assert content_digest(REAL.T) == content_digest(np.ascontiguousarray(REAL.T))


def test_remarks_are_gathered_and_results_go_through_json():
    both = dataclasses.replace(NEW, remarks=("Few.", "Copies."))
    assert by_remark([OLD, both]) == {"Few.": [OLD, both], "Copies.": [both]}
    assert from_json(to_json([OLD, both])) == [OLD, both]
    for wrong in ([{"name": "fd"}], [{**to_json([OLD])[0], "more": 1}], ["text"], 3):
        with pytest.raises(UserError, match="no results of an audit"):
            from_json(wrong)
