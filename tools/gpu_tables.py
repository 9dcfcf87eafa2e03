"""The tables of README.md and docs/performance.md from what `gpu_report.sh` measured, and the file for benches/results.

    python tools/gpu_tables.py first/results.json second/results.json --trimmed benches/results/gpu.json
    python tools/gpu_tables.py benches/results/gpu.json       # the same tables from that file alone

The results of both calls, on GPUs of one model; of what stands in several the last counts. The errors of the quick
checks are in report.log alone: they are read from there where it lies beside the results. Tables are written to
standard output, one heading each; what was not measured has none. The standard library alone.

The engine's step copies its images from the host, so its rate stands beside both of PyTorch's: images that are on the
device already, and images that are copied in the step. Both run step after step without waiting.
"""

import argparse
import json
import math
import re
import sys
from pathlib import Path

FORM = "tables of gpu_report.sh"
PRECISIONS = ("f32", "f16", "bf16")
VARIANT_PARTS = ("variant", "title", "batch_size", "dtype", "status", "problem", "train_resident", "train_uploaded",
                 "memory", "first_train_step_s", "eval_resident", "eval_uploaded", "eval_memory", "first_eval_s",
                 "skipped_steps", "graph_breaks")
# What is called otherwise in an evaluation.
MEMORY = {"train": "memory", "eval": "eval_memory"}
FIRST = {"train": "first_train_step_s", "eval": "first_eval_s"}
OP_PARTS = ("op", "at", "bytes", "flop", "warm", "cold", "problem")
# A line of `engine check`. What could not be computed has neither error nor bound.
CHECK = re.compile(r"^ *(ok|FAILED) +(?:(\S+) +(\de-?\d+)  )?(\S.*)$")
STEP = re.compile(r"^===== (\w+) \(")


# ---------------------------------------------------------------- what is kept


def rounded(value):
    """Six digits of every number: more than there is to them."""
    if isinstance(value, float):
        return float(f"{value:.6g}")
    if isinstance(value, dict):
        return {key: rounded(part) for key, part in value.items()}
    return [rounded(part) for part in value] if isinstance(value, list) else value


def parts(value: dict, names: tuple[str, ...]) -> dict:
    return {name: value[name] for name in names if value.get(name) is not None}


def tally(rows: list[tuple[bool, float, float, str]]) -> dict:
    """Counts, and the largest share of its bound that an error has. A bound of 0 or from 1 on counts levels or
    elements: there a share says nothing. Nor does one of an error that is no number; those checks have failed."""
    shares = [(error / bound, name) for _, error, bound, name in rows if 0 < bound < 1 and math.isfinite(error)]
    found = {"checks": len(rows), "failed": sum(not passed for passed, *_ in rows)}
    if shares:
        share, name = max(shares)
        found |= {"worst_share_of_its_bound": share, "worst": name}
    return found


def checks_in_log(path: Path) -> dict[str, dict]:
    """The quick checks by number type; each group of them is a step of its own."""
    found, precision = {}, None
    for line in path.read_text(errors="replace").splitlines():
        if step := STEP.match(line):
            precision = step[1].split("_")[0]
        elif precision in PRECISIONS and (row := CHECK.match(line)):
            error, bound = (float(number or "nan") for number in row.group(2, 3))
            found.setdefault(precision, []).append((row[1] == "ok", error, bound, row[4]))
    return {f"{precision}, quick": tally(rows) for precision, rows in found.items()}


def checks(path: Path, report: dict) -> dict[str, dict]:
    log = path.with_name("report.log")
    found = checks_in_log(log) if log.exists() else {}
    for name, result in report["results"].items():
        if name.startswith("check_") and "rows" in result:
            rows = [(row["passed"], *(math.nan if row[part] is None else row[part] for part in ("error", "bound")),
                     f"{row['name']}, {row['at']}") for row in result["rows"]]
            found[f"{name.removeprefix('check_')}, in full"] = tally(rows)
    return found


def comparable(name: str, peer: dict) -> bool:
    """Whether PyTorch ran at the engine's sizes and on a GPU, not as a trial of the script."""
    machine, size = peer.get("machine") or {}, peer.get("settings", {}).get("model_size", "vit-b-32")
    fine = size == "vit-b-32" and not machine.get("device", "").startswith("CPU")
    if not fine:
        print(f"warning: {name} is left out: {size} on {machine.get('device')}", file=sys.stderr)
    return fine


