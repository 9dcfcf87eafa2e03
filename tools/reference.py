"""What PyTorch computes for a training step of clip-engine, as files to compare with.

    python tools/reference.py --size tiny --variant lora --out tests/fixtures/reference
    python tools/reference.py --size tiny --variant all --out /tmp/reference

writes OUT/SIZE/{config.json,model.safetensors}, a randomly initialised model as transformers saves it, and
OUT/SIZE/VARIANT.safetensors with

    batch.pixel_values [n,B,3,S,S]  batch.labels [n,B]     n batches; step t of a run uses batch t mod n
    batch.lam [n,B]  batch.perm [n,B]                      mixup: weight of each sample, index of its partner
    text.input_ids [C*templates,L]                         prompts, those of one class next to each other
    init.NAME                                              trained tensors before the first step, f32
    {f32,f64}.{features,head_logits,text_logits}           one forward pass over batch 0 from init
    {f32,f64}.{loss,ce_head,ce_text,triplet}               its loss and the parts of it
    {f32,f64}.{text_features,logit_scale}                  class features T [C,E]; log of the scale
    {f32,f64}.grad.NAME                                    gradients of the loss
    {f32,f64}.traj.loss [steps]  {f32,f64}.traj.final.NAME AdamW steps from init: losses, tensors after the last
    f64.hidden.l [B,tokens,D]                              input of vision block l; after the last block for l = L
    warm.*                                                 init, passes, gradients and steps again with LoRA's B
                                                           not zero, without which A has no gradient

where NAME is head.weight, head.bias, prompt, or lora.LAYER.TARGET.A and .B. The metadata entry "meta" is a JSON
object with every setting. The model is transformers' own, with its SDPA attention (the eager one rounds the
softmax to f32 even in f64); only the adapters, the prompts and the objectives are written here.
"""

import argparse
import dataclasses
import json
import math
import os
import sys
from dataclasses import dataclass, field
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")
import torch
import torch.nn.functional as F
import transformers
from safetensors.torch import save_file
from torch import Tensor
from transformers import CLIPConfig, CLIPModel

PRECISIONS = {"f32": torch.float32, "f64": torch.float64}
ATTENTION = ("q_proj", "k_proj", "v_proj", "out_proj")
MLP = ("fc1", "fc2")
VARIANTS = ("lora", "linear", "mixup_pixel", "mixup_feat", "triplet",
            "vpt_shared_replace", "vpt_layer_replace", "vpt_shared_accum", "vpt_layer_accum")


# ---------------------------------------------------------------- settings


@dataclass(frozen=True)
class Size:
    """A model and the batches it sees."""

    vision: dict
    text: dict
    projection: int
    classes: int
    batch: int
    batches: int
    prompts: int


SIZES = {
    "tiny": Size(
        vision=dict(hidden_size=64, intermediate_size=160, num_hidden_layers=3, num_attention_heads=4,
                    image_size=32, patch_size=8),
        text=dict(hidden_size=48, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4,
                  vocab_size=200, max_position_embeddings=24, bos_token_id=198, eos_token_id=199),
        projection=32, classes=5, batch=8, batches=2, prompts=6),
    # Nothing here is a multiple of a vector, a tile or a warp.
    "odd": Size(
        vision=dict(hidden_size=60, intermediate_size=100, num_hidden_layers=3, num_attention_heads=5,
                    image_size=35, patch_size=7),
        text=dict(hidden_size=40, intermediate_size=90, num_hidden_layers=2, num_attention_heads=5,
                  vocab_size=151, max_position_embeddings=13, bos_token_id=149, eos_token_id=150),
        projection=27, classes=5, batch=7, batches=2, prompts=5),
    # The exact GELU, another epsilon, an image that patches do not fill, and the legacy end token 2.
    "gelu": Size(
        vision=dict(hidden_size=48, intermediate_size=96, num_hidden_layers=2, num_attention_heads=3,
                    image_size=30, patch_size=8, hidden_act="gelu", layer_norm_eps=1e-4),
        text=dict(hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2,
                  hidden_act="gelu", vocab_size=120, max_position_embeddings=16, bos_token_id=0, eos_token_id=2),
        projection=24, classes=4, batch=6, batches=2, prompts=4),
    "full": Size(vision={}, text={}, projection=512, classes=102, batch=8, batches=1, prompts=16),
}


