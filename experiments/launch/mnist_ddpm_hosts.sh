#!/usr/bin/env bash
# mnist_ddpm on 2 hosts. Written by
#
#   genaug launch experiments/mnist_ddpm.py --to hosts --command train --run-dir /shared/runs/mnist_ddpm --host me@gpu1 --host me@gpu2 --genaug /shared/venv/bin/genaug
#
# No plan was made: genaug plan knows the memory and speed of TPUs.
#
#   bash FILE       start, in a folder that every host has (relative paths are read there), and wait;
#                   Ctrl-C stops all hosts, and so does the end of this script: use tmux or nohup
#
# A process a host. When one ends without success, the others are stopped, since they have lost their
# peer, and all are started again, 10 times at most; a mistake (exit codes 2, 3, 4) ends it.
set -uo pipefail

hosts=(me@gpu1 me@gpu2)
max_restarts=10
pause=${PAUSE:-30} # seconds between the end and the next start: ports and devices become free

# What runs on a host: $1 is the number of its process. Its input stays open as long as it shall run.
worker=$(
  cat <<'WORKER_EXPERIMENT'
set -m # the process is a group of its own, with all that it starts
folder=$(mktemp -d) && trap 'rm -rf "$folder"' EXIT
cat >"$folder/mnist-ddpm.py" <<'EXPERIMENT'
"""A small diffusion model of the MNIST digits, by class, that does not learn them by heart.

    genaug train experiments/mnist_ddpm.py
    genaug sample runs/mnist_ddpm --class 8 --n 100 --guidance 1.25

Flow matching with a U-Net of 14 and 7 patches of 2x2 pixels. 3,000 training images are few: 30 % of
them are warped, and the network is told how (Karras et al. 2022), so samples are upright.

18 minutes on 2 cores (x86-64), beside other work of lower priority. One run; `python -m
benchmarks.quality`, 1,000 samples, 5 halves of the held-out images, mean ± sd:
    25 steps                    Fréchet distance 1.37 ± 0.20 times the floor, coverage 0.97 ± 0.01
                                of it, label agreement 96.1 ± 0.1 % (of real images 97.8 ± 0.1 %)
    25 steps, guidance 1.25     1.48 ± 0.16, 0.97 ± 0.01, 99.2 ± 0.1 %
500 validation images: 3.73 ± 0.38 bits per dimension (s.e.). Some samples are no clear digit.
"""

import dataclasses

from genaug.config import Experiment
from genaug.data import Data
from genaug.models.ddpm import DDPM
from genaug.nets.noise import Flow
from genaug.nets.samplers import DDIM
from genaug.nets.unet import UNet
from genaug.state import Adam
from genaug.train import Train


def config() -> Experiment:
    """The full run."""
    return Experiment(
        name="mnist_ddpm",
        data=Data(source="mnist5k"),
        model=DDPM(
            net=UNet(patch_size=2, features=(64, 96), num_blocks=1, attention=(7,)),
            schedule=Flow(log_std=1.0),
            prediction="flow",
            augment=1.0,
            augment_probability=0.3,
            sampler=DDIM(),
            num_steps=25,
            optimizer=Adam(learning_rate=1e-3, clip_norm=1.0, warmup_steps=100, decay_steps=8000),
            ema_decay=0.999,
        ),
        train=Train(
            num_steps=8000,
            batch_size=32,
            evaluate_every=4000,
            sample_every=2000,
            checkpoint_every=500,
        ),
    )


def tiny() -> Experiment:
    """The same in seconds, on scikit-learn's 8x8 digits."""
    return dataclasses.replace(
        config(),
        name="mnist_ddpm_tiny",
        data=Data(source="digits"),
        model=DDPM(
            net=UNet(features=(8, 16), num_blocks=1, attention=(4,), groups=4),
            schedule=Flow(),
            prediction="flow",
            augment=1.0,
            num_steps=4,
            score_levels=4,
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
export JAX_COMPILATION_CACHE_DIR=/shared/runs/compile_cache
exec 3<&0
/shared/venv/bin/genaug train "$folder/mnist-ddpm.py" --coordinator gpu1:8476 \
  --num-processes 2 --process-id "$1" --run-dir /shared/runs/mnist_ddpm \
  </dev/null 3<&- &
process=$!
{
  read -r <&3
  kill -- "-$process"
  sleep "${GRACE:-15}" # a JAX process that waits for a lost peer does not listen
  kill -9 -- "-$process"
} >/dev/null 2>&1 &
watcher=$!
set +m && disown "$watcher"
wait "$process"
code=$?
kill -9 -- "-$process" "-$watcher" 2>/dev/null # and what they started
exit "$code"
WORKER_EXPERIMENT
)
program=$(printf 'cd %q || exit 2\n%s\n' "$PWD" "$worker" | base64 | tr -d '\n')

say() { echo "launch: $*" >&2; }

start() { # a host's process; its exit code goes to a file too
  local line="exec bash -c \"\$(echo $program | base64 -d)\" worker $1" code
  if [[ ${hosts[$1]} == localhost ]]; then
    bash -c "$line"
  else # a host that is gone is noticed within a minute
    ssh -o BatchMode=yes -o ServerAliveInterval=15 -o ServerAliveCountMax=4 "${hosts[$1]}" "$line"
  fi
  code=$?
  echo "$code" >"$codes/$1"
  ((code == 0)) || say "process $1 on ${hosts[$1]} ended with $code"
  return "$code"
}

run_all() { # until all have ended, or one without success: then none is left; its code is returned
  local i code=0
  pids=()
  rm -f "$codes"/*
  mkfifo "$codes/open"
  exec 3<>"$codes/open"
  exec 4<"$codes/open"
  rm "$codes/open"
  for i in "${!hosts[@]}"; do
    start "$i" <&4 3>&- 4<&- &
    pids+=("$!")
  done
  for i in "${!hosts[@]}"; do
    wait -n || { code=$? && break; }
  done
  stop_all
  for i in "$codes"/*; do # what stopped first may be no more than a peer of the mistaken one
    case $(<"$i") in 2 | 3 | 4) code=$(<"$i") ;; esac
  done
  return "$code"
}

stop_all() { # the hosts' input ends, also when this script does
  exec 3>&- 4<&-
  wait "${pids[@]}" # by name: of a plain `wait` the last one is left over for the next `wait -n`
}

codes=$(mktemp -d) && trap 'rm -rf "$codes"' EXIT
trap 'stop_all; exit 130' INT
trap 'stop_all; exit 143' TERM HUP

for ((restart = 1; ; restart++)); do
  run_all
  code=$?
  case $code in 0 | 2 | 3 | 4 | 130) break ;; esac
  ((restart <= max_restarts)) || { say "no restart is left" && break; }
  say "restart $restart of $max_restarts in $pause s"
  sleep "$pause"
done
exit "$code"