def trimmed(path: Path, report: dict) -> dict:
    """What is kept of one results.json."""
    results = report["results"]
    kept = {"form": FORM, "calls": [report["about"]], "engine": {}, "peers": {}}
    if found := checks(path, report):
        kept["checks"] = found
    statuses = [step["status"] for step in report["steps"]]
    kept["calls"][0]["steps"] = {status: statuses.count(status) for status in dict.fromkeys(statuses)}
    for name, result in results.items():
        if name.startswith("bench_step_") and "train" in result:
            kept["engine"][name.removeprefix("bench_")] = parts(
                result, ("batch_size", "reps", "train", "eval", "probe", "peak_device_mib", "machine", "commit"))
        elif name.startswith("peer_step_") and "variants" in result and comparable(name, result):
            variants = [parts(variant, VARIANT_PARTS) for variant in result["variants"]]
            kept["peers"][name.removeprefix("peer_")] = {"machine": result.get("machine"), "variants": variants}
    if "ops" in results.get("bench_ops", {}):
        ops = results["bench_ops"]
        ceilings = ("batch_size", "reps", "copy_bytes_per_s", "best_product_flop_per_s", "machine", "commit")
        kept["engine"]["ops"] = parts(ops, ceilings) | {"ops": [parts(op, OP_PARTS) for op in ops["ops"]]}
    if "ops" in results.get("peer_ops", {}) and comparable("peer_ops", results["peer_ops"]):
        kept["peers"]["ops"] = parts(results["peer_ops"], ("machine", "ops"))
    if "by_name" in results.get("profile_rows", {}):
        rows, launches = results["profile_rows"], results.get("launches", {})
        kept["profile"] = parts(launches, ("batch_size", "device", "floors_of", "commit")) | parts(
            rows, ("by_name", "all"))
    if "runs" in results.get("flowers", {}):
        kept["flowers"] = results["flowers"]
    return rounded(kept)


def together(reports: list[dict]) -> dict:
    """All calls as one; what stands in several is taken from the last, but for checks and what each call is about."""
    whole = {"form": FORM, "calls": [], "engine": {}, "peers": {}}
    for report in reports:
        for name, value in report.items():
            if name == "calls":
                whole[name] += value
            elif isinstance(value, dict) and name != "profile":
                whole[name] = whole.get(name, {}) | value
            else:
                whole[name] = value
    for part, text in (("gpu", "of different GPUs"), ("engine_sha256", "of different binaries")):
        known = dict.fromkeys(call[part] for call in whole["calls"] if call.get(part))
        if len(known) > 1 and part == "gpu":
            sys.exit(f"the results are {text}: {'; '.join(known)}")
        if len(known) > 1:
            print(f"warning: the results are {text}", file=sys.stderr)
    return whole


# ---------------------------------------------------------------- tables


def table(head: list[str], rows: list[list[str]], words: tuple[int, ...] = (0,)) -> str:
    """Without the columns in which no row has anything; those of `words` are set to the left."""
    full = [i for i in range(len(head)) if i == 0 or any(row[i] for row in rows)]
    lines = ["|" + "|".join(f" {row[i]} " if row[i] else " " for i in full) + "|" for row in (head, *rows)]
    lines.insert(1, "|" + "|".join("---" if i in words else "---:" for i in full) + "|")
    return "\n".join(lines)


def number(value, form: str, scale: float = 1.0) -> str:
    return "" if value is None else form.format(value * scale)


def ratio(ours, theirs) -> str:
    return f"{ours / theirs:.2f}" if ours and theirs else ""


def batches(all_: dict) -> list[int]:
    found = {step["batch_size"] for name, step in all_["engine"].items() if name.startswith("step_")}
    return sorted(found | {variant["batch_size"] for variant in variants(all_)})


def variants(all_: dict) -> list[dict]:
    return [v for name, peer in all_["peers"].items() if name.startswith("step_") for v in peer["variants"]]


