#!/usr/bin/env python3
"""Searches settings of LoRA on a Ray cluster, and puts the best runs beside each other.

    python sweep.py                         the demo's flowers, on this machine
    python sweep.py PHOTOS OUT              a folder of photos with a folder for each class
    RAY_ADDRESS=auto python sweep.py …      on the cluster that this machine is a node of

Started again it goes on where it was.
"""

import sys
from pathlib import Path

from ray import tune

import clip_engine.ray

data, out = sys.argv[1:] if len(sys.argv) == 3 else ("demo", "runs/sweep")
sweep = clip_engine.ray.sweep(
    data,
    out,
    space={
        "lr_lora": tune.loguniform(1e-4, 1e-2),
        "rank": tune.choice([4, 8, 16]),
        "augment": tune.choice(["off", "crop-flip"]),
        "seed": tune.grid_search([1, 2]),
    },
    trials=4,
    epochs=12,
    resume=Path(out, "sweep.json").exists(),
)
for row in sweep.rows:
    print({name: value for name, value in row.items() if value is not None})
print(f"{sweep.best}: {sweep.best.summary['test']['top1']:.1%} of the test images")
