"""A language model of Python's own documentation, in minutes on two cores.

    pip install -e ".[text]"
    genaug train experiments/pydoc_lm.py
    genaug sample runs/pydoc_lm --n 5 --prompt "The with statement" --temperature 0.8

The 79 topics that `help()` knows, 465 kB that ship with Python; the last tenth of every topic is
held out, and scored with what stands before it in its topic as context. The 2,048 tokens are pieces
of words that the training text gives.

Measured (2 cores of an x86-64 machine, beside other work, 10 minutes): 1.557 ± 0.046 bits
per byte (s.e. over held-out rows), 1.570 at update 800. A Kneser-Ney byte 5-gram takes 1.850, the
best 8-gram 1.553 and `xz -9` 2.605, or 1.368 after the training text
(`python -m benchmarks.text_baselines`). A longer schedule learns the text by heart: 2,800 updates
were at 1.625 after 1,600.
"""

import dataclasses

from genaug.config import Experiment
from genaug.data import TextData
from genaug.models.transformer_lm import TransformerLM
from genaug.state import Adam
from genaug.train import Train


def config() -> Experiment:
    """The full run."""
    return Experiment(
        name="pydoc_lm",
        data=TextData(source="pydoc_topics", holdout="tail", tokenizer="bpe:2048", context=256),
        model=TransformerLM(
            num_layers=6,
            num_heads=4,
            embed_dim=256,
            dropout=0.2,
            optimizer=Adam(
                learning_rate=1e-3,
                b2=0.99,
                weight_decay=0.1,
                clip_norm=1.0,
                warmup_steps=100,
                decay_steps=1000,
            ),
        ),
        train=Train(
            num_steps=1000,
            batch_size=8,
            evaluate_every=200,
            sample_every=500,
            checkpoint_every=200,
        ),
    )


def tiny() -> Experiment:
    """The same in seconds, on rows of 24 bytes."""
    return dataclasses.replace(
        config(),
        name="pydoc_lm_tiny",
        data=TextData(source="pydoc_topics", holdout="tail", context=24),
        model=TransformerLM(
            num_layers=2,
            num_heads=2,
            num_kv_heads=1,
            embed_dim=16,
            dropout=0.1,
            optimizer=Adam(learning_rate=3e-3),
            ema_decay=0.99,
        ),
        train=Train(
            num_steps=100,
            batch_size=32,
            steps_per_call=10,
            evaluate_every=50,
            sample_every=50,
            checkpoint_every=50,
        ),
    )
