"""What PyTorch computes for a training step of clip-engine, as files to compare with.

    python tools/reference.py --size tiny --variant lora --out tests/fixtures/reference
    python tools/reference.py --size tiny --variant all --out /tmp/reference
    python tools/reference.py --size odd --variant lora --precision bf16 --out tests/fixtures/reference

writes OUT/SIZE/{config.json,model.safetensors}, a randomly initialised model as transformers saves it, and
OUT/SIZE/VARIANT.safetensors with

    batch.pixel_values [n,B,3,S,S]  batch.labels [n,B]     n batches, an epoch of a run; of the last one a run sees
                                                           the first `last_batch` images only
    batch.lam [n,B]  batch.perm [n,B]                      mixup: weight of each sample, index of its partner
    text.input_ids [C*templates,L]                         prompts, those of one class next to each other
    init.NAME                                              trained tensors before the first step, f32
    {f32,f64}.{features,head_logits,text_logits}           one forward pass over batch 0 from init
    {f32,f64}.{loss,ce_head,ce_text,triplet}               its loss and the parts of it
    {f32,f64}.{text_features,logit_scale}                  class features T [C,E]; log of the scale
    {f32,f64}.eval.{features,…,text_features}              the pass again without dropout, where there is dropout
    {f32,f64}.grad.NAME                                    gradients of the loss
    {f32,f64}.traj.loss  {f32,f64}.traj.final.NAME         AdamW steps from init: the loss of every batch on the way,
                                                           and the tensors after the last
    {f32,f64}.traj.grad_norm [steps]                       length of the gradients before they are clipped
    f64.hidden.l [B,tokens,D]                              input of vision block l; after the last block for l = L
    warm.*                                                 init, passes, gradients and steps again with LoRA's B
                                                           not zero, without which A has no gradient

With --precision bf16 the model's weights and the pixels are numbers of bf16, so that an engine in bf16 has them without
rounding; the directory is OUT/SIZE-bf16. Then {bf16,f64} stand in the place of {f32,f64}: "bf16" has frozen weights and
activations in bf16, and what is trained, the features and the losses in f32. There "f64" is stored as f32, which is
precise enough to measure bf16 by.

where NAME is head.weight, head.bias, prompt, lora.LAYER.TARGET.A and .B of the vision tower, or the same after
text_lora of the text tower. With adapters in the text tower T belongs to the pass and stands under warm.* too. The
metadata entry "meta" is a JSON object with every setting. The model is transformers' own, with its SDPA attention
(the eager one rounds the softmax to f32 even in f64); only the adapters, the prompts and the objectives are written
here.
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
import numpy as np
import torch
import torch.nn.functional as F
import transformers
from safetensors.torch import save_file
from torch import Tensor
from transformers import CLIPConfig, CLIPModel

# What PyTorch computes the peer in, and the exact values.
PRECISIONS = {"f32": torch.float32, "bf16": torch.bfloat16}
EXACT = torch.float64
ATTENTION = ("q_proj", "k_proj", "v_proj", "out_proj")
MLP = ("fc1", "fc2")
TOWERS = ("vision", "text")
VARIANTS = ("lora", "linear", "mixup_pixel", "mixup_feat", "triplet",
            "vpt_shared_replace", "vpt_layer_replace", "vpt_shared_accum", "vpt_layer_accum", "clip_lora")


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
    # A published checkpoint's: weights as transformers draws them, and files too large to keep.
    published: bool = False


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
    # ViT-B/32 with Flowers-102's classes; with fewer; B/16, L/14, and LAION's H/14 with its exact GELU and heads of 80.
    "full": Size(vision={}, text={}, projection=512, classes=102, batch=8, batches=1, prompts=16, published=True),
    "b32": Size(vision={}, text={}, projection=512, classes=10, batch=4, batches=1, prompts=16, published=True),
    "b16": Size(vision=dict(patch_size=16), text={}, projection=512, classes=10, batch=4, batches=1, prompts=16,
                published=True),
    "l14": Size(
        vision=dict(hidden_size=1024, intermediate_size=4096, num_hidden_layers=24, num_attention_heads=16,
                    patch_size=14),
        text=dict(hidden_size=768, intermediate_size=3072, num_attention_heads=12),
        projection=768, classes=10, batch=4, batches=1, prompts=16, published=True),
    "h14": Size(
        vision=dict(hidden_size=1280, intermediate_size=5120, num_hidden_layers=32, num_attention_heads=16,
                    patch_size=14, hidden_act="gelu"),
        text=dict(hidden_size=1024, intermediate_size=4096, num_hidden_layers=24, num_attention_heads=16,
                  hidden_act="gelu"),
        projection=1024, classes=10, batch=2, batches=1, prompts=16, published=True),
}


@dataclass
class Settings:
    """Everything a reference depends on; saved with it."""

    size: str
    variant: str
    seed: int = 0
    # Of the peer; the frozen weights and pixels are numbers of it.
    precision: str = "f32"
    targets: tuple[str, ...] = ATTENTION
    with_lora: bool = False
    towers: tuple[str, ...] = ("vision",)
    r: int = 8
    alpha: float = 16.0
    rslora: bool = False
    # Share of the adapters' inputs that is set to zero, and the key of its random numbers.
    dropout: float = 0.0
    dropout_seed: int = 0x0123_4567_89AB_CDEF
    # Prompts that the text tower computes together: each such part has masks of its own. 0 for all.
    text_chunk: int = 0
    steps: int = 5
    # Batches of an epoch, images of its last one, and batches of a step; 0 for as many as the size says.
    batches: int = 0
    last_batch: int = 0
    accumulate: int = 1
    # Gradients are scaled down to this length, as one vector.
    clip_grad_norm: float | None = None
    # The head is a linear layer on so many times the features. head.weight is stored as it acts on the features.
    head_scale: float = 1.0
    templates: int = 4
    mixup: float = 0.2
    margin: float = 1.0
    text_weight: float | None = None
    triplet_weight: float = 0.3
    # As torch.nn.CrossEntropyLoss takes both, in the cross entropy that images are classified by; on whole batches
    # that are not mixed.
    class_weights: tuple[float, ...] | None = None
    label_smoothing: float = 0.0
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    # Trained group -> (learning rate, weight decay).
    hp: dict = field(default_factory=lambda: {"head": (1e-3, 1e-4), "lora": (1e-4, 1e-2), "prompt": (5e-3, 0.0)})

    def __post_init__(self):
        if self.text_weight is None:
            alone = 0.3 if self.has_head else 1.0
            self.text_weight = 0.0 if self.variant.startswith(("mixup", "triplet")) else alone
        self.batches = self.batches or self.sizes.batches
        self.last_batch = self.last_batch or self.sizes.batch

    @property
    def sizes(self) -> Size:
        return SIZES[self.size]

    @property
    def directory(self) -> str:
        """The model's, which all references of one size and precision share."""
        return self.size if self.precision == "f32" else f"{self.size}-{self.precision}"

    @property
    def has_head(self) -> bool:
        return self.variant != "clip_lora"

    @property
    def has_prompts(self) -> bool:
        return self.variant.startswith("vpt")

    @property
    def has_lora(self) -> bool:
        return self.with_lora or not (self.has_prompts or self.variant == "linear")

    @property
    def trains_text(self) -> bool:
        return self.has_lora and "text" in self.towers

    @property
    def scale(self) -> float:
        return self.alpha / (math.sqrt(self.r) if self.rslora else self.r)

    def meta(self) -> str:
        versions = {"torch": torch.__version__, "transformers": transformers.__version__}
        sizes = {name: getattr(self.sizes, name) for name in ("classes", "batch", "prompts")}
        return json.dumps({**dataclasses.asdict(self), **sizes, "versions": versions})


