"""Assert that rows drawn without genaug are those that genaug draws."""

import sys

import numpy as np

import genaug

sampler = genaug.load_sampler(sys.argv[1])
with np.load(sys.argv[2]) as rows:
    index = np.arange(len(rows["image"]))
    for name, value in sampler(0, {"index": index, "label": index % 10}).items():
        np.testing.assert_array_equal(rows[name], value)
    assert np.ptp(rows["image"]) > 100
