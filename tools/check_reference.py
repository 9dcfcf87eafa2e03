"""Checks tools/reference.py itself, against peft and against finite differences, in f64 at a small size, and its
random numbers against published ones.

    python tools/check_reference.py [--size odd] [--seed 0]
"""

import argparse
import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")
import numpy as np
import torch
import torch.nn.functional as F
from peft import LoraConfig, get_peft_model
from reference import (PRESETS, SIZES, Dropout, Run, Settings, Site, add_adapters, build_model, initial_tensors,
                       make_batches, make_prompts, philox, relative_error, sites, text_features)

STEP = 1e-6
LIMIT = 1e-6

# Counter, key and words of Philox4x32-10, from the known answers that Random123 is published with.
KNOWN_WORDS = [
    ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
    ((0xFFFFFFFF,) * 4, (0xFFFFFFFF,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
    ((0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344), (0xA4093822, 0x299F31D0),
     (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1)),
]


def prepared(settings: Settings, dtype=torch.float64) -> Run:
    """The run that reference.py makes from the warm start."""
    model = build_model(settings).to(dtype)
    tensors, adapters = initial_tensors(model, settings, warm=True), add_adapters(model, settings)
    ids, batches = make_prompts(model, settings), make_batches(settings)
    return Run(model, adapters, ids, {k: v.float() for k, v in tensors.items()}, batches, settings, dtype)


class Masked(torch.nn.Module):
    """The reference's dropout in the place of peft's, which draws a mask for every layer."""

    def __init__(self, dropout: Dropout, site: Site):
        super().__init__()
        self.dropout, self.site = dropout, site

    def forward(self, x):
        return self.dropout(x, self.site)


def adapt(model, settings: Settings, run: Run) -> dict:
    """Puts peft's adapters into `model`, with the tensors of `run`; returns peft's parameters by our names."""
    towers = "|".join(f"{tower}_model" for tower in settings.towers)
    pattern = rf"({towers})\.encoder\.layers\.\d+\.(self_attn|mlp)\.({'|'.join(settings.targets)})"
    places = {site.name: site for site in sites(model, settings)}
    config = LoraConfig(r=settings.r, lora_alpha=settings.alpha, target_modules=pattern, use_rslora=settings.rslora,
                        lora_dropout=settings.dropout)
    adapted = get_peft_model(model, config).double()
    theirs = {}
    for name, p in adapted.named_parameters():
        if ".lora_" in name:
            parts = name.split(".")
            adapter = f"{'text_' if 'text_model' in parts else ''}lora.{parts[parts.index('layers') + 1]}.{parts[-4]}"
            theirs[f"{adapter}.{parts[-3][-1]}"] = p
            p.data.copy_(run.p[f"{adapter}.{parts[-3][-1]}"].data)
            layer = adapted.get_submodule(".".join(parts[:-3]))
            layer.lora_dropout["default"] = Masked(run.dropout, places[adapter])
    assert len(theirs) == sum("lora" in k for k in run.p), "peft adapted other layers"
    return theirs


def against_peft(settings: Settings) -> float:
    """The largest relative difference of features and gradients to transformers' forward pass under peft's LoRA."""
    run = prepared(settings)
    ours, _ = run.one_pass()
    model = build_model(settings)
    theirs = adapt(model, settings, run)
    run.dropout.step = 0
    pixels, labels = run.batches["pixel_values"][0].double(), run.batches["labels"][0]
    f = F.normalize(model.get_image_features(pixel_values=pixels).pooler_output, dim=-1)
    T = text_features(model, run.ids, settings.templates) if settings.trains_text else run.T
    loss = settings.text_weight * F.cross_entropy(model.logit_scale.exp() * f @ T.T, labels)
    if settings.has_head:
        loss = loss + F.cross_entropy(F.linear(f, run.p["head.weight"].detach(), run.p["head.bias"].detach()), labels)
    loss.backward()
    pairs = [(f, ours["features"]), *((p.grad, ours[f"grad.{k}"]) for k, p in theirs.items())]
    if settings.trains_text:
        pairs.append((T, ours["text_features"]))
    return max(relative_error(a.detach(), b.detach()) for a, b in pairs)


def against_known_words() -> float:
    """The number of words that are others than the published ones."""
    found = np.array([philox(np.array([counter]), key)[0] for counter, key, _ in KNOWN_WORDS])
    return float((found != np.array([words for _, _, words in KNOWN_WORDS])).sum())


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
    parser.add_argument("--size", choices=[name for name, size in SIZES.items() if not size.published], default="odd")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    # The steps that clip and accumulate are AdamW's: one pass has no part in them.
    names = [name for name in PRESETS if "clipped" not in name and "accumulated" not in name]
    settings = lambda name, **more: Settings(**PRESETS[name], **more, size=args.size, seed=args.seed)
    checks = [("philox against known answers", against_known_words())]
    checks += [(f"{name} against peft", against_peft(settings(name)))
               for name in names if PRESETS[name]["variant"] in ("lora", "clip_lora")]
    checks += [(f"{name} against differences", against_differences(settings(name, with_lora="vpt" in name)))
               for name in names]
    for name, error in checks:
        print(f"{'ok  ' if error < LIMIT else 'FAIL'} {error:.1e}  {name}")
    raise SystemExit(any(error >= LIMIT for _, error in checks))


if __name__ == "__main__":
    main()
