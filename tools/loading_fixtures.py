"""Makes the fixtures of tests/data/tokenizer.rs and tests/train/clip_loading.rs: what transformers reads from the same files.

    python tools/loading_fixtures.py --out tests/fixtures

  tokenizer/merges.txt      CLIP's byte-pair merges; the vocabulary follows from them
  tokenizer/pipeline.json   the tokenizer.json that transformers saves, without vocabulary and merges
  tokenizer/cases.json      texts, their ids, and batches with padding and pooled positions
  clip-config/cases.json    config.json files, old and new, and how transformers resolves them
  clip-{single,sharded,f16,bf16}/   the same very small model saved in four ways
"""

import argparse
import copy
import gzip
import importlib.util
import json
import os
import shutil
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")
import torch
from transformers import CLIPConfig, CLIPModel, CLIPTokenizer

BOS, EOS = "<|startoftext|>", "<|endoftext|>"
MERGES = 49_152 - 256 - 2  # how many of the published merges CLIP uses

TEXTS = [
    "a photo of a cat",
    "A photo of pink primrose.",
    "A photo of flower hard-leaved pocket orchid.",
    "Botanic picture of colt's foot",
    "A example picture of type bird of paradise",
    "",
    "   ",
    "  many \t\n  spaces\u00a0and\u3000kinds  ",
    "it's John's dog, they'll've; WE'RE I'M don'T",
    "caf\u00e9 cafe\u0301 \u00dcber na\u00efve \u0130stanbul stra\u00dfe \u1e9e \ufb01ne",
    "\u4f60\u597d\u4e16\u754c \u3053\u3093\u306b\u3061\u306f \uc548\ub155",
    "\U0001f600\U0001f33a flowers \U0001f468\u200d\U0001f469\u200d\U0001f467 \u2764\ufe0f",
    "&amp; &lt;b&gt; <b>bold</b> &#39;",
    "a photo of a black-footed_albatross.",
    "2023 items, 3.14159 \u00bd x\u00b2 \u0663\u0664 \u2163",
    "<|endoftext|> hi",
    "before <|startoftext|>inside<|endoftext|>after <|EndOfText|>",
    "zero\u200bwidth \ufeffmark \x00null \x7f",
    "supercalifragilisticexpialidocious antidisestablishmentarianism",
    "!!! ... ?! --- ___ ~~~ ''' \"\"\"",
    "\u0627\u0644\u0639\u0631\u0628\u064a\u0629 \u0939\u093f\u0928\u094d\u0926\u0940 \u05e2\u05d1\u05e8\u05d9\u05ea",
    "word " * 120,
    "uncommonlylongword" * 40,
    "a" * 300,
]


def byte_pair_merges() -> list[tuple[str, str]]:
    package = Path(importlib.util.find_spec("open_clip").origin).parent
    lines = gzip.open(package / "bpe_simple_vocab_16e6.txt.gz", "rt", encoding="utf-8").read().split("\n")
    return [tuple(line.split()) for line in lines[1 : 1 + MERGES]]