def engine_steps(all_: dict, batch: int) -> list[tuple[str, dict]]:
    """The engine's measurements at a batch size. The last is the one that PyTorch's are held against: where PyTorch's
    were taken, the engine's were taken again in between."""
    found = [(name, step) for name, step in all_["engine"].items()
             if name.startswith("step_") and step["batch_size"] == batch]
    found.sort(key=lambda entry: "again" in entry[0])
    titles = {True: "engine, between PyTorch's", False: "engine"}
    return [(titles["again" in name], step) for name, step in found]


def rate(entry: dict, part: str, upload: bool):
    return entry.get(f"{part}_{'uploaded' if upload else 'resident'}", {}).get("images_per_s")


def summary_table(all_: dict) -> str:
    """A row for each form of PyTorch, its images per second and how many times as fast the engine is. PyTorch's images
    are on the device already, the engine's are copied in the step."""
    places = [(part, batch) for part in ("train", "eval") for batch in batches(all_)]
    titles = {"train": "training", "eval": "evaluation"}
    head = ["images/s"]
    for part, batch in places:
        head += [f"{titles[part]}, batch {batch}", "engine / PyTorch"]
    ours = {batch: engine_steps(all_, batch)[-1][1] for batch in batches(all_) if engine_steps(all_, batch)}
    row = ["engine, f16"]
    for part, batch in places:
        row += [number(ours.get(batch, {}).get(part, {}).get("images_per_s"), "{:,.0f}"), ""]
    rows = [row]
    for title in dict.fromkeys(variant["title"] for variant in variants(all_)):
        row = [f"PyTorch, {title}"]
        for part, batch in places:
            of = [v for v in variants(all_) if v["title"] == title and v["batch_size"] == batch]
            theirs = next((rate(v, part, False) for v in of if rate(v, part, False)), None)
            mine = ours.get(batch, {}).get(part, {}).get("images_per_s")
            row += [number(theirs, "{:,.0f}"), ratio(mine, theirs)]
        if any(row[1:]):
            rows.append(row)
    return table(head, rows)


def step_table(all_: dict, part: str, batch: int) -> str:
    head = ["", "ms", "TFLOP/s", "images/s, on the device before", "engine / PyTorch", "images/s, copied in the step",
            "engine / PyTorch", "memory, MiB", "first step, s", "what became of it"]
    rows, mine = [], None
    for title, step in engine_steps(all_, batch):
        of = step[part]
        mine = of["images_per_s"]
        rows.append([title, number(of["in_a_row_s"], "{:.3f}", 1e3), number(of["gflops_per_s"], "{:.0f}", 1e-3), "", "",
                     number(mine, "{:,.0f}"), "", number(step.get("peak_device_mib"), "{:,.0f}"), "", ""])
    for variant in variants(all_):
        if variant["batch_size"] != batch:
            continue
        of = variant.get(f"{part}_resident", {})
        copied = rate(variant, part, True)
        rows.append([f"PyTorch, {variant['title']}", number(of.get("p50_s"), "{:.3f}", 1e3),
                     number(of.get("tflops_per_s"), "{:.0f}"), number(of.get("images_per_s"), "{:,.0f}"),
                     ratio(mine, of.get("images_per_s")), number(copied, "{:,.0f}"), ratio(mine, copied),
                     number(variant.get(MEMORY[part], {}).get("reserved_mib"), "{:,.0f}"),
                     number(variant.get(FIRST[part]), "{:.1f}"),
                     "" if variant["status"] == "ok" else variant.get("problem", variant["status"])])
    return table(head, rows, (0, len(head) - 1))


def single_table(all_: dict) -> str:
    """The engine's steps: one at a time, each waited for, and in a row."""
    rows = []
    for batch in batches(all_):
        for title, step in engine_steps(all_, batch):
            for part, name in (("train", "training step"), ("eval", "evaluation"), ("probe", "step of the head alone")):
                if of := step.get(part):
                    seconds = [number(of[at], "{:.3f}", 1e3) for at in ("p20_s", "p50_s", "p80_s", "in_a_row_s")]
                    rows.append([f"{name}, batch {batch}{title.removeprefix('engine')}", *seconds,
                                 number(of["images_per_s"], "{:,.0f}"), number(of["gflop"], "{:,.1f}"),
                                 number(of["gflops_per_s"], "{:.1f}", 1e-3)])
    return table(["ms", "p20", "p50", "p80", "in a row", "images/s", "GFLOP", "TFLOP/s"], rows)


