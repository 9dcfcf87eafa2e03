"""A profile of one training step, beside the launches that the engine lists: which kernels are far from their floors.

    ncu --profile-from-start off --metrics gpu__time_duration.sum --csv --log-file profile.csv \\
        engine bench step --profile ...
    engine bench step --launches --device cuda --json launches.json ...
    python tools/profile_rows.py profile.csv launches.json --json rows.json

Both are in the order of the step. A kernel of the engine stands beside the row of its name; what runs between two of
them are the library's kernels for the products that the list has there. Copies and clears are no kernels to ncu. A
profile that is of other launches is an error.
"""

import argparse
import csv
import json
import sys
from pathlib import Path

METRIC = "gpu__time_duration.sum"
SECONDS = {"ns": 1e-9, "nsecond": 1e-9, "us": 1e-6, "usecond": 1e-6, "ms": 1e-3, "msecond": 1e-3, "s": 1.0, "second": 1.0}


def profile(path: Path) -> list[tuple[str, float]]:
    """Name and seconds of each kernel, in the order in which they ran."""
    lines = [line for line in path.read_text(errors="replace").splitlines() if line.startswith('"')]
    found = []
    for row in csv.DictReader(lines):
        if row["Metric Name"] == METRIC:
            name = row["Kernel Name"].split("(")[0].split()[-1]
            found.append((name, float(row["Metric Value"].replace(",", "")) * SECONDS[row["Metric Unit"]]))
    return found


def joined(launches: list[dict], kernels: list[tuple[str, float]]) -> list[dict]:
    """Each launch that is a kernel or a product with the seconds it took."""
    ours = {launch["name"] for launch in launches if launch["file"]}
    at, rows = 0, []
    for launch in launches:
        if launch["name"] in ("copy", "clear"):
            continue
        start = at
        if launch["file"]:
            found = kernels[at][0] if at < len(kernels) else "nothing"
            if found != launch["name"]:
                sys.exit(f"launch {len(rows) + 1} is {launch['name']}, and the profile has {found} there")
            at += 1
        else:
            # As many kernels as the library needs; of products side by side the first gets one each.
            at += 1
            while at < len(kernels) and kernels[at][0] not in ours and not next_is_product(launches, launch):
                at += 1
        taken = kernels[start:at]
        if not taken:
            sys.exit(f"launch {len(rows) + 1}, {launch['name']}: the profile has ended")
        rows.append(launch | {"kernels": [name for name, _ in taken], "measured_s": sum(s for _, s in taken)})
    if at != len(kernels):
        sys.exit(f"the profile goes on behind the last launch, with {kernels[at][0]}")
    return rows


def next_is_product(launches: list[dict], launch: dict) -> bool:
    """Whether another product follows before the next kernel of the engine."""
    index = next(i for i, other in enumerate(launches) if other is launch)
    follow = [other for other in launches[index + 1:] if other["name"] not in ("copy", "clear")]
    return bool(follow) and not follow[0]["file"]


def summed(rows: list[dict]) -> list[dict]:
    """By name, the largest loss against the floor first."""
    sums: dict[str, dict] = {}
    for row in rows:
        entry = sums.setdefault(row["name"], {"name": row["name"], "launches": 0, "floor_s": 0.0, "measured_s": 0.0})
        entry["launches"] += 1
        for part in ("floor_s", "measured_s"):
            entry[part] += row[part]
    return sorted(sums.values(), key=lambda entry: entry["floor_s"] - entry["measured_s"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("profile", type=Path)
    parser.add_argument("launches", type=Path)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    forms = json.loads(args.launches.read_text())["forms"]
    rows = joined(forms[0]["launches"], profile(args.profile))
    sums = summed(rows)
    total = {"name": "all", "launches": len(rows), "floor_s": sum(s["floor_s"] for s in sums),
             "measured_s": sum(s["measured_s"] for s in sums)}
    if args.json:
        args.json.write_text(json.dumps({"rows": rows, "by_name": sums, "all": total}, indent=1) + "\n")
    print(f"{'measured us':>12} {'floor us':>9} {'times':>6} {'launches':>8}  kernel")
    for entry in [*sums, total]:
        measured, floor = 1e6 * entry["measured_s"], 1e6 * entry["floor_s"]
        times = f"{measured / floor:.1f}" if floor else ""
        print(f"{measured:12.1f} {floor:9.1f} {times:>6} {entry['launches']:8}  {entry['name']}")


if __name__ == "__main__":
    main()
