"""Makes the fixtures of tests/cli/adapter_files.rs: adapters that peft itself wrote, and what it computes with them.

    python tools/peft_fixtures.py --model tests/fixtures/reference/tiny --out tests/fixtures/peft

  CASE/adapter/          the adapter, with random values of A and B
  CASE/expected.safetensors
                         features: image features of the two pictures of pictures(), [2, E], normalised;
                         merged.NAME: the first rows of the weight NAME after merge_and_unload, one layer of each
                         kind and tower
  refused.json           configurations with options that the engine does not have, by the option's name

The model is the smallest of the reference fixtures; adapters have rank 2, so the files stay small.
"""

import argparse
import json
import os
import shutil
import tempfile
import warnings
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import save_file
from transformers import CLIPModel, CLIPTextModel, CLIPVisionModel, CLIPVisionModelWithProjection, logging

MEAN = torch.tensor([0.48145466, 0.4578275, 0.40821073]).view(3, 1, 1)
STD = torch.tensor([0.26862954, 0.26130258, 0.27577711]).view(3, 1, 1)
ROWS = 3
ATTENTION = ["q_proj", "k_proj", "v_proj", "out_proj"]
VISION = r"vision_model\.encoder\.layers\.\d+\."

# What peft is asked for: the class it wraps, and the options beside rank and alpha.
ACCEPTED = {
    "list": (CLIPVisionModelWithProjection, {"target_modules": ["q_proj", "v_proj"]}),
    "regex": (CLIPModel, {"target_modules": VISION + r"self_attn\.(q|k|v|out)_proj"}),
    "rslora": (CLIPModel, {"target_modules": VISION + "self_attn.q_proj", "use_rslora": True, "lora_alpha": 3}),
    "mlp": (CLIPModel, {"target_modules": r".*vision_model.*\.fc[12]", "lora_dropout": 0.25}),
    "text": (CLIPModel, {"target_modules": r"text_model.*\.(q_proj|fc1)"}),
    "both": (CLIPModel, {"target_modules": [*ATTENTION, "fc1", "fc2"], "init_lora_weights": "gaussian"}),
    # Attention in one tower, the MLP in the other.
    "uneven": (CLIPModel, {"target_modules": r"vision_model.*\.v_proj|text_model.*\.fc2"}),
    "exclude": (CLIPModel, {"target_modules": ["q_proj"], "exclude_modules": r"text_model\..*"}),
    "blocks": (CLIPModel, {"target_modules": ["k_proj"], "layers_to_transform": [1], "layers_pattern": "layers"}),
    "patterns": (
        CLIPVisionModelWithProjection,
        {"target_modules": ["out_proj"], "rank_pattern": {"out_proj": 3}, "alpha_pattern": {"self_attn.out_proj": 5}},
    ),
    # Without the model around it, the names do not say which tower it is.
    "vision_only": (CLIPVisionModel, {"target_modules": "all-linear"}),
    "text_only": (CLIPTextModel, {"target_modules": ["v_proj"]}),
}

# Adapters of layers that the engine cannot adapt.
FOREIGN = {
    "projection": {"target_modules": ["q_proj", "visual_projection"]},
    "all_linear": {"target_modules": "all-linear"},
    "embedding": {"target_modules": ["token_embedding"]},
    "convolution": {"target_modules": ["patch_embedding"]},
}

# One option each.
REFUSED = {
    "use_dora": {"use_dora": True},
    "lora_bias": {"lora_bias": True},
    "bias": {"bias": "all"},
    "modules_to_save": {"modules_to_save": ["visual_projection"]},
    "fan_in_fan_out": {"fan_in_fan_out": True},
    "use_qalora": {"use_qalora": True},
    "trainable_token_indices": {"trainable_token_indices": [3, 4]},
    "target_parameters": {"target_parameters": ["vision_model.embeddings.class_embedding"]},
    "layer_replication": {"layer_replication": [[0, 2], [1, 3]]},
    "alora_invocation_tokens": {"alora_invocation_tokens": [5]},
    "megatron_config": {"megatron_config": {"hidden_size": 64}},
    "ensure_weight_tying": {"ensure_weight_tying": True},
    "use_bdlora": {"use_bdlora": {"target_modules_bd_a": ["q_proj"], "nblocks": 2}},
    "arrow_config": {"arrow_config": {"top_k": 2}},
    "kasa_config": {"kasa_config": {}},
    "velora_config": {"velora_config": {"num_groups": 4}},
    "monteclora_config": {"monteclora_config": {"num_samples": 2}},
    "init_lora_weights": {"init_lora_weights": "pissa"},
    "init_lora_weights olora": {"init_lora_weights": "olora"},
    "init_lora_weights corda": {"init_lora_weights": "corda"},
    "init_lora_weights lora_ga": {"init_lora_weights": "lora_ga"},
}


