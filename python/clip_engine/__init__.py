"""Fine-tunes CLIP image classifiers, by the same engine as the command ``engine``.

>>> import clip_engine
>>> run = clip_engine.train("photos", recipe="auto")
>>> run.predict("new.jpg")[0].label
"""

from ._compare import Comparison, compare
from ._engine import EngineError, SettingError, __version__
from ._model import Model, Photos, load, photos, zero_shot
from ._pictures import Picture
from ._run import Evaluation, Prediction, Run, train
from ._settings import settings

__all__ = [
    "Comparison",
    "EngineError",
    "Evaluation",
    "Model",
    "Photos",
    "Picture",
    "Prediction",
    "Run",
    "SettingError",
    "__version__",
    "compare",
    "load",
    "photos",
    "settings",
    "train",
    "zero_shot",
]
