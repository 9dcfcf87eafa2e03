#!/usr/bin/env python3
"""Photos a second that workers of a Ray cluster classify: clusters of one node and of two on this machine, each node of
one CPU and one worker, beside one process without Ray on one thread. Prints a table in Markdown.

    pip install './python[ray]'
    python3 tools/ray_throughput.py --run RUN --photos DIR --times 100

The photos of DIR are classified as often as --times says. The time is that of the call, without the start of the cluster;
workers open the run within it. Medians of --rounds, the forms in turn.
"""
import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ALONE = """
import sys, time, clip_engine
run, listed, batch = sys.argv[1:]
files = open(listed).read().split("\\n")
start = time.monotonic()
assert len(clip_engine.Run(run).predict(files, batch_size=int(batch))) == len(files)
print(time.monotonic() - start)
"""


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", required=True)
    parser.add_argument("--photos", required=True, type=Path)
    parser.add_argument("--times", type=int, default=100)
    parser.add_argument("--part-size", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    files = [str(path) for path in sorted(args.photos.rglob("*.jpg"))] * args.times
    seconds = {"one process, without Ray": [], "one worker": [], "two workers": []}
    for _ in range(args.rounds):
        alone, one, two = seconds.values()
        alone.append(without_ray(args, files))
        one.append(with_ray(args, files, 1))
        two.append(with_ray(args, files, 2))
    base = statistics.median(seconds["one worker"])
    print(f"| {len(files)} photos | photos a second | for one worker |\n|---|---:|---:|")
    for name, times in seconds.items():
        median = statistics.median(times)
        print(f"| {name} | {len(files) / median:.0f} | {base / median:.2f} |")


def without_ray(args, files):
    with tempfile.NamedTemporaryFile("w") as listed:
        listed.write("\n".join(files))
        listed.flush()
        command = [sys.executable, "-c", ALONE, args.run, listed.name, "32"]
        told = subprocess.run(command, check=True, stdout=subprocess.PIPE, env={**os.environ, "RAYON_NUM_THREADS": "1"})
        return float(told.stdout.split()[-1])


def with_ray(args, files, nodes):
    import ray
    from ray.cluster_utils import Cluster

    import clip_engine.ray

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
    for _ in range(nodes - 1):
        cluster.add_node(num_cpus=1)
    ray.init(address=cluster.address, log_to_driver=False)
    try:
        with tempfile.TemporaryDirectory() as out:
            start = time.monotonic()
            made = clip_engine.ray.predict(args.run, files, Path(out) / "out", part_size=args.part_size, progress=False)
            assert (made.photos, made.bad) == (len(files), 0)
            return time.monotonic() - start
    finally:
        ray.shutdown()
        cluster.shutdown()


if __name__ == "__main__":
    main()
