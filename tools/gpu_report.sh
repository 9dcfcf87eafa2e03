#!/usr/bin/env bash
# What an NVIDIA GPU says of the engine, in two calls: whether it is right, and how fast it is beside PyTorch.
#
#   tools/gpu_report.sh first         doctor, check, bench, demo, sanitizer: within 280 seconds
#   tools/gpu_report.sh second        doctor, profile, flowers, peers: within 420 seconds
#   tools/gpu_report.sh STAGE...      of these; sooner or later named, always in this order
#
# For a machine with a GPU and without Rust: needs the engine, bash, coreutils and, for profile, flowers and peers,
# Python with torch, transformers, peft and Pillow. Nothing of the GPU's settings is changed.
#
#   ENGINE               the binary (target/dist/engine, else target/release/engine)
#   OUT                  where the results go (target/gpu_report): summary.txt, report.log, results.json
#   PYTHON               the interpreter for the peers (python3)
#   MODEL                a model directory for bench and profile (random weights of ViT-B/32)
#   BATCHES              their batch sizes ("32 256")
#   DEMO                 what the demo trains ("--demo --recipe lora --epochs 6 --early-stop off")
#   FLOWERS              how flowers trains ("--recipe lora --epochs 40 --early-stop off --device cuda")
#   FLOWERS_PHOTOS       its photos of each class for training, validation and test ("10 10 1")
#   GPU_REPORT_SECONDS   time for everything, instead of the above; what does not fit is listed as left out
#   GPU_REPORT_GROUP_SECONDS  limit for each group of checks (20)
#   GPU_REPORT_JOBS      checks that run at once (4)
#   GPU_REPORT_PATIENCE  a factor for all limits (1), for slow machines
#   GPU_REPORT_COMMIT    the commit that the binary was built from, where this is no git checkout
#
# The three files are written anew after every step, so that a run that is stopped leaves what it has. A group of checks
# that fails runs again, every launch waited for and nothing captured or measured, and then under compute-sanitizer.
#
# Ends with 0 where every check passed, 1 where one failed, 2 where nothing could be run, 3 where none failed but some
# could not be run. Checks are all steps of doctor, check, bench and demo, and memcheck and racecheck.

set -u

declare -A calls=([first]='doctor check bench demo sanitizer' [second]='doctor profile flowers peers')
declare -A seconds_of=([first]=280 [second]=420)
stages=(doctor check bench demo sanitizer profile flowers peers)
groups=(layer_norm activation dropout crop_resize patch_embed take_rows copy_rows prompts l2_norm class_features mix_rows head_loss
  triplet accumulate adamw attention linear linear_activation lora_linear lora_fold lora_gradients class_tail steps)

usage() {
    sed -n '2,/^$/s/^# \{0,1\}//p' "${BASH_SOURCE[0]}"
}

die() {
    printf 'gpu_report: %s\n' "$1" >&2
    exit 2
}

# ---------------------------------------------------------------- steps

names=() kinds=() statuses=() durations=()
current='' current_kind=''

microseconds() {
    printf '%s' "${EPOCHREALTIME/[.,]/}"
}

remaining() {
    printf '%s' $((total - SECONDS))
}

note() { # KIND STEP STATUS [SECONDS]
    kinds+=("$1") names+=("$2") statuses+=("$3") durations+=("${4:--}")
    printf '%-22s %-12s %s\n' "$2" "$3" "${4:--}"
    current=''
    ((${saving:-1})) && save
}

# Runs a command within its limit of seconds and the time that is left. A command that is given $work/STEP.json must
# write it.
run() { # KIND STEP LIMIT COMMAND...
    local kind=$1 step=$2 own=$(($3 * ${GPU_REPORT_PATIENCE:-1}))
    shift 3
    local limit=$own left
    left=$(remaining)
    ((left < limit)) && limit=$left
    if ((limit < 3)); then
        note "$kind" "$step" 'no time'
        last_status='no time'
        return
    fi
    current=$step current_kind=$kind
    start "$step" "$limit" "$@"
    wait "$!"
    finished "$kind" "$step" "$own" "$limit" "$@"
}