@dataclass
class Settings:
    """Everything a reference depends on; saved with it."""

    size: str
    variant: str
    seed: int = 0
    targets: tuple[str, ...] = ATTENTION
    with_lora: bool = False
    r: int = 8
    alpha: float = 16.0
    steps: int = 5
    templates: int = 4
    mixup: float = 0.2
    margin: float = 1.0
    text_weight: float | None = None
    triplet_weight: float = 0.3
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    # Trained group -> (learning rate, weight decay).
    hp: dict = field(default_factory=lambda: {"head": (1e-3, 1e-4), "lora": (1e-4, 1e-2), "prompt": (5e-3, 0.0)})

    def __post_init__(self):
        if self.text_weight is None:
            self.text_weight = 0.0 if self.variant.startswith(("mixup", "triplet")) else 0.3

    @property
    def sizes(self) -> Size:
        return SIZES[self.size]

    @property
    def has_prompts(self) -> bool:
        return self.variant.startswith("vpt")

    @property
    def has_lora(self) -> bool:
        return self.with_lora or not (self.has_prompts or self.variant == "linear")

    def meta(self) -> str:
        versions = {"torch": torch.__version__, "transformers": transformers.__version__}
        sizes = {name: getattr(self.sizes, name) for name in ("classes", "batch", "batches", "prompts")}
        return json.dumps({**dataclasses.asdict(self), **sizes, "versions": versions})


def generator(settings: Settings, purpose: int) -> torch.Generator:
    """Independent random numbers per purpose, so that a variant does not shift those of another."""
    return torch.Generator().manual_seed(1000 * settings.seed + purpose)


# ---------------------------------------------------------------- what goes in


def build_model(settings: Settings) -> CLIPModel:
    """transformers' random CLIP, moved off its symmetric start: biases are zero and norms one there, so that
    a program which drops them would go unnoticed."""
    s = settings.sizes
    torch.manual_seed(settings.seed)
    model = CLIPModel(CLIPConfig(projection_dim=s.projection, vision_config=s.vision, text_config=s.text,
                                 attn_implementation="sdpa"))
    rng = generator(settings, 1)
    for name, p in model.named_parameters():
        p.requires_grad_(False)
        if name.endswith(".bias"):
            p.add_(0.05 * torch.randn(p.shape, generator=rng))
        elif "norm" in name:
            p.add_(0.1 * torch.randn(p.shape, generator=rng))
        elif settings.size != "full" and p.dim() > 0:
            p.mul_(1.5)  # livelier activations where few layers build them up
    return model.eval()


def initial_tensors(model: CLIPModel, settings: Settings, warm: bool = False) -> dict[str, Tensor]:
    """The trained tensors by name, f32. LoRA's B is zero unless `warm`."""
    s, config, rng = settings.sizes, model.config.vision_config, generator(settings, 2)
    uniform = lambda shape, fan_in: (2 * torch.rand(shape, generator=rng) - 1) / math.sqrt(fan_in)
    tensors = {"head.weight": uniform((s.classes, s.projection), s.projection),
               "head.bias": uniform((s.classes,), s.projection)}
    if settings.has_prompts:
        shape = (s.prompts, config.hidden_size)
        if "layer" in settings.variant:
            shape = (config.num_hidden_layers, *shape)
        tensors["prompt"] = 0.02 * torch.randn(shape, generator=rng)
    if settings.has_lora:
        b_rng = generator(settings, 3)
        for i, layer in enumerate(model.vision_model.encoder.layers):
            for target in settings.targets:
                weight = getattr(parent(layer, target), target).weight
                a = uniform((settings.r, weight.shape[1]), weight.shape[1])
                b = 0.05 * torch.randn(weight.shape[0], settings.r, generator=b_rng)
                tensors[f"lora.{i}.{target}.A"], tensors[f"lora.{i}.{target}.B"] = a, b if warm else 0 * b
    return tensors