# Two ways to change a step that AdamW all but undoes: they show where steps are long and gradients differ.
FAST = {"head": (1e-2, 1e-4), "lora": (2e-3, 1e-2)}
EPOCH = dict(batches=5, accumulate=3, last_batch=3)
CLIP_LORA = dict(variant="clip_lora", towers=TOWERS, targets=ATTENTION[:3], r=2, alpha=1.0, dropout=0.25,
                 hp={"lora": (2e-4, 1e-2)})

# Settings that go by a name: what differs from the defaults.
PRESETS = {variant: dict(variant=variant) for variant in VARIANTS} | {
    "lora_fc": dict(variant="lora", targets=MLP),
    "lora_all": dict(variant="lora", targets=ATTENTION + MLP, r=4, alpha=8.0),
    "lora_rslora": dict(variant="lora", targets=("q_proj", "fc1"), r=3, alpha=4.0, rslora=True),
    "lora_text": dict(variant="lora", towers=TOWERS),
    "lora_text_alone": dict(variant="lora", towers=("text",)),
    "lora_text_all": dict(variant="lora", towers=TOWERS, targets=ATTENTION + MLP, r=3, alpha=6.0, dropout=0.1),
    "mixup_feat_text_tower": dict(variant="mixup_feat", towers=TOWERS, targets=("v_proj", "fc2"), text_weight=0.3),
    "lora_clipped": dict(variant="lora", targets=("q_proj", "v_proj"), last_batch=3, clip_grad_norm=0.42, hp=FAST),
    "lora_head_scaled": dict(variant="lora", targets=("q_proj",), head_scale=6.0, clip_grad_norm=1.2),
    "linear_weighted": dict(variant="linear", class_weights=(2.5, 0.4, 1.0, 0.7), label_smoothing=0.1),
    "clip_lora_weighted": dict(CLIP_LORA, towers=("vision",), targets=("q_proj",), dropout=0.0,
                               class_weights=(0.3, 3.0, 1.0, 1.2)),
    "lora_accumulated": dict(variant="lora", targets=("q_proj", "v_proj"), hp=FAST, **EPOCH),
    "clip_lora": CLIP_LORA,
    "clip_lora_accumulated": dict(CLIP_LORA, dropout_seed=0xFEDC_BA98_7654_3210, text_chunk=12, clip_grad_norm=0.3,
                                  **EPOCH),
}


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
        elif not settings.sizes.published and p.dim() > 0:
            p.mul_(1.5)  # livelier activations where few layers build them up
        p.copy_(p.to(PRECISIONS[settings.precision]))
    return model.eval()