# In the background: a trap does not wait for what is in the foreground. What it says, and how it ended, goes to files.
start() { # STEP LIMIT COMMAND...
    local step=$1 limit=$2 began code
    shift 2
    {
        began=$(microseconds)
        timeout --kill-after=5 "$limit" "$@" >"$work/$step.said" 2>&1 </dev/null &
        echo "$!" >"$work/$step.running"
        wait "$!"
        code=$?
        rm -f "$work/$step.running"
        printf '%s %s\n' "$code" $(($(microseconds) - began)) >"$work/$step.ended"
    } &
}

finished() { # KIND STEP LIMIT_OF_ITS_OWN LIMIT COMMAND...
    local kind=$1 step=$2 own=$3 limit=$4 code=1 spent=0
    shift 4
    read -r code spent <"$work/$step.ended"
    last_status=$(verdict "$code" "$spent" "$limit" "$own")
    if [[ " $* " == *" $work/$step.json "* ]] && ! valid_json "$work/$step.json"; then
        printf 'gpu_report: %s wrote no JSON\n' "$step" >>"$work/$step.said"
        rm -f "$work/$step.json"
        [[ $last_status == ok ]] && last_status=failed
    fi
    {
        printf '\n===== %s (%s): %s\n' "$step" "$last_status" "$*"
        cat "$work/$step.said"
        libraries_said "$step"
    } >>"$log"
    note "$kind" "$step" "$last_status" "$(printf '%d.%03d' $((spent / 1000000)) $((spent / 1000 % 1000)))"
    local lines=${show:-3}
    [[ $last_status == ok ]] || lines=20
    tail -n "$lines" "$work/$step.said" | cut -c 1-200 | sed 's/^/    /'
}

# What the driver and cuBLASLt wrote since the last time, in words.
libraries_said() { # STEP
    local file
    for file in cuda cublaslt; do
        [[ -s $work/$file.log ]] || continue
        printf -- '----- %s, by %s\n' "$file" "$1"
        head -c 20000 "$work/$file.log"
        : >"$work/$file.log"
    done
}

valid_json() { # FILE
    [[ -s $1 ]] || return
    # Where there is no Python, it is believed.
    command -v "$python" >/dev/null || return 0
    "$python" -m json.tool "$1" >/dev/null 2>&1
}

verdict() { # EXIT_STATUS MICROSECONDS LIMIT OWN_LIMIT
    if (($1 == 0)); then
        printf ok
    elif (($2 < $3 * 1000000)); then
        printf failed
    elif (($3 < $4)); then
        printf 'out of time'
    else
        printf 'time limit'
    fi
}

# ---------------------------------------------------------------- results

