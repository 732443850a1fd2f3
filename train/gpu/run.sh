#!/usr/bin/env bash
# Train the model for everyone and those with domains left out side by side on one accelerator, then score them.
#   SECONDS_EACH=300 DATA=/tmp/kit OUT=results bash train/gpu/run.sh
# DATA holds train.npz and eval.npz, unpacked from what pack.py makes.
set -uo pipefail
here=$(cd "$(dirname "$0")" && pwd)
: "${SECONDS_EACH:=300}" "${DATA:=/tmp/kit}" "${OUT:=results}" "${WORK:=/tmp/kit/runs}" "${TOKENS:=24576}"
mkdir -p "$OUT" "$WORK"
export PYTHONUNBUFFERED=1 OMP_NUM_THREADS=2
train() { # name, domains to leave out
  python3 "$here/small.py" train --data "$DATA/train.npz" --out "$WORK/$1" --leave-out "$2" \
    --seconds "$SECONDS_EACH" --tokens "$TOKENS" --layers "${LAYERS:-4}" --width "${WIDTH:-256}"
}
train full "" &
train no-law-medicine law,medicine &
train no-tourism-finance tourism,finance &
train no-news news &
wait
tar -C "$WORK" -cf "$OUT/logs.tar" --exclude '*.safetensors' --exclude '*.npz' .
mkdir -p "$OUT/full"
cp "$WORK/full/encoder.safetensors" "$WORK/full/cross.safetensors" "$OUT/full/"
score() { # run, sets
  python3 "$here/small.py" score --data "$DATA/eval.npz" --run "$WORK/$1" --out "$OUT/scores-$1.npz" --sets "$2" \
    --candidates 40 --tokens "$TOKENS"
}
if [ -f "$DATA/eval.npz" ]; then
  score full "" &
  score no-law-medicine law-lawyer_llama,medical-kuake_qtr &
  score no-tourism-finance tourism-kdconv,finance-finna &
  score no-news news-xwlb &
  wait
fi
