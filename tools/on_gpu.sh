#!/usr/bin/env bash
# Everything that needs a GPU, in two halves of four minutes on one card, each of use alone, with nothing to download:
#
#     bash tools/on_gpu.sh OUT [first|second] [--tiny]
#
# first: tests that are marked gpu, speed of losses, training steps and inference, where a step's time goes.
# second: resuming to the same bits, what TF32 and bf16 change in mIoU, memory as planned, a sweep on CamVid, how fast
# crops are loaded.
# CamVid lies under data/camvid or $DATA/camvid; without it drawn scenes take its place. Each part has a time limit,
# goes its way whatever the others do, and leaves what it found in OUT at once: at most 8 files, summary.txt and log.txt
# among them. Called again with the same OUT, it does what is not done: parts that failed, and what was not reached.
# --tiny does the same on the CPU with tiny sizes, whose numbers say nothing: does it run?
set -u
cd "$(dirname "$0")/.."
usage() { echo "usage: bash tools/on_gpu.sh OUT [first|second] [--tiny]" >&2; exit 2; }
OUT='' HALVES='' TINY=''
for word; do
    case $word in
        first | second) HALVES="$HALVES $word" ;;
        --tiny) TINY=1 ;;
        -*) usage ;;
        *) [ -z "$OUT" ] && OUT=$word || usage ;;
    esac
done
[ -n "$OUT" ] || usage
mkdir -p "$OUT" || exit 2
OUT=$(cd "$OUT" && pwd)
PARTS=$OUT/parts.tsv # name, exit code, seconds, key figure
LOG=$OUT/log.txt
[ -e "$PARTS" ] || [ -z "$(ls -A "$OUT")" ] || { echo "error: $OUT has other files in it; name another folder" >&2; exit 2; }
PYTHON=${PYTHON:-python}
DATA=${DATA:-data}
HALF_SECONDS=${HALF_SECONDS:-228}
SLOWER=${TINY:+4} # times as long a CPU may take
WORK=$(mktemp -d) # runs, weights and drawn scenes; they can be made again
trap 'rm -rf "$WORK"' EXIT
touch "$PARTS" "$LOG"

# note NAME CODE SECONDS FIGURE: takes the place of what an earlier call noted
note() {
    { grep -v "^$1"$'\t' "$PARTS"; printf '%s\t%s\t%s\t%s\n' "$@"; } > "$PARTS.new"
    mv "$PARTS.new" "$PARTS"
    awk -F'\t' 'BEGIN { printf "%-12s %5s %8s  %s\n", "part", "exit", "seconds", "key figure" }
        { printf "%-12s %5s %8s  %s\n", $1, $2, $3, $4 }' "$PARTS" > "$OUT/summary.txt"
}

# left: seconds until the half is over
left() { echo $((END - SECONDS)); }

# least SECONDS: so many, or what is left
least() { echo $(($1 * ${SLOWER:-1} < END - SECONDS ? $1 * ${SLOWER:-1} : END - SECONDS)); }

# part NAME SECONDS COMMAND...; the last line that it prints is its key figure
part() {
    local name=$1 limit=$2 started=$SECONDS code=0 size
    shift 2
    if grep -q "^$name"$'\t0\t' "$PARTS"; then echo "$name: done already"; return; fi
    limit=$(least "$limit")
    if [ "$limit" -lt 5 ]; then
        echo "$name: skipped, the time is over"
        grep -q "^$name"$'\t' "$PARTS" || note "$name" - 0 "skipped, the time was over"
        return
    fi
    echo "=== $name: $*" >> "$LOG"
    size=$(wc -c < "$LOG")
    timeout -k 10 "$limit" "$@" >> "$LOG" 2>&1 || code=$?
    note "$name" "$code" $((SECONDS - started)) "$(tail -c +$((size + 1)) "$LOG" | grep . | tail -n 1 | cut -c -600 | tr '\t' ' ')"
    grep "^$name"$'\t' "$PARTS"
}

if [ -n "$TINY" ]; then
    DEVICE=cpu
    TESTS=(--jobs 1 --collect-only)
    BENCHMARK=(--quick --runs 2 --rows "loss cityscapes" "loss cityscapes ohem")
    PROFILE=(--quick --steps 1 --warm-up 1)
    TRAINING=(MODEL.BACKBONE.NAME hrnet_w18_small_v1 TRAIN.IMAGE_SIZE 64,64 TRAIN.BASE_SIZE 96 TEST.BASE_SIZE 96 WORKERS 0
        TRAIN.BATCH_SIZE_PER_GPU 2 TRAIN.NUM_SAMPLES 4 TEST.NUM_SAMPLES 2)
    RESUME=("${TRAINING[@]}" TRAIN.END_EPOCH 3 TRAIN.EVAL_INTERVAL 3)
    SWEEP=(--seeds 1 --no-baseline)
    LONG=("${TRAINING[@]}" TRAIN.END_EPOCH 1 TRAIN.EVAL_INTERVAL 1)
    MEMORY=(--steps 1 "${LONG[@]}" TRAIN.NUM_SAMPLES 8)
    CHECKPOINT=(--checkpoints 2 MODEL.BACKBONE.NAME hrnet_w18_small_v1 TRAIN.BATCH_SIZE_PER_GPU 1)
    FEEDING=(--quick --runs 2 --rows "crops by loading processes 1")
    TESTING=(TEST.NUM_SAMPLES 2 WORKERS 0)
    SCENES=(--train 8 --val 2 --test 2 --size 128 64)