def make_batches(settings: Settings) -> dict[str, Tensor]:
    """Noise with a pattern per class in it. Sample 0 is the only one of its class: an anchor with no positive."""
    s, rng = settings.sizes, generator(settings, 4)
    side = s.vision.get("image_size", 224)
    labels = torch.randint(0, s.classes - 1, (s.batches, s.batch), generator=rng)
    labels[:, 0] = s.classes - 1
    patterns = torch.randn(s.classes, 3, side, side, generator=rng)
    pixels = patterns[labels] + torch.randn(s.batches, s.batch, 3, side, side, generator=rng)
    batches = {"pixel_values": pixels, "labels": labels}
    if settings.variant.startswith("mixup"):
        torch.manual_seed(settings.seed + 5)  # Beta takes no generator
        shape = torch.full((s.batches, s.batch), settings.mixup)
        batches["lam"] = torch.distributions.Beta(shape, shape).sample()
        batches["perm"] = torch.stack([torch.randperm(s.batch, generator=rng) for _ in range(s.batches)])
    return batches


def make_prompts(model: CLIPModel, settings: Settings) -> Tensor:
    """Token ids of made-up prompts, [C*templates, L]: start, words, end, and the end again as padding.

    The two largest ids are start and end, whatever the configuration calls them."""
    config, rng = model.config.text_config, generator(settings, 6)
    start, end = config.vocab_size - 2, config.vocab_size - 1
    lengths = torch.randint(3, 10, (settings.sizes.classes * settings.templates,), generator=rng)
    ids = torch.full((len(lengths), int(lengths.max()) + 2), end)
    for row, length in zip(ids, lengths.tolist()):
        row[0] = start
        row[1 : 1 + length] = torch.randint(3, start, (length,), generator=rng)
    return ids


# ---------------------------------------------------------------- the model


def parent(layer: torch.nn.Module, target: str) -> torch.nn.Module:
    return layer.mlp if target in MLP else layer.self_attn


class AdaptedLinear(torch.nn.Module):
    """A frozen linear layer plus scale * B (A x), where A and B are set from outside before each run."""

    def __init__(self, base: torch.nn.Linear, scale: float):
        super().__init__()
        self.base, self.scale, self.a, self.b = base, scale, None, None

    def forward(self, x: Tensor) -> Tensor:
        return self.base(x) + self.scale * F.linear(F.linear(x, self.a), self.b)


def add_adapters(model: CLIPModel, settings: Settings) -> dict[str, AdaptedLinear]:
    """Puts an adapter around every target of the vision tower; by name up to the .A or .B."""
    adapters = {}
    for i, layer in enumerate(model.vision_model.encoder.layers if settings.has_lora else []):
        for target in settings.targets:
            holder = parent(layer, target)
            adapters[f"lora.{i}.{target}"] = AdaptedLinear(getattr(holder, target), settings.alpha / settings.r)
            setattr(holder, target, adapters[f"lora.{i}.{target}"])
    return adapters


def text_features(model: CLIPModel, ids: Tensor, templates: int) -> Tensor:
    """T, [C, E]: unit features of the prompts, averaged per class, to unit length again."""
    with torch.no_grad():
        f = F.normalize(model.get_text_features(input_ids=ids).pooler_output, dim=-1)
        return F.normalize(f.view(-1, templates, f.shape[-1]).mean(1), dim=-1)


def insert_prompts(h: Tensor, prompt: Tensor, layer: int, variant: str) -> Tensor:
    """Prompts go between the class token and the rest; in mode replace the previous layer's go out."""
    prompt = prompt if prompt.dim() == 2 else prompt[layer]
    first = 1 + (len(prompt) if layer > 0 and variant.endswith("replace") else 0)
    return torch.cat([h[:, :1], prompt.expand(len(h), -1, -1), h[:, first:]], dim=1)


def image_features(model: CLIPModel, pixels: Tensor, p: dict[str, Tensor], variant: str) -> tuple[Tensor, list]:
    """Unit features f, [B, E], and what each block was given, the last block's output at the end."""
    tower, hidden = model.vision_model, []
    h = tower.pre_layrnorm(tower.embeddings(pixels))
    for i, layer in enumerate(tower.encoder.layers):
        if "prompt" in p:
            h = insert_prompts(h, p["prompt"], i, variant)
        hidden.append(h)
        h = layer(h, attention_mask=None)
    hidden.append(h)
    return F.normalize(model.visual_projection(tower.post_layernorm(h[:, 0])), dim=-1), hidden


