"""Checks tools/reference.py itself, against peft and against finite differences, in f64 at a small size.

    python tools/check_reference.py [--size odd] [--seed 0]
"""

import argparse
import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")
import torch
import torch.nn.functional as F
from peft import LoraConfig, get_peft_model
from reference import (SIZES, VARIANTS, Run, Settings, add_adapters, build_model, initial_tensors, make_batches,
                       make_prompts, relative_error, text_features)

STEP = 1e-6
LIMIT = 1e-6


def prepared(settings: Settings, dtype=torch.float64) -> Run:
    """The run that reference.py makes from the warm start."""
    model = build_model(settings).to(dtype)
    tensors, adapters = initial_tensors(model, settings, warm=True), add_adapters(model, settings)
    T = text_features(model, make_prompts(model, settings), settings.templates)
    return Run(model, adapters, T, {k: v.float() for k, v in tensors.items()}, make_batches(settings), settings, dtype)


def against_peft(settings: Settings) -> float:
    """The largest relative difference of features and gradients to transformers' forward pass under peft's LoRA."""
    run = prepared(settings)
    ours, _ = run.one_pass()
    model = build_model(settings)
    pattern = r"vision_model\.encoder\.layers\.\d+\.(self_attn|mlp)\.(" + "|".join(settings.targets) + ")"
    config = LoraConfig(r=settings.r, lora_alpha=settings.alpha, target_modules=pattern)
    adapted = get_peft_model(model, config).double()
    theirs = {}
    for name, p in adapted.named_parameters():
        if ".lora_" in name:
            parts = name.split(".")
            ours_name = f"lora.{parts[parts.index('layers') + 1]}.{parts[-4]}.{parts[-3][-1]}"
            p.data.copy_(run.p[ours_name].data)
            theirs[ours_name] = p
    assert len(theirs) == sum(k.startswith("lora") for k in run.p), "peft adapted other layers"
    pixels, labels = run.batches["pixel_values"][0].double(), run.batches["labels"][0]
    f = F.normalize(model.get_image_features(pixel_values=pixels).pooler_output, dim=-1)
    head = F.linear(f, run.p["head.weight"].detach(), run.p["head.bias"].detach())
    loss = F.cross_entropy(head, labels)
    loss = loss + settings.text_weight * F.cross_entropy(model.logit_scale.exp() * f @ run.T.T, labels)
    loss.backward()
    pairs = [(f, ours["features"]), *((p.grad, ours[f"grad.{k}"]) for k, p in theirs.items())]
    return max(relative_error(a.detach(), b.detach()) for a, b in pairs)


def against_differences(settings: Settings, entries: int = 3) -> float:
    """The largest difference of single gradient entries to central differences, over the tensor's largest."""
    run = prepared(settings)
    out, _ = run.one_pass()
    rng, worst = torch.Generator().manual_seed(7), 0.0
    for name, p in run.p.items():
        gradient, values = out[f"grad.{name}"].flatten(), p.data.view(-1)
        for i in torch.randint(len(values), (entries,), generator=rng).tolist():
            losses, middle = [], values[i].item()
            for value in (middle + STEP, middle - STEP):
                values[i] = value
                with torch.no_grad():
                    losses.append(run.forward(0)["loss"].item())
            values[i] = middle
            slope = (losses[0] - losses[1]) / (2 * STEP)
            worst = max(worst, abs(slope - gradient[i].item()) / gradient.abs().max().item())
    return worst


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=[s for s in SIZES if s != "full"], default="odd")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    settings = lambda variant, **more: Settings(size=args.size, variant=variant, seed=args.seed, **more)
    checks = [("lora against peft", against_peft(settings("lora"))),
              ("lora on q_proj, fc1, fc2 against peft",
               against_peft(settings("lora", targets=("q_proj", "fc1", "fc2"))))]
    checks += [(f"{v} against differences", against_differences(settings(v, with_lora=v.startswith("vpt"))))
               for v in VARIANTS]
    for name, error in checks:
        print(f"{'ok  ' if error < LIMIT else 'FAIL'} {error:.1e}  {name}")
    raise SystemExit(any(error >= LIMIT for _, error in checks))


if __name__ == "__main__":
    main()