def initial_tensors(model: CLIPModel, settings: Settings, warm: bool = False) -> dict[str, Tensor]:
    """The trained tensors by name, f32. LoRA's B is zero unless `warm`."""
    s, config, rng = settings.sizes, model.config.vision_config, generator(settings, 2)
    uniform = lambda shape, fan_in: (2 * torch.rand(shape, generator=rng) - 1) / math.sqrt(fan_in)
    tensors = {}
    if settings.has_head:
        tensors["head.weight"] = uniform((s.classes, s.projection), s.projection)
        tensors["head.bias"] = uniform((s.classes,), s.projection)
    if settings.has_prompts:
        shape = (s.prompts, config.hidden_size)
        if "layer" in settings.variant:
            shape = (config.num_hidden_layers, *shape)
        tensors["prompt"] = 0.02 * torch.randn(shape, generator=rng)
    if settings.has_lora:
        b_rng = generator(settings, 3)
        for site in sites(model, settings):
            weight = getattr(site.holder, site.target).weight
            a = uniform((settings.r, weight.shape[1]), weight.shape[1])
            b = 0.05 * torch.randn(weight.shape[0], settings.r, generator=b_rng)
            tensors[f"{site.name}.A"], tensors[f"{site.name}.B"] = a, b if warm else 0 * b
    return tensors


def make_batches(settings: Settings) -> dict[str, Tensor]:
    """Noise with a pattern per class in it. Sample 0 is the only one of its class: an anchor with no positive."""
    s, rng = settings.sizes, generator(settings, 4)
    side = s.vision.get("image_size", 224)
    labels = torch.randint(0, s.classes - 1, (settings.batches, s.batch), generator=rng)
    labels[:, 0] = s.classes - 1
    patterns = torch.randn(s.classes, 3, side, side, generator=rng)
    pixels = patterns[labels] + torch.randn(settings.batches, s.batch, 3, side, side, generator=rng)
    pixels = pixels.to(PRECISIONS[settings.precision])
    batches = {"pixel_values": pixels, "labels": labels}
    if settings.variant.startswith("mixup"):
        torch.manual_seed(settings.seed + 5)  # Beta takes no generator
        shape = torch.full((settings.batches, s.batch), settings.mixup)
        batches["lam"] = torch.distributions.Beta(shape, shape).sample()
        batches["perm"] = torch.stack([torch.randperm(s.batch, generator=rng) for _ in range(settings.batches)])
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


