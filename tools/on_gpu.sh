#!/usr/bin/env bash
# Everything that needs a GPU, in at most 25 minutes on one card, with nothing to download:
#
#     bash tools/on_gpu.sh OUT [--tiny]
#
# OUT gets a log of each part, JSON, scores and summary.txt. Each part has a time limit, and goes its way whatever the
# others do. With CamVid under data/camvid (or in $DATA/camvid) the training runs are on it, else on drawn scenes.
# --tiny does the same on the CPU with tiny sizes, whose numbers say nothing: does it run?
set -u
cd "$(dirname "$0")/.."
[ $# -ge 1 ] || { echo "usage: bash tools/on_gpu.sh OUT [--tiny]" >&2; exit 2; }
mkdir -p "$1" || exit 2
OUT=$(cd "$1" && pwd)
[ -z "$(ls -A "$OUT")" ] || { echo "error: $OUT has files in it already; name another folder" >&2; exit 2; }
TINY=${2:-}
PYTHON=${PYTHON:-python}
DATA=${DATA:-data}
failed=0

# part NAME SECONDS COMMAND...
part() {
    local name=$1 limit=$2 started=$SECONDS code=0
    shift 2
    timeout -k 20 "$limit" "$@" > "$OUT/$name.log" 2>&1 || code=$?
    [ "$code" = 0 ] || failed=$((failed + 1))
    echo "$name: exit code $code, $((SECONDS - started)) s of at most $limit s" | tee -a "$OUT/summary.txt"
}

if [ "$TINY" = --tiny ]; then
    DEVICE=cpu
    TESTS=(--collect-only -q)
    BENCHMARK=(--quick --runs 2 --rows counts "loss cityscapes" --no-growth)
    # a network of a few layers, crops of 64 pixels, one epoch
    SMALL=(MODEL.BACKBONE.NAME hrnet_w18_small_v1 TRAIN.NUM_SAMPLES 4 TRAIN.BATCH_SIZE_PER_GPU 2 TRAIN.IMAGE_SIZE 64,64
        TRAIN.END_EPOCH 3 TRAIN.EVAL_INTERVAL 3 TEST.NUM_SAMPLES 2 TRAIN.BASE_SIZE 96 TEST.BASE_SIZE 96 WORKERS 0)
    RUN=("${SMALL[@]}")
    SCENES=(--train 4 --val 2 --test 2 --size 128 64)
else
    DEVICE=cuda
    TESTS=()
    BENCHMARK=(--runs 5)
    SMALL=(TRAIN.NUM_SAMPLES 64 TRAIN.END_EPOCH 3 TRAIN.EVAL_INTERVAL 3 TEST.NUM_SAMPLES 20)
    RUN=(TRAIN.PRECISION bf16 TRAIN.END_EPOCH 40 TRAIN.EVAL_INTERVAL 10 WORKERS 8)
    SCENES=(--train 200 --val 40 --test 10)
fi

if [ -d "$DATA/camvid" ]; then
    LIST=list/camvid/test.lst
    BASE=$PWD/experiments/_base_/camvid.yaml
    SIZES="TRAIN: {IMAGE_SIZE: [360, 360], BASE_SIZE: 480}
TEST: {BASE_SIZE: 480}"
else
    LIST=list/synthetic/val.lst  # labels of its test split are kept back
    BASE=$PWD/experiments/_base_/synthetic.yaml
    SIZES=
    DATA=$OUT/data
    part data 300 "$PYTHON" tools/prepare_data.py synthetic --root "$DATA" "${SCENES[@]}"
fi
cat > "$OUT/baseline.yaml" << YAML
_BASE_: $BASE
MODEL:
  BACKBONE: {NAME: hrnet_w48}
$SIZES
YAML
cat > "$OUT/ovenet.yaml" << 'YAML'
_BASE_: baseline.yaml
MODEL:
  SEED: {NAME: fork}
YAML
cat > "$OUT/sweep.yaml" << YAML
CFG: baseline.yaml
TEST: {DATASET.TEST_SET: $LIST}
RUNS:
  HRNet-W48: {}
  OVeNet-HRNet-W48: {CFG: ovenet.yaml}
YAML
COMMON=(DATASET.ROOT "$DATA" DEVICE "$DEVICE")

part environment 60 "$PYTHON" -c "
import json, sys
sys.path.insert(0, 'lib')
from pathlib import Path
from ovenet.utils.environment import describe_environment
print(json.dumps(describe_environment(Path('.')), indent=1))"
command -v nvidia-smi > /dev/null && part card 30 nvidia-smi

# the Triton kernels against the plain loss, a training, the device's steps: all tests that are marked so
part tests 240 "$PYTHON" -m pytest -m gpu -p no:cacheprovider "${TESTS[@]}"

# resume: cut off in the middle and gone on with, the same bits as a whole run
SAME=("${SMALL[@]}" "${COMMON[@]}" CUDNN.DETERMINISTIC True CUDNN.BENCHMARK False TRAIN.TF32 False WORKERS 0)
part resume_whole 120 "$PYTHON" tools/train.py --cfg "$OUT/ovenet.yaml" "${SAME[@]}" OUTPUT_DIR "$OUT/whole"
part resume_cut 180 "$PYTHON" - "$OUT" "${SAME[@]}" << 'PY'
import signal, subprocess, sys, time
from pathlib import Path

out, settings = Path(sys.argv[1]), sys.argv[2:]
command = [sys.executable, "tools/train.py", "--cfg", str(out / "ovenet.yaml"), *settings, "OUTPUT_DIR", str(out / "cut")]
process = subprocess.Popen(command + ["TRAIN.CHECKPOINT_EVERY", "1"])
while not list((out / "cut").rglob("checkpoint.pth")) and process.poll() is None:
    time.sleep(0.05)
process.send_signal(signal.SIGTERM)
assert process.wait() == 75, "it ended before it could be cut off"
subprocess.run([*command, "TRAIN.RESUME", "True"], check=True)
PY
part resume_bits 60 "$PYTHON" - "$OUT" << 'PY'
import sys
from pathlib import Path

import torch

files = [next((Path(sys.argv[1]) / name).rglob("final_state.pth")) for name in ("whole", "cut")]
whole, cut = (torch.load(path, weights_only=True, map_location="cpu")["model"] for path in files)
other = [name for name in whole if not torch.equal(whole[name], cut[name])]
print(f"{len(whole) - len(other)} of {len(whole)} tensors have the same bits; others: {other[:5]}")
sys.exit(bool(other))
PY

part benchmark 540 "$PYTHON" tools/benchmark.py --device "$DEVICE" "${BENCHMARK[@]}" --output "$OUT/benchmark"

# OVeNet-HRNet-W48 against its baseline, from scratch, one after the other
part runs 480 "$PYTHON" tools/sweep.py "$OUT/sweep.yaml" --results "$OUT/results" --jobs 1 \
    "${COMMON[@]}" "${RUN[@]}" OUTPUT_DIR "$OUT/output"

# weights and drawn scenes are large and can be made again; scores and logs stay
find "$OUT" \( -name '*.pth' -o -name 'events.out.*' \) -delete
[ "$DATA" != "$OUT/data" ] || rm -rf "$OUT/data"
echo "$failed part(s) failed; results in $OUT" | tee -a "$OUT/summary.txt"
[ "$failed" = 0 ]
