#!/usr/bin/env bash
# gpt2 on 512 v5e chips (2 slices of 16x16), 128 hosts. Written by
#
#   genaug launch experiments/gpt2.py --to tpu-vm --command train --run-dir gs://my-bucket/runs/gpt2 --topology 2xv5e-256 --spot --vocab-size 50256 --zone us-west4-a --train.batch-size 512 --mesh.fsdp 16
#
# Plan, compiled for 2xv5e-256 and not measured: 0.746 GiB of 16 GiB of a chip's memory; an update of 512
# takes 20.5 ms at least, bound by network: an MFU of 21.7 % at most.
#
#   bash FILE       queue for the machines, install, start, and wait; in the end they are deleted.
#
# Machines that are preempted are asked for again, 10 times at most. On the machines, a process that
# ends without success is started again, as often; it does not need this script, which may be stopped
# and started again. A mistake (exit codes 2, 3, 4) ends it all. Relative paths are read in
# gs://my-bucket, whose folders are renamed at once, as checkpoints want it, if it has a hierarchical
# namespace; what each machine printed is copied there in the end.
set -uo pipefail

name=gpt2
nodes=(gpt2-0 gpt2-1)
num_hosts=128 # machines, 4 chips each
where=(--zone=us-west4-a --quiet)
ends=gs://my-bucket/runs/gpt2.launch/ends # how the process of each machine ended
max_restarts=10
pause=${PAUSE:-30} # seconds between two looks

# What every machine needs; what runs there from before is ended.
setup=$(
  cat <<'SETUP'
[[ -s $HOME/genaug.pid ]] && kill -9 -- "-$(<"$HOME/genaug.pid")" 2>/dev/null
set -e
if ! command -v gcsfuse >/dev/null; then
  packages=https://packages.cloud.google.com/apt
  key=/usr/share/keyrings/cloud.google.asc
  curl -fsS "$packages/doc/apt-key.gpg" | sudo tee "$key" >/dev/null
  echo "deb [signed-by=$key] $packages gcsfuse-$(lsb_release -cs) main" |
    sudo tee /etc/apt/sources.list.d/gcsfuse.list >/dev/null
  sudo apt-get -qq -o DPkg::Lock::Timeout=600 update # a new machine updates itself at first
  sudo DEBIAN_FRONTEND=noninteractive apt-get -qq -o DPkg::Lock::Timeout=600 install -y gcsfuse
fi
sudo mkdir -p /mnt/genaug && sudo chown "$USER" /mnt/genaug
mountpoint -q /mnt/genaug || gcsfuse --implicit-dirs --rename-dir-limit=100000 my-bucket /mnt/genaug
python3 -m pip install -q --user uv # its Python: the machine's own is too old for genaug
python3 -m uv venv -q --allow-existing --python 3.12 "$HOME/genaug"
python3 -m uv pip install -q --python "$HOME/genaug/bin/python" 'genaug[demo,text,tpu]'
SETUP
)