def key_of(op: str, at: str) -> tuple[str, str]:
    """One spelling of a size for both sides."""
    if lora := re.match(r"(\d+x\d+) to (\d+)x(\d+), r (\d+)$", at):
        at = f"{lora[1]} to {int(lora[2]) * int(lora[3])}, rank {lora[4]}"
    # One size each, the same on both sides and told in other words.
    return op, "" if op in ("adamw", "patch_embed") else at


def peer_ops(all_: dict) -> dict[tuple[str, str], dict[str, float]]:
    """PyTorch's medians by operation and size: `warm`, and `flushed`, which is the engine's `cold`."""
    found: dict = {}
    for op in all_["peers"].get("ops", {}).get("ops", []):
        if "problem" not in op:
            found.setdefault(key_of(op["op"], op["at"]), {})[op["l2"]] = op["p50_s"]
    # PyTorch's head begins with the features' normalisation, and its sizes are told in other words.
    return {key if not key[0].startswith("head_loss") else (key[0], ""): times for key, times in found.items()}


def engine_ops(all_: dict) -> list[dict]:
    """As measured, and the sum that is PyTorch's head."""
    ops = [op for op in all_["engine"]["ops"]["ops"] if "warm" in op and "cold" in op]
    for ending in ("", "_backward"):
        both = [op for op in ops if op["op"] in (f"head_loss{ending}", f"l2_norm{ending}")]
        if len(both) == 2:
            ops.append({"op": f"head_loss{ending}", "at": "", "title": f"head_loss{ending} with l2_norm{ending}",
                        **{cache: {"p50_s": sum(op[cache]["p50_s"] for op in both)} for cache in ("warm", "cold")}})
    return ops


def ops_table(all_: dict) -> str:
    head = ["operation", "at", "warm, µs", "cold, µs", "share of the copy rate, warm", "cold",
            "share of the best product, warm", "cold", "PyTorch warm, µs", "PyTorch / engine", "PyTorch cold, µs",
            "PyTorch / engine"]
    ceilings, theirs, rows = all_["engine"]["ops"], peer_ops(all_), []
    for op in engine_ops(all_):
        warm, cold = (op[cache]["p50_s"] for cache in ("warm", "cold"))
        row = [op.get("title", op["op"]), op["at"], number(warm, "{:.2f}", 1e6), number(cold, "{:.2f}", 1e6)]
        for amount, ceiling in (("bytes", "copy_bytes_per_s"), ("flop", "best_product_flop_per_s")):
            for seconds in (warm, cold):
                share = op.get(amount, 0) / seconds / ceilings[ceiling] if ceilings.get(ceiling) else 0
                row.append(f"{share:.2f}" if share >= 0.005 else "")
        known = theirs.get(key_of(op["op"], op["at"]), {})
        for cache, ours in (("warm", warm), ("flushed", cold)):
            row += [number(known.get(cache), "{:.2f}", 1e6), ratio(known.get(cache), ours)]
        rows.append(row)
    return table(head, rows, (0, 1))


def profile_table(all_: dict) -> str:
    rows = []
    for of in [*all_["profile"]["by_name"], all_["profile"]["all"]]:
        rows.append([of["name"], number(of["measured_s"], "{:.1f}", 1e6), number(of["floor_s"], "{:.1f}", 1e6),
                     f"{of['measured_s'] / of['floor_s']:.1f}" if of["floor_s"] else "", str(of["launches"])])
    return table(["kernel", "measured, µs", "floor, µs", "times", "launches"], rows)


