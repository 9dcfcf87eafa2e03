#!/usr/bin/env python3
"""Classifies photos on a Ray cluster, and counts the classes in the Parquet files. Started again it makes what is missing.

    python predict.py RUN OUT PHOTOS…                       on this machine
    RAY_ADDRESS=auto python predict.py RUN OUT PHOTOS…      on the cluster that this machine is a node of
"""

import argparse
import collections

import pyarrow.parquet

import clip_engine.ray

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("run", help="a run directory")
parser.add_argument("out", help="the folder for the Parquet files")
parser.add_argument("photos", nargs="+", help="files, and folders with their subfolders")
parser.add_argument("--part-size", type=int, default=1000, help="photos a file")
parser.add_argument("--batch-size", type=int, default=32, help="photos that are computed at a time")
args = parser.parse_args()

made = clip_engine.ray.predict(
    args.run, args.photos, args.out, part_size=args.part_size, batch_size=args.batch_size, resume=True
)
print(f"{made.photos} photos in {made.parts} parts, {made.kept} of them from before; {made.bad} could not be read")

labels = pyarrow.parquet.read_table(args.out, columns=["label"])["label"].to_pylist()
for label, count in collections.Counter(labels).most_common(5):
    print(f"{count:8} {label or '(not read)'}")
