"""Sweeps, predictions and features on a Ray cluster: ``pip install 'clip-engine[ray]'``.

>>> import clip_engine.ray
>>> clip_engine.ray.predict("runs/photos", "new photos", "predictions")
>>> sweep = clip_engine.ray.sweep("photos", space={"lr_lora": ray.tune.loguniform(1e-4, 1e-2)})
"""

try:
    import ray  # noqa: F401
except ImportError as error:
    raise ImportError("clip_engine.ray needs Ray: pip install 'clip-engine[ray]'") from error

from ._bulk import Parts, embed, predict
from ._sweep import Sweep, sweep

__all__ = ["Parts", "Sweep", "embed", "predict", "sweep"]