else
    DEVICE=cuda
    TESTS=(--jobs 12)
    BENCHMARK=(--runs 7)
    PROFILE=(TRAIN.PRECISION bf16)
    RESUME=(--again TRAIN.PRECISION bf16 TRAIN.BATCH_SIZE_PER_GPU 4 TRAIN.NUM_SAMPLES 64 TRAIN.END_EPOCH 3
        TRAIN.EVAL_INTERVAL 3 TEST.NUM_SAMPLES 20)
    SWEEP=(--seeds 3)
    LONG=(WORKERS 2 DATASET.CACHE disk DATASET.CACHE_DIR "$WORK/cache" TRAIN.EVAL_INTERVAL 14)
    MEMORY=(--steps 6 MODEL.BACKBONE.NAME hrnet_w48 MODEL.HEAD.NAME ocr TRAIN.IMAGE_SIZE 1024,512 TRAIN.BASE_SIZE 1024
        WORKERS 8 TRAIN.BATCH_SIZE_PER_GPU 4 TRAIN.NUM_SAMPLES 96 TRAIN.END_EPOCH 1 TRAIN.EVAL_INTERVAL 1 TEST.NUM_SAMPLES 4)
    CHECKPOINT=(TRAIN.EMA 0.9999 TRAIN.PRECISION bf16 TRAIN.BATCH_SIZE_PER_GPU 4)
    FEEDING=(--runs 3 --rows "crops by loading processes 16")
    TESTING=(WORKERS 8)
    SCENES=(--train 64 --val 24 --test 4)
fi

first() {
    part environment 20 "$PYTHON" -c "
import json, sys
sys.path.insert(0, 'lib')
from pathlib import Path
from ovenet.utils.environment import describe_environment
found = describe_environment(Path('.'))
print(json.dumps(found, indent=1))
print(f\"torch {found['packages']['torch']} on {found['devices'] or 'the CPU'}, commit {found['git']['commit']}\")"
    command -v nvidia-smi > /dev/null && part card 15 nvidia-smi
    part tests 80 "$PYTHON" tools/gpu/tests.py "${TESTS[@]}" --seconds 70
    part profile 45 "$PYTHON" tools/benchmark_profile.py --device "$DEVICE" --output "$OUT/profile.json" "${PROFILE[@]}"
    part speed "$(left)" "$PYTHON" tools/benchmark.py --device "$DEVICE" --card --go-on "${BENCHMARK[@]}" \
        --seconds "$(($(left) - 14))" --output "$OUT"
}

second() {
    local cfg list model
    if [ -d "$DATA/camvid" ]; then
        cfg=experiments/camvid/ovenet_hrnet_w18_small_v2.yaml list=list/camvid/test.lst model=camvid-lite0
    else # labels of the scenes' test split are kept back
        cfg=experiments/synthetic/ovenet_hrnet_w18_small_v2.yaml list=list/synthetic/val.lst model=scenes-lite0
        DATA=$WORK/data
        timeout 120 "$PYTHON" tools/prepare_data.py synthetic --root "$DATA" "${SCENES[@]}" >> "$LOG" 2>&1
    fi
    local given=(DATASET.ROOT "$DATA" DEVICE "$DEVICE")
    part resume 75 "$PYTHON" tools/gpu/resume.py --cfg "$cfg" --work "$WORK/resume" "${RESUME[@]}" "${given[@]}"
    part accuracy 40 "$PYTHON" tools/gpu/accuracy.py "$model" "${given[@]}" DATASET.TEST_SET "$list" "${TESTING[@]}"
    local memory=("$PYTHON" tools/gpu/memory.py --cfg "$cfg" --work "$WORK/memory")
    part memory 60 "${memory[@]}" --only bf16 "${MEMORY[@]}" "${given[@]}"
    part checkpoint 45 "$PYTHON" tools/benchmark_checkpoint.py --cfg experiments/cityscapes/ovenet_w48_ocr.yaml \
        DEVICE "$DEVICE" "${CHECKPOINT[@]}"
    part sweep 130 "$PYTHON" tools/gpu/sweep.py --cfg "$cfg" --list "$list" "${SWEEP[@]}" --work "$WORK/sweep" \
        --seconds "$(($(least 130) - 25))" --pack "$OUT/sweep.tar.gz" "${given[@]}" "${LONG[@]}"
    part feeding 60 bash -c '"$@" > "$0" 2>&1; code=$?; cat "$0"; grep images/s "$0"; exit $code' "$WORK/feeding.log" \
        "$PYTHON" tools/benchmark.py --device cpu --no-memory --no-growth --output "$OUT" "${FEEDING[@]}"
    [ -n "$TINY" ] || part memory_tf32 "$(left)" "${memory[@]}" --only TF32 "${MEMORY[@]}" "${given[@]}"
}

for half in ${HALVES:-first second}; do
    END=$((SECONDS + HALF_SECONDS * ${SLOWER:-1}))
    "$half"
done
if [ "$(wc -c < "$LOG")" -gt 8000000 ]; then tail -c 8000000 "$LOG" > "$LOG.new" && mv "$LOG.new" "$LOG"; fi
failed=$(awk -F'\t' '$2 != "0"' "$PARTS" | wc -l)
cat "$OUT/summary.txt"
echo "$failed part(s) failed or not done; results in $OUT" | tee -a "$OUT/summary.txt"
[ "$failed" = 0 ]
