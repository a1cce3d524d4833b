"""GPT-2's 124-million-parameter net on your own corpus: a preset for accelerators.

    genaug tokenizer corpus/ --vocab-size 50256 --out tokenizer.json
    genaug train experiments/gpt2.py --data.source corpus/ --data.tokenizer tokenizer.json

A folder of .txt files (OpenWebText's, say), a .jsonl or a .csv; 1,024 tokens of context, nanoGPT's
recipe (600,000 updates of 480 rows). Run here: the net's equality with Hugging Face's
(tests/nets/test_transformer.py), its number of parameters, 20 updates at full width on made-up
rows, all of them finite (`genaug profile experiments/gpt2.py --vocab-size 50256
--train.batch-size 1 --model.dtype float32`, 2 CPU cores), and `tiny()`. Not run: the training.
Compiled for 256 TPU v5e (`genaug plan experiments/gpt2.py --vocab-size 50256 --topology v5e-256
--search`, 209 s on 2 CPU cores): with `--mesh.fsdp 16` at most 77 % MFU at 512 rows an update and
83 % at 2,048, in 0.8 and 2.1 GiB of 16; data parallel 59 % at 512. A net of 6.65 billion
parameters, as wide and deep as LLaMA's smallest (`--model.num-layers 32 --model.embed-dim 4096
--model.num-heads 32 --mesh.fsdp 32 --train.batch-size 1024`): 6.9 GiB of a chip's 16, of which the
state 3.1; at most 81.5 % MFU.
"""

import dataclasses

from genaug.config import Experiment
from genaug.data import TextData
from genaug.models.transformer_lm import TransformerLM, gpt2
from genaug.state import Adam
from genaug.train import Train


def config() -> Experiment:
    """The full run."""
    return Experiment(
        name="gpt2",
        data=TextData(
            source="corpus",
            tokenizer="tokenizer.json",
            context=1024,
            valid_fraction=0.0005,
            stride=1024,
        ),
        model=dataclasses.replace(gpt2(), scan_layers=True, remat=True, dtype="bfloat16"),
        train=Train(
            num_steps=600_000,
            batch_size=480,
            steps_per_call=100,
            evaluate_every=2000,
            sample_every=10_000,
            checkpoint_every=2000,
        ),
    )


def tiny() -> Experiment:
    """What `pydoc_lm` does not: GPT-2's layers, looped, texts packed whole."""
    return dataclasses.replace(
        config(),
        name="gpt2_tiny",
        data=TextData(source="pydoc_topics", packing="whole", too_long="split", context=24),
        model=TransformerLM(
            num_layers=2,
            num_heads=2,
            embed_dim=16,
            positions="learned",
            activation="gelu",
            norm="layer",
            use_bias=True,
            scan_layers=True,
            remat=True,
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