# ---------------------------------------------------------------- the objectives


def batch_hard_triplet(f: Tensor, labels: Tensor, margin: float) -> Tensor:
    """Farthest positive against nearest negative, averaged over all anchors; one without either counts as 0."""
    d = (f[:, None] - f[None]).pow(2).sum(-1).clamp_min(1e-12).sqrt()
    same = labels[:, None] == labels[None]
    positive = same & ~torch.eye(len(labels), dtype=torch.bool)
    farthest = d.masked_fill(~positive, -math.inf).amax(1)
    nearest = d.masked_fill(same, math.inf).amin(1)
    whole = positive.any(1) & (~same).any(1)
    return torch.where(whole, F.relu(farthest - nearest + margin), 0).mean()


def forward(model: CLIPModel, T: Tensor, p: dict[str, Tensor], batch: dict, settings: Settings) -> dict:
    """One forward pass: features, logits, the parts of the loss, and the hidden states."""
    pixels, labels = batch["pixel_values"], batch["labels"]
    mixed = settings.variant.startswith("mixup")
    if mixed:
        partner, lam = batch["perm"], batch["lam"].to(pixels.dtype)
        blend = lambda x: (l := lam.view(-1, *[1] * (x.dim() - 1))) * x + (1 - l) * x[partner]

    f, hidden = image_features(model, blend(pixels) if settings.variant == "mixup_pixel" else pixels, p,
                               settings.variant)
    f = blend(f) if settings.variant == "mixup_feat" else f
    head = F.linear(f, p["head.weight"], p["head.bias"])
    text = model.logit_scale.exp() * f @ T.T

    def cross_entropy(logits):
        first = F.cross_entropy(logits, labels, reduction="none")
        if not mixed:
            return first.mean()
        return (lam * first + (1 - lam) * F.cross_entropy(logits, labels[partner], reduction="none")).mean()

    out = dict(features=f, head_logits=head, text_logits=text, ce_head=cross_entropy(head), ce_text=cross_entropy(text))
    if settings.variant == "triplet":
        w = settings.triplet_weight
        out["triplet"] = batch_hard_triplet(f, labels, settings.margin)
        out["loss"] = (1 - w) * out["ce_head"] + w * out["triplet"]
    else:
        out["loss"] = out["ce_head"]
    out["loss"] = out["loss"] + settings.text_weight * out["ce_text"]
    return {**out, "hidden": hidden}


# ---------------------------------------------------------------- runs


class Run:
    """The model in one precision with one set of trained tensors."""

    def __init__(self, model, adapters, T, tensors, batches, settings, dtype):
        self.model, self.T, self.batches, self.settings, self.dtype = model, T, batches, settings, dtype
        self.p = {k: v.to(dtype, copy=True).requires_grad_() for k, v in tensors.items()}
        for name, adapter in adapters.items():
            adapter.a, adapter.b = self.p[f"{name}.A"], self.p[f"{name}.B"]

    def forward(self, step: int) -> dict:
        t = step % self.settings.sizes.batches
        batch = {k: v[t].to(self.dtype) if v.is_floating_point() else v[t] for k, v in self.batches.items()}
        return forward(self.model, self.T, self.p, batch, self.settings)

    def one_pass(self) -> tuple[dict[str, Tensor], list[Tensor]]:
        """Outputs and gradients of batch 0, and the hidden states."""
        out = self.forward(0)
        hidden = out.pop("hidden")
        gradients = torch.autograd.grad(out["loss"], list(self.p.values()))
        out.update({f"grad.{k}": g for k, g in zip(self.p, gradients)})
        return out, hidden

    def train(self) -> dict[str, Tensor]:
        """AdamW from the initial tensors: the loss before each step and the tensors after the last."""
        groups = [dict(params=[v for k, v in self.p.items() if k.split(".")[0] == group], lr=lr, weight_decay=decay)
                  for group, (lr, decay) in self.settings.hp.items()]
        optimiser = torch.optim.AdamW([g for g in groups if g["params"]],
                                      betas=self.settings.betas, eps=self.settings.eps)
        losses = []
        for step in range(self.settings.steps):
            loss = self.forward(step)["loss"]
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            losses.append(loss.detach())
        return {"traj.loss": torch.stack(losses), **{f"traj.final.{k}": v for k, v in self.p.items()}}