def pictures() -> torch.Tensor:
    """Two small pictures, [2, 3, 32, 32], as bytes; the test draws the same."""
    i, y, x, c = torch.meshgrid(*(torch.arange(n) for n in (2, 32, 32, 3)), indexing="ij")
    return ((x * 7 + y * 13 + c * 31 + i * 57 + x * y) % 256).to(torch.uint8).permute(0, 3, 1, 2)


def adapted(model: torch.nn.Module, options: dict, seed: int) -> torch.nn.Module:
    """peft's model with random values, so that every layer changes the result."""
    wrapped = get_peft_model(model, LoraConfig(**{"r": 2, "lora_alpha": 4, **options}))
    generator = torch.Generator().manual_seed(seed)
    for name, value in wrapped.named_parameters():
        if "lora_" in name:
            value.data = torch.randn(value.shape, generator=generator) * 0.3
    return wrapped.eval()


def save(wrapped: torch.nn.Module, to: Path) -> None:
    # A name, not the path where this machine has the model.
    wrapped.peft_config["default"].base_model_name_or_path = "reference/tiny"
    wrapped.save_pretrained(to)
    (to / "README.md").unlink()


def image_features(model: CLIPModel) -> torch.Tensor:
    pixels = (pictures().float() / 255 - MEAN) / STD
    with torch.no_grad():
        features = model.visual_projection(model.vision_model(pixel_values=pixels).pooler_output)
    return features / features.norm(dim=-1, keepdim=True)


def expected(path: str, wrapped: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Features and merged weights of the whole model, whichever part of it was wrapped."""
    whole = CLIPModel.from_pretrained(path)
    names = [n.removeprefix("base_model.model.") for n, m in wrapped.named_modules() if hasattr(m, "lora_A")]
    merged = wrapped.merge_and_unload().state_dict()
    tower = "text_model." if isinstance(wrapped.base_model.model, CLIPTextModel) else "vision_model."
    bare = isinstance(wrapped.base_model.model, (CLIPTextModel, CLIPVisionModel))
    weights = {(tower + n if bare else n) + ".weight": merged[n + ".weight"] for n in names}
    whole.load_state_dict(weights, strict=False)
    # The last block's, one of each kind: the rest follows from the same sum.
    kinds = {(n.split(".")[0], n.split(".")[-2]): n for n in weights}
    tensors = {f"merged.{name}": weights[name][:ROWS].contiguous() for name in kinds.values()}
    return tensors | {"features": image_features(whole.eval())}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    shutil.rmtree(args.out, ignore_errors=True)
    for seed, (case, (kind, options)) in enumerate(ACCEPTED.items()):
        # CLIPVisionModelWithProjection takes the width of its features from the vision part of the file.
        config = CLIPModel.config_class.from_pretrained(args.model)
        config.vision_config.projection_dim = config.projection_dim
        part = {CLIPModel: config, CLIPTextModel: config.text_config}.get(kind, config.vision_config)
        wrapped = adapted(kind.from_pretrained(args.model, config=part), options, seed)
        save(wrapped, args.out / case / "adapter")
        save_file(expected(args.model, wrapped), args.out / case / "expected.safetensors")
    for seed, (case, options) in enumerate(FOREIGN.items()):
        save(adapted(CLIPModel.from_pretrained(args.model), options, 100 + seed), args.out / case / "adapter")
    refused = {}
    with tempfile.TemporaryDirectory() as folder:
        for case, options in REFUSED.items():
            config = LoraConfig(r=2, lora_alpha=4, **{"target_modules": ["q_proj"], **options})
            config.base_model_name_or_path = "reference/tiny"
            config.save_pretrained(folder)
            refused[case] = json.loads((Path(folder) / "adapter_config.json").read_text())
    (args.out / "refused.json").write_text(json.dumps(refused, indent=1) + "\n")


if __name__ == "__main__":
    main()