@dataclass(frozen=True)
class Site:
    """A linear layer that gets an adapter."""

    tower: str
    layer: int
    target: str
    # The module that has it, and whether only row 0 of what it computes counts.
    holder: torch.nn.Module
    one_row: bool

    @property
    def name(self) -> str:
        """The adapter's name up to the .A or .B."""
        return f"{'text_' if self.tower == 'text' else ''}lora.{self.layer}.{self.target}"


def sites(model: CLIPModel, settings: Settings) -> list[Site]:
    """All layers with adapters. Of the last vision block only the class token is used."""
    found = []
    for tower in settings.towers if settings.has_lora else ():
        layers = getattr(model, f"{tower}_model").encoder.layers
        for i, layer in enumerate(layers):
            last = tower == "vision" and i == len(layers) - 1
            for target in settings.targets:
                holder = layer.mlp if target in MLP else layer.self_attn
                found.append(Site(tower, i, target, holder, last and target not in ("k_proj", "v_proj")))
    return found


def philox(counter: np.ndarray, key: tuple[int, int]) -> np.ndarray:
    """Philox4x32-10 (Salmon et al. 2011): four random words for each counter, u32 [n,4]."""
    low, words, key = np.uint64(2**32 - 1), counter.astype(np.uint64), list(key)
    for _ in range(10):
        first, second = words[:, 0] * np.uint64(0xD2511F53), words[:, 2] * np.uint64(0xCD9E8D57)
        words = np.stack([(second >> np.uint64(32)) ^ words[:, 1] ^ np.uint64(key[0]), second & low,
                          (first >> np.uint64(32)) ^ words[:, 3] ^ np.uint64(key[1]), first & low], axis=1)
        key = [(key[0] + 0x9E3779B9) % 2**32, (key[1] + 0xBB67AE85) % 2**32]
    return words.astype(np.uint32)


