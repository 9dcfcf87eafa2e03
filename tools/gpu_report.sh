#!/usr/bin/env bash
# What an NVIDIA GPU says of the engine: correctness, speed beside PyTorch's, and memory errors, in one run.
#
#   tools/gpu_report.sh [STAGE...]    of: doctor start check bench peers sanitizer profile; default: all, in order
#
# For a machine with a GPU and without Rust: needs the release binary, bash, coreutils and, for the peers, Python
# with torch, transformers and peft. Nothing of the GPU's settings is changed.
#
#   ENGINE               the binary (target/release/engine)
#   OUT                  where the results go (target/gpu_report): summary.txt, report.log, results.json
#   PYTHON               the interpreter for the peers (python3)
#   GPU_REPORT_SECONDS   time for everything (570); what does not fit is listed as left out
#   GPU_REPORT_COMMIT    the commit that the binary was built from, where this is no git checkout
#
# Ends with 0 where every check passed, 1 where one failed, 2 where nothing could be run, 3 where none failed but some
# could not be run. Checks are all stages but peers and profile.

set -u

stages=(doctor start check bench peers sanitizer profile)

usage() {
    sed -n '2,/^$/s/^# \{0,1\}//p' "${BASH_SOURCE[0]}"
}

die() {
    printf 'gpu_report: %s\n' "$1" >&2
    exit 2
}

# ---------------------------------------------------------------- steps

names=() kinds=() statuses=() durations=()
current='' current_kind='' running=''

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
    save
}

# Runs a command within its limit of seconds and the time that is left. A command that is given $work/STEP.json must
# write it.
run() { # KIND STEP LIMIT COMMAND...
    local kind=$1 step=$2 own=$3
    shift 3
    local limit=$own left
    left=$(remaining)
    ((left < limit)) && limit=$left
    if ((limit < 3)); then
        note "$kind" "$step" 'no time'
        return
    fi
    current=$step current_kind=$kind
    printf '\n===== %s: %s\n' "$step" "$*" >>"$log"
    local offset start code spent status
    offset=$(stat -c %s "$log")
    start=$(microseconds)
    # In the background: a trap does not wait for what is in the foreground.
    timeout --kill-after=5 "$limit" "$@" >>"$log" 2>&1 </dev/null &
    running=$!
    wait "$running"
    code=$?
    running=''
    spent=$(($(microseconds) - start))
    status=$(verdict "$code" "$spent" "$limit" "$own")
    if [[ " $* " == *" $work/$step.json "* ]] && ! valid_json "$work/$step.json"; then
        printf 'gpu_report: %s wrote no JSON\n' "$step" >>"$log"
        rm -f "$work/$step.json"
        [[ $status == ok ]] && status=failed
    fi
    note "$kind" "$step" "$status" "$(printf '%d.%03d' $((spent / 1000000)) $((spent / 1000 % 1000)))"
    local lines=${show:-3}
    [[ $status == ok ]] || lines=20
    tail -c +$((offset + 1)) "$log" | tail -n "$lines" | cut -c 1-200 | sed 's/^/    /'
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
    printf '%-22s %-12s %s\n' step status seconds
    for i in "${!names[@]}"; do
        printf '%-22s %-12s %s\n' "${names[i]}" "${statuses[i]}" "${durations[i]}"
    done
    printf '%s\n' "$(conclusion)"
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
        [[ -s $file ]] || continue
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
    rm -rf "$work"
    exit "$status"
}

# shellcheck disable=SC2329 # a trap calls it
interrupted() {
    [[ -n $running ]] && kill -TERM "$running" 2>/dev/null && wait "$running"
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
    run check doctor 30 env CLIP_ENGINE_CACHE="$work/doctor" "$engine" doctor
    # The engine looks for its libraries by itself as well; this says whether it finds them.
    run measure doctor_unaided 30 env -u CLIP_ENGINE_CUDA_LIBRARIES CLIP_ENGINE_CACHE="$work/doctor" "$engine" doctor
}

# The same command with nothing compiled before, and again.
start() {
    rm -rf "$work/cache"
    run check start_cold 60 "$engine" check --device cuda --quick
    run check start_warm 30 "$engine" check --device cuda --quick
}

check() {
    local precision
    for precision in f32 f16 bf16; do
        run check "check_$precision" 60 \
            "$engine" check --device cuda --precision "$precision" --json "$work/check_$precision.json"
    done
}

bench() {
    local batch
    for batch in 32 256; do
        show=8 run check "bench_step_$batch" 40 "$engine" bench step --device cuda --precision f16 \
            --batch-size "$batch" --reps 100 --json "$work/bench_step_$batch.json"
    done
    show=40 run check bench_ops 60 "$engine" bench ops --device cuda --precision f16 --reps 50 \
        --json "$work/bench_ops.json"
}