def reference(model: CLIPModel, settings: Settings, keep_hidden: bool = True) -> dict[str, Tensor]:
    """All tensors of one variant, by the names at the top of this file. `model` must be without adapters."""
    batches, ids = make_batches(settings), make_prompts(model, settings)
    starts = {"": initial_tensors(model, settings)}
    if settings.has_lora:
        starts["warm."] = initial_tensors(model, settings, warm=True)
    saved = {f"batch.{k}": v for k, v in batches.items()} | {"text.input_ids": ids}
    adapters = add_adapters(model, settings)
    for precision, dtype in PRECISIONS.items():
        model.to(dtype)
        T = text_features(model, ids, settings.templates)
        saved |= {f"{precision}.text_features": T, f"{precision}.logit_scale": model.logit_scale}
        for start, tensors in starts.items():
            run = lambda: Run(model, adapters, T, tensors, batches, settings, dtype)
            out, hidden = run().one_pass()
            saved |= {f"{start}init.{k}": v for k, v in tensors.items()}
            saved |= {f"{start}{precision}.{k}": v for k, v in (out | run().train()).items()}
            if keep_hidden and precision == "f64" and start == "":
                saved |= {f"f64.hidden.{i}": h for i, h in enumerate(hidden)}
    return {k: v.detach().clone().contiguous() for k, v in saved.items()}


def write(settings: Settings, out: Path, name: str | None = None, keep_hidden: bool | None = None) -> Path:
    """Writes the model directory and one reference file; returns the file's path."""
    directory = out / settings.size
    model = build_model(settings)
    model.save_pretrained(directory)
    (directory / "generation_config.json").unlink(missing_ok=True)
    tensors = reference(model, settings, settings.size != "full" if keep_hidden is None else keep_hidden)
    path = directory / f"{name or settings.variant + ('_lora' if settings.with_lora else '')}.safetensors"
    save_file(tensors, path, metadata={"meta": settings.meta()})
    worst = max(relative_error(tensors[k.replace("f64", "f32")], v) for k, v in tensors.items() if "f64.grad" in k)
    print(f"{path}: {len(tensors)} tensors, {path.stat().st_size / 1e6:.2f} MB, loss {tensors['f64.loss']:.6f}, "
          f"f32 gradients within {worst:.1e} of f64", file=sys.stderr)
    return path


def relative_error(found: Tensor, expected: Tensor) -> float:
    """Largest difference over the largest value; 0 where both are all zero."""
    difference = (found.double() - expected.double()).abs().max().item()
    return difference / expected.abs().max().item() if difference else 0.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=SIZES, default="tiny")
    parser.add_argument("--variant", choices=(*VARIANTS, "all"), default="lora")
    parser.add_argument("--targets", help="linear layers with LoRA, comma-separated: " + ",".join(ATTENTION + MLP))
    parser.add_argument("--with-lora", action="store_true", help="train LoRA beside the prompts of a vpt variant")
    parser.add_argument("--text-weight", type=float, help="weight of the text loss (0.3; mixup and triplet 0)")
    parser.add_argument("--margin", type=float, default=1.0, help="margin of the triplet loss")
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--name", help="name of the file, without .safetensors (default: the variant)")
    parser.add_argument("--no-hidden", action="store_true", help="leave out the hidden states")
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    targets = tuple(args.targets.split(",")) if args.targets else ATTENTION
    if unknown := set(targets) - set(ATTENTION + MLP):
        parser.error(f"--targets: unknown {', '.join(sorted(unknown))}")
    torch.set_num_threads(2)
    for variant in VARIANTS if args.variant == "all" else [args.variant]:
        settings = Settings(size=args.size, variant=variant, seed=args.seed, targets=targets, steps=args.steps,
                            with_lora=args.with_lora and variant.startswith("vpt"), margin=args.margin,
                            text_weight=args.text_weight)
        write(settings, args.out, args.name, False if args.no_hidden else None)


if __name__ == "__main__":
    main()