@dataclass
class Dropout:
    """One draw for all adapters of a pass. Layers that read the same input see it with the same elements dropped."""

    probability: float
    seed: int
    text_chunk: int
    # Batches trained on before this one; None in evaluation, where nothing is dropped.
    step: int | None = None

    # What the layers read: queries, keys and values the same, but for the class token's query alone.
    INPUTS = {"q_proj": 0, "k_proj": 0, "v_proj": 0, "out_proj": 2, "fc1": 3, "fc2": 4}
    CLASS_QUERY = 1

    def __call__(self, x: Tensor, site: Site) -> Tensor:
        if self.step is None or self.probability == 0:
            return x
        if site.one_row:
            factors = torch.ones_like(x)
            factors[:, :1] = self.factors(x[:, :1].shape, site, 0)
            return x * factors
        rows = self.text_chunk if site.tower == "text" and self.text_chunk else len(x)
        parts = [self.factors(part.shape, site, chunk) for chunk, part in enumerate(x.split(rows))]
        return x * torch.cat(parts).to(x.dtype)

    def factors(self, shape: torch.Size, site: Site, chunk: int) -> Tensor:
        """1 / (1 - p) for what is kept, 0 for the rest; f64."""
        given = self.CLASS_QUERY if site.one_row and site.target == "q_proj" else self.INPUTS[site.target]
        place = 65536 * chunk + 32768 * TOWERS.index(site.tower) + 8 * site.layer + given
        counter = np.zeros((-(-shape.numel() // 4), 4), dtype=np.uint32)
        counter[:, 0], counter[:, 2], counter[:, 3] = np.arange(len(counter)), place, self.step
        words = philox(counter, (self.seed % 2**32, self.seed >> 32)).reshape(-1)[: shape.numel()]
        kept = words >= math.floor(self.probability * 2**32)
        return torch.from_numpy(kept).view(shape).double() / (1 - self.probability)


class AdaptedLinear(torch.nn.Module):
    """A frozen linear layer plus scale * B (A drop(x)), where A and B are set from outside before each run."""

    def __init__(self, base: torch.nn.Linear, scale: float, site: Site, dropout: Dropout):
        super().__init__()
        self.base, self.scale, self.site, self.dropout, self.a, self.b = base, scale, site, dropout, None, None

    def forward(self, x: Tensor) -> Tensor:
        a, b = self.a.to(x.dtype), self.b.to(x.dtype)
        return self.base(x) + self.scale * F.linear(F.linear(self.dropout(x, self.site), a), b)


@dataclass
class Adapters:
    """The adapters of a model, by name up to the .A or .B, and the dropout they share."""

    layers: dict[str, AdaptedLinear]
    dropout: Dropout


def add_adapters(model: CLIPModel, settings: Settings) -> Adapters:
    """Puts an adapter around every target of the towers that have them."""
    dropout = Dropout(settings.dropout, settings.dropout_seed, settings.text_chunk)
    layers = {}
    for site in sites(model, settings):
        layers[site.name] = AdaptedLinear(getattr(site.holder, site.target), settings.scale, site, dropout)
        setattr(site.holder, site.target, layers[site.name])
    return Adapters(layers, dropout)


def whole(dtype: torch.dtype) -> torch.dtype:
    """What is trained, and what comes behind the towers, is in, where these compute in `dtype`: f32 at the least."""
    return torch.promote_types(dtype, torch.float32)


def unit(x: Tensor) -> Tensor:
    """What a tower gives, at unit length."""
    return F.normalize(x.to(whole(x.dtype)), dim=-1)


def text_features(model: CLIPModel, ids: Tensor, templates: int) -> Tensor:
    """T, [C, E]: unit features of the prompts, averaged per class, to unit length again."""
    f = unit(model.get_text_features(input_ids=ids).pooler_output)
    return F.normalize(f.view(-1, templates, f.shape[-1]).mean(1), dim=-1)


def insert_prompts(h: Tensor, prompt: Tensor, layer: int, variant: str) -> Tensor:
    """Prompts go between the class token and the rest; in mode replace the previous layer's go out."""
    prompt = (prompt if prompt.dim() == 2 else prompt[layer]).to(h.dtype)
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
    return unit(model.visual_projection(tower.post_layernorm(h[:, 0]))), hidden


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
        partner, lam = batch["perm"], batch["lam"]
        blend = lambda x: (l := lam.view(-1, *[1] * (x.dim() - 1)).to(x.dtype)) * x + (1 - l) * x[partner]

    f, hidden = image_features(model, blend(pixels) if settings.variant == "mixup_pixel" else pixels, p,
                               settings.variant)
    f = blend(f) if settings.variant == "mixup_feat" else f
    text = model.logit_scale.to(f.dtype).exp() * f @ T.T

    def cross_entropy(logits, classifies):
        if not mixed:
            weights = settings.class_weights if classifies else None
            weights = None if weights is None else torch.tensor(weights, dtype=logits.dtype)
            smoothing = settings.label_smoothing if classifies else 0.0
            return F.cross_entropy(logits, labels, weight=weights, label_smoothing=smoothing)
        first = F.cross_entropy(logits, labels, reduction="none")
        return (lam * first + (1 - lam) * F.cross_entropy(logits, labels[partner], reduction="none")).mean()

    out = dict(features=f, text_logits=text, ce_text=cross_entropy(text, not settings.has_head))
    out["loss"] = settings.text_weight * out["ce_text"]
    if settings.has_head:
        out["head_logits"] = F.linear(settings.head_scale * f, p["head.weight"], p["head.bias"])
        out["ce_head"] = cross_entropy(out["head_logits"], True)
        share = 1 - settings.triplet_weight if settings.variant == "triplet" else 1
        out["loss"] = share * out["ce_head"] + out["loss"]
    if settings.variant == "triplet":
        out["triplet"] = batch_hard_triplet(f, labels, settings.margin)
        out["loss"] = out["loss"] + settings.triplet_weight * out["triplet"]
    return {**out, "hidden": hidden}


# ---------------------------------------------------------------- runs


class Run:
    """The model in one precision with one set of trained tensors."""

    def __init__(self, model, adapters, ids, tensors, batches, settings, dtype):
        self.model, self.ids, self.batches, self.settings, self.dtype = model, ids, batches, settings, dtype
        self.dropout = adapters.dropout
        self.p = {k: v.to(whole(dtype), copy=True).requires_grad_() for k, v in tensors.items()}
        for name, adapter in adapters.layers.items():
            adapter.a, adapter.b = self.p[f"{name}.A"], self.p[f"{name}.B"]
        self.T = self.constant_text_features()

    def constant_text_features(self) -> Tensor | None:
        """T, where no step moves it."""
        if self.settings.trains_text:
            return None
        with torch.no_grad():
            return text_features(self.model, self.ids, self.settings.templates)

    def images(self, t: int) -> int:
        """Of batch `t` of a run."""
        s = self.settings
        return s.last_batch if (t + 1) % s.batches == 0 else s.sizes.batch

    def forward(self, t: int, images: int | None = None, drop: bool = True) -> dict:
        """The pass over batch `t` of a run, over its first images where not all are wanted."""
        batch = {k: v[t % self.settings.batches][:images] for k, v in self.batches.items()}
        batch["pixel_values"] = batch["pixel_values"].to(self.dtype)
        if "lam" in batch:
            batch["lam"] = batch["lam"].to(whole(self.dtype))
        self.dropout.step = t if drop else None
        if not self.settings.trains_text:
            return forward(self.model, self.T, self.p, batch, self.settings)
        T = text_features(self.model, self.ids, self.settings.templates)
        return {**forward(self.model, T, self.p, batch, self.settings), "text_features": T}

    def one_pass(self) -> tuple[dict[str, Tensor], list[Tensor]]:
        """Outputs and gradients of batch 0, and the hidden states."""
        out = self.forward(0)
        hidden = out.pop("hidden")
        gradients = torch.autograd.grad(out["loss"], list(self.p.values()))
        out.update({f"grad.{k}": g for k, g in zip(self.p, gradients)})
        if self.settings.dropout:
            with torch.no_grad():
                plain = self.forward(0, drop=False)
            out |= {f"eval.{k}": v for k, v in plain.items() if k.endswith(("features", "logits"))}
        return out, hidden

    def parts(self) -> list[list[int]]:
        """The batches of every step: an epoch's are taken `accumulate` at a time, and what is left at its end
        makes a step of its own."""
        n, size, steps = self.settings.batches, self.settings.accumulate, []
        while len(steps) < self.settings.steps:
            first = steps[-1][-1] + 1 if steps else 0
            steps.append(list(range(first, min(first + size, (first // n + 1) * n))))
        return steps

    def train(self) -> dict[str, Tensor]:
        """AdamW from the initial tensors: the loss of every batch and the tensors after the last step."""
        groups = [dict(params=[v for k, v in self.p.items() if group_of(k) == group], lr=lr, weight_decay=decay)
                  for group, (lr, decay) in self.settings.hp.items()]
        optimiser = torch.optim.AdamW([g for g in groups if g["params"]],
                                      betas=self.settings.betas, eps=self.settings.eps)
        losses, norms, clip = [], [], self.settings.clip_grad_norm
        for part in self.parts():
            optimiser.zero_grad()
            images = sum(self.images(t) for t in part)
            for t in part:
                loss = self.forward(t, self.images(t))["loss"]
                (loss * (self.images(t) / images)).backward()
                losses.append(loss.detach())
            norms.append(torch.nn.utils.clip_grad_norm_(self.p.values(), clip or math.inf))
            optimiser.step()
        found = {"traj.loss": torch.stack(losses), "traj.grad_norm": torch.stack(norms)}
        return found | {f"traj.final.{k}": v for k, v in self.p.items()}


def group_of(name: str) -> str:
    """The group of trained tensors that `name` belongs to."""
    return name.split(".")[0].removeprefix("text_")


def reference(model: CLIPModel, settings: Settings, keep_hidden: bool = True) -> dict[str, Tensor]:
    """All tensors of one variant, by the names at the top of this file. `model` must be without adapters."""
    batches, ids = make_batches(settings), make_prompts(model, settings)
    starts = {"": initial_tensors(model, settings)}
    if settings.has_lora:
        starts["warm."] = initial_tensors(model, settings, warm=True)
    saved = {f"batch.{k}": v for k, v in batches.items()} | {"text.input_ids": ids}
    adapters = add_adapters(model, settings)
    for precision, dtype in {settings.precision: PRECISIONS[settings.precision], "f64": EXACT}.items():
        model.to(dtype)
        saved[f"{precision}.logit_scale"] = model.logit_scale
        for start, tensors in starts.items():
            run = lambda: Run(model, adapters, ids, tensors, batches, settings, dtype)
            out, hidden = run().one_pass()
            if start == "" and not settings.trains_text:
                out["text_features"] = run().T
            saved |= {f"{start}init.{k}": v for k, v in tensors.items()}
            saved |= {f"{start}{precision}.{k}": v for k, v in (out | run().train()).items()}
            if keep_hidden and precision == "f64" and start == "":
                saved |= {f"f64.hidden.{i}": h for i, h in enumerate(hidden)}
    saved = {k: on_features(k, v.detach(), settings.head_scale) for k, v in saved.items()}
    if settings.precision != "f32":
        saved = {k: v.float() if v.dtype == EXACT else v for k, v in saved.items()}
    return {k: v.clone().contiguous() for k, v in saved.items()}


def on_features(name: str, value: Tensor, head_scale: float) -> Tensor:
    """The head's weight, or its gradient, of the layer that acts on the features themselves."""
    if not name.endswith("head.weight"):
        return value
    return value / head_scale if ".grad." in name else value * head_scale


def write(settings: Settings, out: Path, name: str, keep_hidden: bool | None = None) -> Path:
    """Writes the model directory and one reference file; returns the file's path."""
    directory = out / settings.directory
    model = build_model(settings)
    # Without a loss: its numbers are of this type already.
    model.to(PRECISIONS[settings.precision]).save_pretrained(directory)
    (directory / "generation_config.json").unlink(missing_ok=True)
    if keep_hidden is None:
        keep_hidden = not settings.sizes.published and settings.precision == "f32"
    tensors = reference(model, settings, keep_hidden)
    for start in ("", "warm.") if settings.clip_grad_norm else ():
        norms = tensors[f"{start}f64.traj.grad_norm"].tolist()
        if not min(norms) < settings.clip_grad_norm < max(norms):
            sys.exit(f"--clip-grad-norm {settings.clip_grad_norm}: clips all steps or none; their gradients are "
                     f"{', '.join(f'{n:.3g}' for n in norms)} long")
    path = directory / f"{name}.safetensors"
    save_file(tensors, path, metadata={"meta": settings.meta()})
    peer = settings.precision
    worst = max(relative_error(tensors[k.replace("f64", peer)], v) for k, v in tensors.items() if "f64.grad" in k)
    print(f"{path}: {len(tensors)} tensors, {path.stat().st_size / 1e6:.2f} MB, loss {tensors['f64.loss']:.6f}, "
          f"{peer} gradients within {worst:.1e} of f64", file=sys.stderr)
    return path


def relative_error(found: Tensor, expected: Tensor) -> float:
    """Largest difference over the largest value; 0 where both are all zero."""
    difference = (found.double() - expected.double()).abs().max().item()
    return difference / expected.abs().max().item() if difference else 0.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=SIZES, default="tiny")
    parser.add_argument("--variant", choices=(*PRESETS, "all"), default="lora")
    parser.add_argument("--precision", choices=PRECISIONS, default="f32", help="of frozen weights, and of the peer (f32)")
    parser.add_argument("--targets", help="linear layers with LoRA, comma-separated: " + ",".join(ATTENTION + MLP))
    parser.add_argument("--with-lora", action="store_true", help="train LoRA beside the prompts of a vpt variant")
    parser.add_argument("--text-weight", type=float, help="weight of the text loss (0.3; mixup and triplet 0)")
    parser.add_argument("--margin", type=float, help="margin of the triplet loss (1)")
    parser.add_argument("--clip-grad-norm", type=float, help="length to which gradients are scaled down")
    parser.add_argument("--templates", type=int, help="prompts of a class (4)")
    parser.add_argument("--steps", type=int, help="AdamW steps (5)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--name", help="name of the file, without .safetensors (default: the variant)")
    parser.add_argument("--no-hidden", action="store_true", help="leave out the hidden states")
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    names = ("targets", "text_weight", "margin", "clip_grad_norm", "templates", "steps")
    given = {name: value for name in names if (value := getattr(args, name)) is not None}
    if args.targets:
        given["targets"] = tuple(args.targets.split(","))
        if unknown := set(given["targets"]) - set(ATTENTION + MLP):
            parser.error(f"--targets: unknown {', '.join(sorted(unknown))}")
    torch.set_num_threads(2)
    for name in PRESETS if args.variant == "all" else [args.variant]:
        preset = PRESETS[name] | given | dict(size=args.size, seed=args.seed, precision=args.precision)
        settings = Settings(with_lora=args.with_lora and preset["variant"].startswith("vpt"), **preset)
        write(settings, args.out, args.name or name + "_lora" * settings.with_lora, False if args.no_hidden else None)


if __name__ == "__main__":
    main()