def vocabulary(merges: list[tuple[str, str]]) -> dict[str, int]:
    """Ids in CLIP's order: 256 byte symbols (printable bytes first), the same closing a word, merges, specials."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [256 + i for i in range(256 - len(printable))]
    symbols = [chr(c) for c in printable + others]
    tokens = symbols + [s + "</w>" for s in symbols] + ["".join(m) for m in merges] + [BOS, EOS]
    return {token: i for i, token in enumerate(tokens)}


def pooled_positions(ids: torch.Tensor, eos: int) -> list[int]:
    """The row that CLIPTextTransformer.forward takes: `eos` 2 means the largest id, first position on ties."""
    return (ids.argmax(-1) if eos == 2 else (ids == eos).int().argmax(-1)).tolist()


def tokenizer_fixtures(out: Path) -> None:
    out.mkdir(parents=True, exist_ok=True)
    merges = byte_pair_merges()
    lines = ["#version: 0.2", *(" ".join(m) for m in merges), ""]
    (out / "merges.txt").write_text("\n".join(lines), encoding="utf-8")
    tokenizer = CLIPTokenizer(vocab=vocabulary(merges), merges=merges)

    pipeline = json.loads(tokenizer.backend_tokenizer.to_str())
    pipeline["model"]["vocab"], pipeline["model"]["merges"] = {}, []
    (out / "pipeline.json").write_text(json.dumps(pipeline, indent=1))

    def encode(texts, **options):
        return tokenizer(texts, truncation=True, max_length=77, **options)["input_ids"]

    batches = []
    for texts in (TEXTS[:5], TEXTS[5:6], TEXTS[14:18], TEXTS):
        ids = encode(texts, padding=True, return_tensors="pt")
        batch = {"texts": texts, "ids": ids.tolist()}
        batch["pooled"] = pooled_positions(ids, tokenizer.eos_token_id)
        batch["pooled_legacy"] = pooled_positions(ids, 2)
        batches.append(batch)
    cases = {"rows": [{"text": t, "ids": i} for t, i in zip(TEXTS, encode(TEXTS))], "batches": batches}
    (out / "cases.json").write_text(json.dumps(cases, ensure_ascii=True, separators=(",", ":")))


def openai_style_config() -> dict:
    """The shape of the files OpenAI's checkpoints carry: both spellings of each tower, generation settings."""
    noise = {"add_cross_attention": False, "architectures": None, "bad_words_ids": None, "top_k": 50, "num_beams": 1,
             "id2label": {"0": "LABEL_0"}, "torch_dtype": None, "dropout": 0.0, "transformers_version": "4.16.0.dev0"}
    text = {**noise, "model_type": "clip_text_model", "attention_dropout": 0.0, "bos_token_id": 0, "eos_token_id": 2,
            "pad_token_id": 1, "hidden_act": "quick_gelu", "hidden_size": 512, "intermediate_size": 2048,
            "layer_norm_eps": 1e-05, "max_position_embeddings": 77, "num_attention_heads": 8, "num_hidden_layers": 12,
            "vocab_size": 49408, "initializer_range": 0.02}
    vision = {**noise, "model_type": "clip_vision_model", "hidden_act": "quick_gelu", "hidden_size": 768,
              "image_size": 224, "intermediate_size": 3072, "layer_norm_eps": 1e-05, "num_attention_heads": 12,
              "num_hidden_layers": 12, "patch_size": 32, "bos_token_id": None, "eos_token_id": None}
    return {"_commit_hash": None, "architectures": ["CLIPModel"], "initializer_factor": 1.0, "projection_dim": 512,
            "logit_scale_init_value": 2.6592, "model_type": "clip", "text_config": text, "text_config_dict": None,
            "vision_config": vision, "vision_config_dict": None, "torch_dtype": "float32", "transformers_version": None}


# Sizes of published checkpoints: activation, then of the vision tower width, MLP, blocks, heads, image and patch,
# of the text tower width, MLP, blocks and heads, and the features.
PUBLISHED = {
    "openai/clip-vit-base-patch16": ("quick_gelu", (768, 3072, 12, 12, 224, 16), (512, 2048, 12, 8), 512),
    "openai/clip-vit-large-patch14": ("quick_gelu", (1024, 4096, 24, 16, 224, 14), (768, 3072, 12, 12), 768),
    "openai/clip-vit-large-patch14-336": ("quick_gelu", (1024, 4096, 24, 16, 336, 14), (768, 3072, 12, 12), 768),
    "laion/CLIP-ViT-B-32-laion2B-s34B-b79K": ("gelu", (768, 3072, 12, 12, 224, 32), (512, 2048, 12, 8), 512),
    "laion/CLIP-ViT-B-16-laion2B-s34B-b88K": ("gelu", (768, 3072, 12, 12, 224, 16), (512, 2048, 12, 8), 512),
    "laion/CLIP-ViT-L-14-laion2B-s32B-b82K": ("gelu", (1024, 4096, 24, 16, 224, 14), (768, 3072, 12, 12), 768),
    "laion/CLIP-ViT-H-14-laion2B-s32B-b79K": ("gelu", (1280, 5120, 32, 16, 224, 14), (1024, 4096, 24, 16), 1024),
    "laion/CLIP-ViT-g-14-laion2B-s12B-b42K": ("gelu", (1408, 6144, 40, 16, 224, 14), (1024, 4096, 24, 16), 1024),
    "laion/CLIP-ViT-bigG-14-laion2B-39B-b160k": ("gelu", (1664, 8192, 48, 16, 224, 14), (1280, 5120, 32, 20), 1280),
}


def published_config(activation: str, vision: tuple, text: tuple, projection: int) -> dict:
    """A file of the kind that those checkpoints carry, every size spelt out."""
    config = openai_style_config()
    tower = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
    config["text_config"].update(zip(tower, text), hidden_act=activation, projection_dim=projection)
    config["vision_config"].update(zip((*tower, "image_size", "patch_size"), vision), hidden_act=activation,
                                   projection_dim=projection)
    config["projection_dim"] = projection
    if activation == "gelu":
        # LAION's carry both spellings of each tower, with equal values.
        for side in ("text_config", "vision_config"):
            config[f"{side}_dict"] = copy.deepcopy(config[side])
    return config


