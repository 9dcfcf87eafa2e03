"""What a run of the size of Flowers-102's needs, where nothing can be downloaded: CLIP ViT-B/32 with random weights as
a model directory, and 1,020 photos for training, 1,020 for validation and 102 for the test, of 102 classes.

    python tools/flowers_sized.py DIRECTORY                    # writes DIRECTORY/model and DIRECTORY/photos
    python tools/flowers_sized.py DIRECTORY --photos 1 1 1     # of each class, for a trial where there is no GPU

The text tower and the tokenizer are the demo's, so that the words mean nothing, and take no time. The photos are noise
around a colour of their class, 256 pixels a side. For timings alone: what such a run learns says nothing.
"""

import argparse
import json
import shutil
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image

CLASSES = 102
SIDE = 256
SPLITS = ("train", "val", "test")
PHOTOS = (10, 10, 1)
DEMO = Path(__file__).resolve().parent.parent / "assets" / "demo-clip"


def write_model(directory: Path) -> None:
    import torch
    from transformers import CLIPConfig, CLIPModel, CLIPVisionConfig

    torch.manual_seed(42)
    directory.mkdir(parents=True)
    demo = json.loads((DEMO / "config.json").read_text())
    vision = CLIPVisionConfig(projection_dim=demo["projection_dim"])
    model = CLIPModel(CLIPConfig(text_config=demo["text_config"], vision_config=vision.to_dict(),
                                 projection_dim=demo["projection_dim"]))
    model.half().save_pretrained(directory)
    shutil.copy(DEMO / "tokenizer.json", directory)
    processor = json.loads((DEMO / "preprocessor_config.json").read_text())
    processor["size"] = {"shortest_edge": vision.image_size}
    processor["crop_size"] = {"height": vision.image_size, "width": vision.image_size}
    (directory / "preprocessor_config.json").write_text(json.dumps(processor, indent=2))


def write_class(directory: Path, photos: list[int], number: int) -> None:
    draw = np.random.default_rng(number)
    colour = draw.uniform(40, 215, 3)
    for split, count in zip(SPLITS, photos):
        folder = directory / split / f"flower {number:03}"
        folder.mkdir(parents=True)
        for photo in range(count):
            pixels = colour + draw.normal(0, 25, (SIDE, SIDE, 3))
            Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(folder / f"{photo:02}.jpg", quality=90)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("directory", type=Path)
    parser.add_argument("--photos", type=int, nargs=3, default=PHOTOS, metavar=("TRAIN", "VAL", "TEST"),
                        help="of each class (10 10 1)")
    args = parser.parse_args()
    write_model(args.directory / "model")
    with ProcessPoolExecutor() as workers:
        list(workers.map(partial(write_class, args.directory / "photos", args.photos), range(CLASSES)))


if __name__ == "__main__":
    main()