peers() {
    # The sanitizer's share is kept for it, and a minute for the operations.
    local seconds=$(($(remaining) - 60))
    [[ " ${chosen[*]} " == *' sanitizer '* ]] && seconds=$((seconds - 130))
    ((seconds < 20)) && seconds=20
    show=20 run measure peer_step "$seconds" "$python" benches/peers/torch_gpu_step.py \
        --total $((seconds - 8)) --budget 150 --json "$work/peer_step.json"
    show=5 run measure peer_ops 60 "$python" benches/peers/torch_gpu_ops.py --json "$work/peer_ops.json"
}

sanitizer() {
    local tool
    for tool in memcheck racecheck initcheck synccheck; do
        sanitize "$tool" f16
    done
    # f32 has kernels of its own where f16 uses tensor cores.
    sanitize memcheck f32
    sanitize racecheck f32
}

sanitize() { # TOOL PRECISION
    local program options=(--tool "$1" --error-exitcode 86 --print-limit 20)
    program=$(find_sanitizer)
    if [[ -z $program ]]; then
        note check "$1_$2" missing
        return
    fi
    # Products of cuBLASLt are not ours to check, and these two tools take much time over them.
    if [[ $1 == racecheck || $1 == synccheck ]]; then
        options+=(--kernel-name-exclude kns=nvjet --kernel-name-exclude kns=cutlass
            --kernel-name-exclude kns=xmma --kernel-name-exclude kns=cublas)
    fi
    run check "$1_$2" 140 "$program" "${options[@]}" "$engine" check --device cuda --precision "$2" --quick
}

profile() {
    local program
    program=$(find_ncu)
    if [[ -z $program ]]; then
        note measure profile missing
        return
    fi
    # Without --clock-control none, ncu would change the clocks; with the cache left alone, kernels find in it what a
    # step leaves there.
    show=60 run measure profile 90 "$program" --clock-control none --cache-control none \
        --metrics gpu__time_duration.sum --print-summary per-kernel --csv \
        "$engine" bench step --device cuda --precision f16 --batch-size 32 --reps 1
}

# ---------------------------------------------------------------- the run

chosen=()
for argument in "$@"; do
    case $argument in
    -h | --help)
        usage
        exit 0
        ;;
    esac
    [[ " ${stages[*]} " == *" $argument "* ]] || die "$argument: no such stage; they are: ${stages[*]}"
    chosen+=("$argument")
done
((${#chosen[@]})) || chosen=("${stages[@]}")

cd "$(dirname "${BASH_SOURCE[0]}")/.." || die 'the repository cannot be entered'
total=${GPU_REPORT_SECONDS:-570}
[[ $total =~ ^[1-9][0-9]*$ ]] || die "GPU_REPORT_SECONDS=$total: not a number of seconds"
python=${PYTHON:-python3}
engine=${ENGINE:-target/release/engine}
[[ -f $engine && -x $engine ]] ||
    die "$engine: no such program; build it with cargo build --release, or name it in ENGINE"
engine=$(realpath "$engine")
OUT=${OUT:-target/gpu_report}
mkdir -p "$OUT" || die "$OUT: cannot be made"
OUT=$(realpath "$OUT")
work=$(mktemp -d) || die 'no folder for temporary files'
log=$OUT/report.log
: >"$log"
trap finish EXIT
trap interrupted INT TERM

started=$(date -u +%Y-%m-%dT%H:%M:%SZ)
commit=null
found=${GPU_REPORT_COMMIT:-$(git rev-parse --short=12 HEAD 2>/dev/null)}
[[ -n $found ]] && commit=$(json_string "$found")
digest=$(sha256sum "$engine" | cut -d ' ' -f 1)
gpu=$(nvidia-smi --query-gpu=name,driver_version --format=csv,noheader 2>/dev/null)
export CLIP_ENGINE_CACHE=$work/cache
if [[ -z ${CUDA_HOME:-} && -z ${CLIP_ENGINE_CUDA_LIBRARIES:-} ]]; then
    libraries=$(wheel_folders lib)
    [[ -n $libraries ]] && export CLIP_ENGINE_CUDA_LIBRARIES=$libraries
fi
{
    printf '===== environment: %s, binary %s\n' "$started" "$digest"
    environment
} >>"$log" 2>&1

# In the order of importance, however they were named.
for stage in "${stages[@]}"; do
    [[ " ${chosen[*]} " == *" $stage "* ]] || continue
    case $stage in
    doctor) doctor ;;
    start) start ;;
    check) check ;;
    bench) bench ;;
    peers) peers ;;
    sanitizer) sanitizer ;;
    profile) profile ;;
    esac
done
finish