json_string() {
    local text=${1//\\/\\\\}
    text=${text//\"/\\\"}
    text=${text//$'\n'/\\n}
    text=${text//$'\t'/ }
    printf '"%s"' "$text"
}

# After every step, so that a run that is stopped leaves what it has.
save() {
    summary >"$OUT/summary.txt"
    results >"$work/results.part" && cp "$work/results.part" "$OUT/results.json"
}

summary() {
    local i
    local precision good
    printf '%-22s %-12s %s\n' step status seconds
    for i in "${!names[@]}"; do
        # Of the groups of checks those that are not well; the others in a line together.
        [[ ${statuses[i]} == ok && " ${groups[*]} " == *" ${names[i]#*_} "* ]] && continue
        printf '%-22s %-12s %s\n' "${names[i]}" "${statuses[i]}" "${durations[i]}"
    done
    for precision in f16 f32 bf16; do
        good=0
        for i in "${!names[@]}"; do
            [[ ${statuses[i]} == ok && ${names[i]} == "${precision}_"* ]] || continue
            [[ " ${groups[*]} " == *" ${names[i]#*_} "* ]] && good=$((good + 1))
        done
        ((good)) && printf '%-22s %s\n' "quick check, $precision" "$good groups ok"
    done
    for i in "${!names[@]}"; do
        [[ -e $work/${names[i]}.said ]] || continue
        case ${names[i]} in
        bench_step* | peer_step*) grep -a '^|' "$work/${names[i]}.said" | tail -n 9 ;;
        flowers) cat "$work/${names[i]}.said" ;;
        # What is farthest from its floor comes first, the sum last.
        profile_rows) sed -n '1,20p;$p' "$work/${names[i]}.said" ;;
        esac | cut -c 1-160 | sed "1s/^/\n${names[i]}\n/"
    done
    printf '\n%s\n' "$(conclusion)"
}

results() {
    local i file separator=''
    printf '{\n"about": {"started": "%s", "commit": %s, "engine_sha256": "%s", "gpu": %s},\n"steps": [' \
        "$started" "$commit" "$digest" "$(json_string "$gpu")"
    for i in "${!names[@]}"; do
        local seconds=${durations[i]}
        [[ $seconds == - ]] && seconds=null
        printf '%s\n {"step": "%s", "status": "%s", "seconds": %s}' \
            "$separator" "${names[i]}" "${statuses[i]}" "$seconds"
        separator=,
    done
    printf '],\n"results": {'
    separator=''
    for file in "$work"/*.json; do
        # One that is being written is not whole yet.
        [[ -s $file && -e ${file%.json}.ended ]] || continue
        printf '%s\n"%s": ' "$separator" "$(basename "$file" .json)"
        cat "$file"
        separator=,
    done
    printf '}\n}\n'
}

# 0, 1 or 3, as at the top.
verdict_of_all() {
    local i result=0
    for i in "${!names[@]}"; do
        [[ ${kinds[i]} == check ]] || continue
        case ${statuses[i]} in
        ok) ;;
        failed | 'time limit') result=1 ;;
        *) ((result == 1)) || result=3 ;;
        esac
    done
    printf '%s' "$result"
}

conclusion() {
    if ((nothing)); then
        printf 'there is no GPU that can be used: nothing was run'
        return
    fi
    case $(verdict_of_all) in
    0) printf 'every check passed' ;;
    1) printf 'a check FAILED' ;;
    *) printf 'no check failed, but not all could be run' ;;
    esac
}

finish() {
    trap - EXIT INT TERM
    printf '\n'
    save
    cat "$OUT/summary.txt"
    printf 'log and results: %s\n' "$OUT"
    local status
    status=$(verdict_of_all)
    ((nothing)) && status=2
    rm -rf "$work"
    exit "$status"
}

# shellcheck disable=SC2329 # a trap calls it
interrupted() {
    local running
    for running in "$work"/*.running; do
        [[ -e $running ]] && kill -TERM "$(<"$running")" 2>/dev/null
    done
    wait
    [[ -n $current ]] && note "$current_kind" "$current" interrupted
    finish
}

# ---------------------------------------------------------------- what is found on this machine

first_executable() {
    local candidate
    for candidate in "$@"; do
        if [[ -x $candidate && -f $candidate ]]; then
            printf '%s' "$candidate"
            return
        fi
    done
}

# Folders of Python's nvidia wheels below which something lies: lib, or bin.
wheel_folders() {
    "$python" -c '
import glob, sys
found = [folder for path in sys.path if path for folder in sorted(glob.glob(path + "/nvidia/*/" + sys.argv[1]))]
print(":".join(dict.fromkeys(found)))' "$1" 2>/dev/null
}

find_sanitizer() {
    local folders
    IFS=: read -r -a folders <<<"$(wheel_folders bin)"
    first_executable "$(command -v compute-sanitizer)" "${CUDA_HOME:-/usr/local/cuda}/bin/compute-sanitizer" \
        /usr/local/cuda/bin/compute-sanitizer "${folders[@]/%//compute-sanitizer}"
}

find_ncu() {
    first_executable "$(command -v ncu)" "${CUDA_HOME:-/usr/local/cuda}/bin/ncu" /usr/local/cuda/bin/ncu \
        /opt/nvidia/nsight-compute/*/ncu
}

environment() {
    local fields=index,name,driver_version,memory.total,memory.used,utilization.gpu,pstate,temperature.gpu
    nvidia-smi --format=csv --query-gpu="$fields",clocks.sm,clocks.max.sm,clocks.mem,power.limit
    uname -srm
    grep -m1 'model name' /proc/cpuinfo
    nproc
    "$python" -c '
import sys
from importlib.metadata import PackageNotFoundError, version
print("python", sys.version)
for package in ("torch", "transformers", "peft", "triton", "nvidia-cublas", "nvidia-cuda-nvrtc"):
    try:
        print(package, version(package))
    except PackageNotFoundError:
        print(package, "is not installed")'
    env | grep -E '^(CUDA_|CLIP_ENGINE_|LD_LIBRARY_PATH)' | sort
    return 0
}

# ---------------------------------------------------------------- stages

doctor() {
    run check doctor 30 "$engine" doctor --gpu
    if [[ $last_status != ok ]]; then
        nothing=1
        return
    fi
    # The engine looks for its libraries by itself as well; this says whether it finds them.
    run measure doctor_unaided 30 env -u CLIP_ENGINE_CUDA_LIBRARIES "$engine" doctor --gpu
}

# Compiles everything; then each group in a process of its own, for an error can leave a process no device.
check() {
    local precision group step limit=${GPU_REPORT_GROUP_SECONDS:-20}
    limit=$((limit * ${GPU_REPORT_PATIENCE:-1}))
    for precision in f32 f16 bf16; do
        run check "compile_$precision" 60 "$engine" check --device cuda --precision "$precision" --quick --only accumulate
    done
    current='quick checks' current_kind=check
    local begun=()
    for precision in f16 f32 bf16; do
        for group in "${groups[@]}"; do
            if (($(remaining) < limit)); then
                note check "${precision}_$group" 'no time'
                continue
            fi
            while (($(jobs -rp | wc -l) >= ${GPU_REPORT_JOBS:-4})); do wait -n; done
            start "${precision}_$group" "$limit" "$engine" check --device cuda --precision "$precision" --quick \
                --only "$group"
            begun+=("${precision}_$group")
        done
    done
    wait
    local failed=()
    for step in "${begun[@]}"; do
        saving=0 show=1 finished check "$step" "$limit" "$limit" engine check --quick
        [[ $last_status == ok ]] || failed+=("$step")
    done
    save
    for step in "${failed[@]:0:4}"; do
        search "${step%%_*}" "${step#*_}"
    done
    run check check_f16 60 "$engine" check --device cuda --precision f16 --json "$work/check_f16.json"
}

# Where a group of checks fails: each launch waited for, nothing captured, nothing measured; then with the sanitizer.
search() { # PRECISION GROUP
    local one_by_one=(env CUDA_LAUNCH_BLOCKING=1 CLIP_ENGINE_GRAPHS=0 CLIP_ENGINE_MEASURE=0)
    run measure "again_$1_$2" 30 "${one_by_one[@]}" "$engine" check --device cuda --precision "$1" --quick --only "$2"
    sanitize measure memcheck "$1" 60 "$2"
}

bench() {
    local batch
    for batch in $batches; do
        show=8 run check "bench_step_$batch" 40 "$engine" bench step --device cuda --precision f16 "${model[@]}" \
            --batch-size "$batch" --reps 100 --json "$work/bench_step_$batch.json"
    done
    show=70 run check bench_ops 45 "$engine" bench ops --device cuda --precision f16 "${model[@]}" --reps 30 \
        --json "$work/bench_ops.json"
}

# The same run twice, and once interrupted and resumed: to the same bits.
demo() {
    local train
    read -r -a train <<<"${DEMO:---demo --recipe lora --epochs 6 --early-stop off}"
    train=("$engine" train "${train[@]}" --device cuda)
    local run
    for run in one two; do
        show=2 run check "demo_$run" 60 "${train[@]}" --output "$work/demo_$run"
    done
    run check demo_same_bits 10 bash -c 'same_bits "$@"' same_bits "$work/demo_one" "$work/demo_two"
    run check demo_interrupted 60 bash -c 'interrupt "$@"' interrupt "$work/demo_three" "${train[@]}" --output "$work/demo_three"
    show=2 run check demo_resumed 60 "$engine" train --resume --output "$work/demo_three" --device cuda
    run check demo_resumed_same_bits 10 bash -c 'same_bits "$@"' same_bits "$work/demo_one" "$work/demo_three"
}

# A training run that is ended as soon as it has saved an epoch, which must be before its last. Not by Ctrl-C's signal:
# what a script starts in the background is deaf to it.
interrupt() { # RUN COMMAND...
    local run=$1 training code
    shift
    "$@" &
    training=$!
    until [[ -e $run/state.safetensors ]]; do
        kill -0 "$training" 2>/dev/null || break
        sleep 0.02
    done
    kill -TERM "$training" 2>/dev/null
    wait "$training"
    code=$?
    printf 'ended with %s\n' "$code"
    ((code != 0)) && [[ -e $run/state.safetensors ]]
}

# That both runs have trained the same tensors, and some.
same_bits() { # RUN RUN
    local file count=0
    for file in "$1"/head.safetensors "$1"/adapter/*.safetensors; do
        [[ -e $file ]] || continue
        cmp "$file" "$2/${file#"$1"/}" || return 1
        count=$((count + 1))
    done
    printf '%s files are the same\n' "$count"
    ((count > 1))
}

sanitizer() {
    sanitize check memcheck f16 70
    sanitize check racecheck f16 70
    # Says what is read before it is written. All kernels must be watched for it, cuBLASLt's too, and some read more
    # than they use: for information.
    sanitize measure initcheck f16 60
}

sanitize() { # KIND TOOL PRECISION SECONDS [GROUP]
    local program options=(--tool "$2" --error-exitcode 86 --print-limit 20) only=()
    program=$(find_sanitizer)
    [[ -n ${5:-} ]] && only=(--only "$5")
    local step=$2_$3${5:+_$5}
    if [[ -z $program ]]; then
        note "$1" "$step" missing
        return
    fi
    # The products of cuBLASLt are not ours to check and take much time.
    if [[ $2 != initcheck ]]; then
        options+=(--kernel-name-exclude kns=nvjet --kernel-name-exclude kns=cutlass
            --kernel-name-exclude kns=xmma --kernel-name-exclude kns=cublas)
    fi
    run "$1" "$step" "$4" "$program" "${options[@]}" "$engine" check --device cuda --precision "$3" --quick "${only[@]}"
}

# ncu's time for every kernel of one step, beside the list of launches that the engine makes of it.
profile() {
    local program batch=${batches%% *}
    program=$(find_ncu)
    # Measures what there is to choose from, so that the list and the profile are of the same choices.
    run check bench_step_to_choose 40 "$engine" bench step --device cuda --precision f16 "${model[@]}" \
        --batch-size "$batch" --reps 10
    run measure launches 30 "$engine" bench step --launches --device cuda --precision f16 --batch-size "$batch" \
        "${model[@]}" --json "$work/launches.json"
    if [[ -z $program ]]; then
        note measure profile missing
        return
    fi
    # Without --clock-control none, ncu would change the clocks; with the cache left alone, kernels find in it what a
    # step leaves there. Call by call, as the step is between the profiler's start and stop.
    run measure profile 120 env CLIP_ENGINE_GRAPHS=0 "$program" --profile-from-start off --clock-control none \
        --cache-control none --metrics gpu__time_duration.sum --csv --log-file "$work/profile.csv" \
        "$engine" bench step --device cuda --precision f16 "${model[@]}" --batch-size "$batch" --reps 1 --profile
    show=70 run measure profile_rows 30 "$python" tools/profile_rows.py "$work/profile.csv" "$work/launches.json" \
        --json "$work/profile_rows.json"
}

# A run of the size of Flowers-102's, from photos to report, twice: the second one finds what the first has compiled and
# measured. Photos are decoded before both.
flowers() {
    local train photos run
    read -r -a train <<<"${FLOWERS:---recipe lora --epochs 40 --early-stop off --device cuda}"
    read -r -a photos <<<"${FLOWERS_PHOTOS:-10 10 1}"
    local from=(--data "$work/flowers/photos" --model "$work/flowers/model")
    show=0 run measure flowers_photos 60 "$python" tools/flowers_sized.py "$work/flowers" --photos "${photos[@]}"
    [[ $last_status == ok ]] || return
    run measure flowers_prep 30 "$engine" prep "${from[@]}"
    local whole=()
    for run in flowers_one flowers_two; do
        # Each task with its seconds is among what is said on this level.
        show=2 run measure "$run" 60 "$engine" train "${train[@]}" "${from[@]}" --log-level debug --output "$work/$run"
        [[ $last_status == ok ]] && whole+=("$work/$run")
    done
    ((${#whole[@]})) || return
    show=20 run measure flowers 10 "$python" tools/run_seconds.py "${whole[@]}" --json "$work/flowers.json"
}

peers() {
    local batch
    for batch in $batches; do
        peer "peer_step_$batch" 150 --batch-sizes "$batch" --variants eager,sdpa,eager-half,half-graph,compile
        show=8 run check "bench_step_again_$batch" 40 "$engine" bench step --device cuda --precision f16 "${model[@]}" \
            --batch-size "$batch" --reps 100 --json "$work/bench_step_again_$batch.json"
    done
    show=5 run measure peer_ops 60 "$python" benches/peers/torch_gpu_ops.py --dtypes f16 --json "$work/peer_ops.json"
    # Compiles for minutes: last of all.
    peer peer_step_autotuned 300 --batch-sizes "${batches%% *}" --variants one-graph,max-autotune
}

peer() { # STEP SECONDS ARGUMENT...
    local step=$1 seconds=$2 left
    shift 2
    left=$(remaining)
    ((left < seconds)) && seconds=$left
    show=20 run measure "$step" "$seconds" "$python" benches/peers/torch_gpu_step.py "$@" --dtypes f16 \
        --total $((seconds - 5)) --budget $((seconds / 2)) --json "$work/$step.json"
}

# ---------------------------------------------------------------- the run

chosen=() total=${GPU_REPORT_SECONDS:-}
for argument in "$@"; do
    case $argument in
    -h | --help)
        usage
        exit 0
        ;;
    first | second)
        read -r -a stages_of_call <<<"${calls[$argument]}"
        chosen+=("${stages_of_call[@]}")
        total=${total:-${seconds_of[$argument]}}
        continue
        ;;
    esac
    [[ " ${stages[*]} " == *" $argument "* ]] ||
        die "$argument: no such call or stage; they are: first second ${stages[*]}"
    chosen+=("$argument")
done
((${#chosen[@]})) || die "say which call: first or second"

cd "$(dirname "${BASH_SOURCE[0]}")/.." || die 'the repository cannot be entered'
total=${total:-600}
[[ $total =~ ^[1-9][0-9]*$ ]] || die "GPU_REPORT_SECONDS=$total: not a number of seconds"
python=${PYTHON:-python3}
batches=${BATCHES:-32 256}
model=()
[[ -n ${MODEL:-} ]] && model=(--model "$MODEL")
engine=${ENGINE:-$(first_executable target/dist/engine target/release/engine)}
[[ -f $engine && -x $engine ]] ||
    die "${engine:-target/dist/engine}: no such program; build it with cargo build --profile dist, or name it in ENGINE"
engine=$(realpath "$engine")
OUT=${OUT:-target/gpu_report}
mkdir -p "$OUT" || die "$OUT: cannot be made"
OUT=$(realpath "$OUT")
work=$(mktemp -d) || die 'no folder for temporary files'
log=$OUT/report.log
: >"$log"
nothing=0
trap finish EXIT
trap interrupted INT TERM

started=$(date -u +%Y-%m-%dT%H:%M:%SZ)
commit=null
found=${GPU_REPORT_COMMIT:-$(git rev-parse --short=12 HEAD 2>/dev/null)}
[[ -n $found ]] && commit=$(json_string "$found")
digest=$(sha256sum "$engine" | cut -d ' ' -f 1)
gpu=$(nvidia-smi --query-gpu=name,driver_version --format=csv,noheader 2>/dev/null)
export CLIP_ENGINE_CACHE=$work/cache XDG_CACHE_HOME=$work/cache
export CUDA_LOG_FILE=$work/cuda.log CUBLASLT_LOG_LEVEL=1 CUBLASLT_LOG_FILE=$work/cublaslt.log
if [[ -z ${CUDA_HOME:-} && -z ${CLIP_ENGINE_CUDA_LIBRARIES:-} ]]; then
    libraries=$(wheel_folders lib)
    [[ -n $libraries ]] && export CLIP_ENGINE_CUDA_LIBRARIES=$libraries
fi
export -f interrupt same_bits
{
    printf '===== environment: %s, binary %s\n' "$started" "$digest"
    environment
} >>"$log" 2>&1

# In the order of importance, however they were named.
for stage in "${stages[@]}"; do
    [[ " ${chosen[*]} " == *" $stage "* ]] || continue
    ((nothing)) && break
    "$stage"
done
finish