def flowers_table(all_: dict) -> str:
    """A column for each run; the rate of its steps beside that of steps in a row."""
    runs = list(all_["flowers"]["runs"].values())
    # Of the same device and number type.
    bench = {step["machine"]["backend"]: step["train"]["images_per_s"] for _, step in engine_steps(all_, 32)}
    rows = [["device", *(run["device"] for run in runs)], ["epochs", *(str(run["epochs"]) for run in runs)]]
    for part in ("features_before", "training", "validation", "evaluation_after"):
        name = part.replace("_", " ")
        rows.append([f"{name}, s", *(number(run[part]["seconds"], "{:.3f}") for run in runs)])
        rows.append([f"{name}, images/s", *(number(run[part].get("images_per_s"), "{:,.0f}") for run in runs)])
    rows.append(["training, share of the rate of steps in a row at batch 32",
                 *(ratio(run["training"].get("images_per_s"), bench.get(run["device"])) for run in runs)])
    rows.append(["first epoch, s", *(number(run["training"]["first_epoch_s"], "{:.3f}") for run in runs)])
    rows.append(["training and validation, with all between, s",
                 *(number(run["training_and_validation_s"], "{:.2f}") for run in runs)])
    rows.append(["the whole process, s", *(number(run.get("wall_s"), "{:.2f}") for run in runs)])
    ordinal = ("first", "second", "third")
    head = ["", *(f"{ordinal[i]} run" if i < 3 else f"run {i + 1}" for i in range(len(runs)))]
    return table(head, [row for row in rows if any(row[1:])])


def checks_table(all_: dict) -> str:
    rows = [[name, f"{of['checks']:,}", str(of["failed"]), number(of.get("worst_share_of_its_bound"), "{:.2f}"),
             of.get("worst", "")] for name, of in all_["checks"].items()]
    return table(["checks", "all", "failed", "largest error, of its bound", "of"], rows, (0, 4))


def about(all_: dict) -> str:
    """The machine and what ran on it, a line each."""
    lines = []
    for call in all_["calls"]:
        steps = ", ".join(f"{count} {status}" for status, count in call["steps"].items())
        lines.append(f"- {call['gpu'] or 'no GPU'}; commit {call['commit']}, {call['started']}; steps: {steps}")
    machines = {part: [of["machine"] for of in all_[part].values() if of.get("machine")]
                for part in ("engine", "peers")}
    lines += dict.fromkeys(f"- engine: {m['backend']}; {m['software']}; {m['cpu']}" for m in machines["engine"])
    lines += dict.fromkeys(f"- PyTorch {m.get('torch')}, transformers {m.get('transformers')}, peft {m.get('peft')}, "
                           f"CUDA {m.get('cuda')}, cuDNN {m.get('cudnn')}" for m in machines["peers"] if "torch" in m)
    if ops := all_["engine"].get("ops"):
        lines.append(f"- copies {ops['copy_bytes_per_s'] / 1e12:.2f} TB/s, read and written together; the best product "
                     f"{ops['best_product_flop_per_s'] / 1e12:.0f} TFLOP/s")
    if floors := all_.get("profile", {}).get("floors_of"):
        lines.append(f"- the floors of the profile are those of {floors['device']}")
    return "\n".join(lines)


def sections(all_: dict) -> list[tuple[str, str]]:
    found = [("The machine", about(all_))]
    if "checks" in all_:
        found.append(("Checks", checks_table(all_)))
    if batches(all_):
        found.append(("README.md: images per second, in a row", summary_table(all_)))
        for part, title in (("train", "Training steps"), ("eval", "Evaluations")):
            found += [(f"{title} at batch {batch}, in a row", step_table(all_, part, batch)) for batch in batches(all_)]
        found.append(("The engine's steps, one at a time and in a row", single_table(all_)))
    if "ops" in all_["engine"]:
        found.append(("Operations", ops_table(all_)))
    if "profile" in all_:
        found.append((f"A step at batch {all_['profile'].get('batch_size')}, kernel by kernel", profile_table(all_)))
    if "flowers" in all_:
        found.append(("A run of Flowers-102's size", flowers_table(all_)))
    return found


def read(path: Path) -> dict:
    report = json.loads(path.read_text())
    if report.get("form") == FORM:
        return report
    if "results" not in report:
        sys.exit(f"{path}: neither a results.json of gpu_report.sh nor what --trimmed writes")
    return trimmed(path, report)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", type=Path, nargs="+")
    parser.add_argument("--trimmed", type=Path, help="write what the tables are made of here")
    args = parser.parse_args()
    all_ = together([read(path) for path in args.results])
    if args.trimmed:
        args.trimmed.write_text(json.dumps(all_, indent=1, ensure_ascii=False) + "\n")
    print("\n\n".join(f"## {title}\n\n{text}" for title, text in sections(all_)))


if __name__ == "__main__":
    main()