# What runs on a machine, whether or not somebody is connected to it.
worker=$(
  cat <<'WORKER_EXPERIMENT'
cat >"$HOME/gpt2.py" <<'EXPERIMENT'
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
EXPERIMENT
cat >"$HOME/worker.sh" <<'WORKER'
cd /mnt/genaug || exit 2
launch=/mnt/genaug/runs/gpt2.launch
mkdir -p "$launch/ends" "$launch/logs"
export JAX_COMPILATION_CACHE_DIR=/mnt/genaug/runs/compile_cache
for ((restart = 1; ; restart++)); do
  "$HOME/genaug/bin/genaug" train "$HOME/gpt2.py" --distributed \
    --run-dir /mnt/genaug/runs/gpt2 --train.batch-size 512 --mesh.fsdp 16
  code=$?
  case $code in 0 | 2 | 3 | 4 | 130) break ;; esac
  # Where another machine has made a mistake, its peers have nobody to wait for.
  grep -qsxE '2|3|4' "$launch/ends"/* && break
  ((restart <= 10)) || break
  echo "launch: ended with $code; restart $restart of 10 in ${PAUSE:-30} s"
  sleep "${PAUSE:-30}"
done
cp "$HOME/genaug.log" "$launch/logs/$HOSTNAME.log"
echo "$code" >"$launch/ends/$HOSTNAME"
WORKER
setsid bash "$HOME/worker.sh" </dev/null >"$HOME/genaug.log" 2>&1 &
echo "$!" >"$HOME/genaug.pid"
WORKER_EXPERIMENT
)

say() { echo "launch: $*" >&2; }

state() {
  local said
  if said=$(gcloud compute tpus queued-resources describe "$name" "${where[@]}" \
    --format='value(state.state)' 2>&1); then
    tail -n 1 <<<"$said"
  elif [[ $said == *NOT_FOUND* ]]; then
    echo NONE
  else # the network may be down: that says nothing about the machines
    say "$said"
    echo UNKNOWN
  fi
}

create() {
  gcloud compute tpus queued-resources create "$name" "${where[@]}" \
    --accelerator-type=v5litepod-256 --runtime-version=v2-alpha-tpuv5-lite \
    --node-count=2 --node-prefix="$name" --spot
}

delete() { gcloud compute tpus queued-resources delete "$name" "${where[@]}" --force; }

bring_up() { # until the machines are there
  local now
  while true; do
    now=$(state)
    case $now in
      ACTIVE) return 0 ;;
      NONE) create || return ;;
      FAILED | SUSPENDED) delete ;;
    esac
    say "$name: $now"
    sleep "$pause"
  done
}

on_all() { # a script, on every machine
  local node text
  text=$(base64 <<<"$1" | tr -d '\n')
  for node in "${nodes[@]}"; do
    gcloud compute tpus tpu-vm ssh "$node" "${where[@]}" --worker=all \
      --command="bash -c \"\$(echo $text | base64 -d)\"" </dev/null || return 1
  done
}

start() {
  local node try
  for node in "${nodes[@]}"; do # the first connection makes the keys; all at once would trip over it
    for ((try = 1; try <= 20; try++)); do
      gcloud compute tpus tpu-vm ssh "$node" "${where[@]}" --worker=0 --command=true </dev/null &&
        continue 2
      [[ $(state) == ACTIVE ]] || return 1
      sleep "$pause"
    done
    return 1
  done
  on_all "$setup" || return 1
  gcloud storage rm --recursive "$ends" 2>/dev/null
  on_all "$worker" || return 1
  say "follow it: gcloud compute tpus tpu-vm ssh ${nodes[0]} ${where[*]} --command 'tail -F genaug.log'"
}

watch() { # until all have ended, one has for good, or the machines are gone
  local codes code
  while sleep "$pause"; do
    case $(state) in
      ACTIVE | UNKNOWN) ;;
      *) say "the machines are gone" && return 75 ;;
    esac
    codes=$(gcloud storage cat "$ends/*" 2>/dev/null)
    for code in 2 3 4; do
      grep -qx "$code" <<<"$codes" && return "$code"
    done
    code=$(grep -vx 0 <<<"$codes" | sort -n | tail -n 1)
    [[ -n $code ]] && return "$code"
    (($(grep -c . <<<"$codes") < num_hosts)) || return 0
  done
}

trap 'say "the machines go on; to end them: gcloud compute tpus queued-resources delete $name ${where[*]} --force"; exit 130' INT
for ((restart = 1; ; restart++)); do
  if ! bring_up || ! start; then
    code=1
  else
    watch
    code=$?
    ((code == 75)) || break
  fi
  ((restart <= max_restarts)) || { say "no restart is left" && break; }
  say "restart $restart of $max_restarts in $pause s"
  sleep "$pause"
done
delete
exit "$code"