def config_files() -> dict[str, dict]:
    large = {"model_type": "clip", "projection_dim": 768,
             "text_config": {"hidden_size": 768, "intermediate_size": 3072, "num_attention_heads": 12,
                             "projection_dim": 768},
             "vision_config": {"hidden_size": 1024, "intermediate_size": 4096, "num_attention_heads": 16,
                               "num_hidden_layers": 24, "patch_size": 14, "image_size": 336, "projection_dim": 768}}
    published = {name: published_config(*sizes) for name, sizes in PUBLISHED.items()}
    merged = copy.deepcopy(openai_style_config())
    merged["text_config_dict"] = {"hidden_size": 1024, "num_attention_heads": 16, "hidden_act": "gelu"}
    merged["vision_config_dict"] = {"num_hidden_layers": 4}
    merged["vision_config"].update(patch_size=16, num_hidden_layers=6)
    return {
        "defaults": {"model_type": "clip"},
        "openai": openai_style_config(),
        "sparse-large-336": large,
        "null-towers": {"model_type": "clip", "text_config": None, "vision_config": None},
        "legacy-dicts-win": merged,
        "legacy-dict-empty": {"model_type": "clip", "text_config": {"hidden_size": 256}, "text_config_dict": {}},
        "laion-gelu": {"model_type": "clip", "text_config": {"hidden_act": "gelu"},
                       "vision_config": {"hidden_act": "gelu", "layer_norm_eps": 1e-6}, "logit_scale_init_value": 2},
        "indivisible": {"model_type": "clip", "vision_config": {"image_size": 225, "patch_size": [14, 14]}},
        "saved-now": CLIPConfig(vision_config={"patch_size": 16}).to_dict(),
        **published,
    }


def resolve(values: dict) -> dict:
    config = CLIPConfig.from_dict(copy.deepcopy(values))

    def tower(c):
        return {"width": c.hidden_size, "mlp": c.intermediate_size, "layers": c.num_hidden_layers,
                "heads": c.num_attention_heads, "activation": c.hidden_act, "norm_eps": c.layer_norm_eps}

    vision, text = config.vision_config, config.text_config
    side = lambda v: v if isinstance(v, int) else v[0]
    image, patch = side(vision.image_size), side(vision.patch_size)
    return {"projection": config.projection_dim, "logit_scale_init": config.logit_scale_init_value,
            "vision": {**tower(vision), "image_size": image, "patch_size": patch, "tokens": (image // patch) ** 2 + 1},
            "text": {**tower(text), "vocabulary": text.vocab_size, "max_tokens": text.max_position_embeddings,
                     "bos": text.bos_token_id, "eos": text.eos_token_id}}


def parameters(values: dict) -> int:
    """Numbers in the weights of such a model."""
    with torch.device("meta"):
        return CLIPModel(CLIPConfig.from_dict(copy.deepcopy(values))).num_parameters()


def config_fixtures(out: Path) -> None:
    out.mkdir(parents=True, exist_ok=True)
    cases = [{"name": n, "config": c, "resolved": resolve(c)} for n, c in config_files().items()]
    for case in cases:
        if case["name"] in PUBLISHED:
            case["parameters"] = parameters(case["config"])
    (out / "cases.json").write_text(json.dumps(cases, indent=1))


def model_fixtures(out: Path) -> None:
    torch.manual_seed(0)
    model = CLIPModel(CLIPConfig(
        projection_dim=8,
        vision_config=dict(hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2,
                           image_size=8, patch_size=4),
        text_config=dict(hidden_size=12, intermediate_size=20, num_hidden_layers=1, num_attention_heads=3,
                         vocab_size=32, max_position_embeddings=9, bos_token_id=30, eos_token_id=31),
    ))
    ways = {"single": (torch.float32, "1GB"), "sharded": (torch.float32, "12KB"),
            "f16": (torch.float16, "1GB"), "bf16": (torch.bfloat16, "1GB")}
    for name, (dtype, shard) in ways.items():
        directory = out / f"clip-{name}"
        shutil.rmtree(directory, ignore_errors=True)
        copy.deepcopy(model).to(dtype).save_pretrained(directory, max_shard_size=shard)
        (directory / "generation_config.json").unlink(missing_ok=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("tests/fixtures"))
    out = parser.parse_args().out
    tokenizer_fixtures(out / "tokenizer")
    config_fixtures(out / "clip-config")
    model_fixtures(out)


if __name__ == "__main__":
    main()
