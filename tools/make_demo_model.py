#!/usr/bin/env python3
"""Makes assets/demo-clip, the tiny CLIP behind `engine train --demo`, and measures what it can do.

One command, from the repository root, draws the pictures (with the Rust example, so that there is one
drawer), trains a tokenizer and the model on them, writes the Hugging Face directory and evaluates it:

    python tools/make_demo_model.py

`--evaluate-only` leaves the model as it is and repeats the evaluation. Needs cargo, torch, transformers,
tokenizers and Pillow. Every random choice comes from --seed; the weights depend on the torch version and the
machine's instruction set all the same, so a rerun gives a model of the same quality, not the same bytes.
"""

import argparse
import json
import math
import random
import shutil
import subprocess
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import save_file
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import CLIPConfig, CLIPModel

ROOT = Path(__file__).resolve().parent.parent
REFERENCE = ROOT / "tests" / "fixtures" / "demo" / "reference.safetensors"
ASSETS = ROOT / "assets" / "demo-clip"
SIZE = 64
# As wide as the real model: the head starts from nothing, and its logits grow with the width of what it sees.
EMBEDDING = 512
BOS, EOS = "<|startoftext|>", "<|endoftext|>"
MEAN = (0.48145466, 0.4578275, 0.40821073)
STD = (0.26862954, 0.26130258, 0.27577711)
# The engine's default prompts; pre-training sees them among others, so that they mean something.
TEMPLATES = ("A photo of {}.", "A photo of flower {}.", "Botanic picture of {}", "A example picture of type {}")
OTHER_TEMPLATES = ("{}", "a {}", "a drawing of a {}", "a picture of a {} flower.", "this flower is a {}", "the {}")


def arguments():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, default=ASSETS, help="model directory")
    parser.add_argument("--work", type=Path, default=ROOT / "target" / "demo", help="where the pictures are drawn")
    parser.add_argument("--images", type=int, default=30000, help="pre-training pictures")
    parser.add_argument("--steps", type=int, default=1200, help="pre-training steps")
    parser.add_argument("--batch-size", type=int, default=96)
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seed", type=int, default=42)
    parser.add_argument("--keep-pictures", action="store_true", help="use the pre-training pictures already drawn")
    parser.add_argument("--evaluate-only", action="store_true", help="keep the model, repeat the evaluation")
    return parser.parse_args()


# ---- pictures and captions -------------------------------------------------------------------------------


def draw(work, images, seed):
    """Runs the Rust drawer: the demo set as an image folder and, where asked for, a pre-training set."""
    command = ["cargo", "run", "--release", "--quiet", "--example", "01_draw_flowers", "--", "--seed", str(seed)]
    shutil.rmtree(work / "folder", ignore_errors=True)
    subprocess.run([*command, "--output", str(work / "folder")], cwd=ROOT, check=True)
    if images:
        pretraining = ["--output", str(work / "pretraining"), "--pretraining", str(images)]
        subprocess.run([*command, *pretraining], cwd=ROOT, check=True)


def caption(words, rng):
    """One caption for a picture: its full name, or some of its attributes in some order, in a template."""
    template = rng.choice(TEMPLATES if rng.random() < 0.6 else OTHER_TEMPLATES)
    if rng.random() < 0.6:
        return template.format(words["name"])
    before = [words[key] for key in ("rings", "petals", "marking", "colour") if words[key]]
    before = [word for word in before if rng.random() < 0.75]
    rng.shuffle(before)
    centre = f"{words['centre']} centre"
    if rng.random() < 0.25:
        text = " ".join([*before, words["form"]])
    elif rng.random() < 0.5:
        text = " ".join([*before, words["form"], "with a", centre])
    else:
        text = " ".join([centre, *before, words["form"]])
    return template.format(text)


def normalise(pixels):
    """[B,S,S,3] bytes to [B,3,S,S] floats as CLIP's processor makes them."""
    images = torch.from_numpy(np.array(pixels)).float().div_(255)
    images = (images - torch.tensor(MEAN)) / torch.tensor(STD)
    return images.permute(0, 3, 1, 2).contiguous()


def demo_split(work, split):
    """Pictures and labels of one split of the drawn image folder."""
    names = json.loads((work / "folder" / "classes.json").read_text())
    pixels, labels = [], []
    for label, name in enumerate(names):
        for path in sorted((work / "folder" / split / name).glob("*.png")):
            pixels.append(np.asarray(Image.open(path)))
            labels.append(label)
    return normalise(np.stack(pixels)), torch.tensor(labels), names


# ---- tokenizer -------------------------------------------------------------------------------------------


def train_tokenizer(texts, merges_wanted=320):
    """A CLIP tokenizer with few merges: byte-level BPE on lower-cased text, words closed by `</w>`.

    As in CLIP's own vocabulary, every byte is a token both within a word and at its end, so any text can be
    encoded; then come the merges, then the two special tokens.
    """
    bytes_ = sorted(pre_tokenizers.ByteLevel.alphabet())
    pattern = r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"

    def assemble(model):
        tokenizer = Tokenizer(model)
        tokenizer.normalizer = normalizers.Sequence(
            [normalizers.NFC(), normalizers.Replace(Regex(r"\s+"), " "), normalizers.Lowercase()]
        )
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
            [
                pre_tokenizers.Split(Regex(pattern), behavior="removed", invert=True),
                pre_tokenizers.ByteLevel(add_prefix_space=False),
            ]
        )
        tokenizer.decoder = decoders.ByteLevel()
        return tokenizer

    learner = assemble(models.BPE(continuing_subword_prefix="", end_of_word_suffix="</w>"))
    trainer = trainers.BpeTrainer(
        vocab_size=len(bytes_) * 2 + merges_wanted,
        initial_alphabet=bytes_,
        end_of_word_suffix="</w>",
        show_progress=False,
    )
    learner.train_from_iterator(sorted(texts), trainer)
    learned = json.loads(learner.to_str())["model"]["merges"]
    merges = [tuple(pair) if isinstance(pair, list) else tuple(pair.split(" ")) for pair in learned]
    tokens = dict.fromkeys([*bytes_, *(byte + "</w>" for byte in bytes_), *("".join(pair) for pair in merges)])
    vocabulary = {token: index for index, token in enumerate([*tokens, BOS, EOS])}
    model = models.BPE(
        vocab=vocabulary, merges=merges, continuing_subword_prefix="", end_of_word_suffix="</w>", unk_token=EOS
    )
    tokenizer = assemble(model)
    tokenizer.add_special_tokens([BOS, EOS])
    tokenizer.post_processor = processors.RobertaProcessing(
        (EOS, vocabulary[EOS]), (BOS, vocabulary[BOS]), trim_offsets=False, add_prefix_space=False
    )
    return tokenizer


def encode(tokenizer, texts):
    """Token ids [N,T], padded with EOS to the longest of these texts."""
    rows = [row.ids for row in tokenizer.encode_batch(texts)]
    longest = max(map(len, rows))
    eos = tokenizer.token_to_id(EOS)
    return torch.tensor([row + [eos] * (longest - len(row)) for row in rows])


# ---- model and pre-training ------------------------------------------------------------------------------


def build_model(tokenizer):
    """An untrained CLIP: 65 image tokens, four vision and three text blocks."""
    special = {"bos_token_id": tokenizer.token_to_id(BOS), "eos_token_id": tokenizer.token_to_id(EOS)}
    special["pad_token_id"] = special["eos_token_id"]
    shared = {"hidden_act": "quick_gelu", "projection_dim": EMBEDDING}
    text = {
        "vocab_size": tokenizer.get_vocab_size(),
        "hidden_size": 96,
        "intermediate_size": 384,
        "num_hidden_layers": 3,
        "num_attention_heads": 3,
        "max_position_embeddings": 77,
        **special,
        **shared,
    }
    vision = {
        "hidden_size": 128,
        "intermediate_size": 512,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "image_size": SIZE,
        "patch_size": 8,
        **shared,
    }
    return CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=EMBEDDING, **special))


def features(tensor_or_output):
    """Some versions of transformers wrap what get_*_features returns."""
    return getattr(tensor_or_output, "pooler_output", tensor_or_output)


def image_features(model, images):
    return F.normalize(features(model.get_image_features(pixel_values=images)).float(), dim=-1)


def text_features(model, ids):
    # No mask: padding comes after the first EOS, which a causal tower never sees.
    return F.normalize(features(model.get_text_features(input_ids=ids)).float(), dim=-1)


def augment(images, rng):
    """Mirrors half of the batch and shifts it by up to four pixels."""
    if rng.random() < 0.5:
        images = images.flip(3)
    dx, dy = rng.integers(0, 9, 2)
    return F.pad(images, (4, 4, 4, 4), mode="replicate")[:, :, dy : dy + SIZE, dx : dx + SIZE]


def pretrain(model, tokenizer, work, options):
    """Symmetric contrastive training: each picture against the captions of its batch and the reverse."""
    count = options.images
    pixels = np.memmap(work / "pretraining" / "pixels.u8", np.uint8, "r", shape=(count, SIZE, SIZE, 3))
    words = [json.loads(line) for line in (work / "pretraining" / "captions.jsonl").open()]
    rng, order_rng = random.Random(options.seed), np.random.default_rng(options.seed)
    matrices = [p for p in model.parameters() if p.ndim > 1]
    vectors = [p for p in model.parameters() if p.ndim <= 1]
    groups = [{"params": matrices, "weight_decay": 0.05}, {"params": vectors, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=options.lr, betas=(0.9, 0.98), eps=1e-6)
    warm_up = max(1, options.steps // 20)

    def rate(step):
        if step < warm_up:
            return (step + 1) / warm_up
        return 0.5 * (1 + math.cos(math.pi * (step - warm_up) / (options.steps - warm_up)))

    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, rate)
    # On a CPU the plain form of attention has the faster backward pass at 65 tokens.
    model.set_attn_implementation("eager")
    order, started, shown = np.empty(0, np.int64), time.time(), []
    model.train()
    for step in range(options.steps):
        if len(order) < options.batch_size:
            order = order_rng.permutation(count)
        rows, order = np.sort(order[: options.batch_size]), order[options.batch_size :]
        images = augment(normalise(pixels[rows]), order_rng)
        ids = encode(tokenizer, [caption(words[row], rng) for row in rows])
        with torch.autocast("cpu", torch.bfloat16):
            f, t = image_features(model, images), text_features(model, ids)
        logits = model.logit_scale.exp() * f @ t.T
        truth = torch.arange(len(rows))
        loss = (F.cross_entropy(logits, truth) + F.cross_entropy(logits.T, truth)) / 2
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        with torch.no_grad():
            model.logit_scale.clamp_(0, math.log(100))
        shown.append(loss.item())
        if (step + 1) % 50 == 0 or step + 1 == options.steps:
            passed = time.time() - started
            print(f"step {step + 1:5d}  loss {np.mean(shown):.3f}  {passed:5.0f} s", flush=True)
            shown = []


def export(model, tokenizer, output):
    """The Hugging Face layout, weights in f16."""
    output.mkdir(parents=True, exist_ok=True)
    model.half().save_pretrained(output, safe_serialization=True)
    model.float()
    tokenizer.save(str(output / "tokenizer.json"), pretty=False)
    processor = {
        "crop_size": {"height": SIZE, "width": SIZE},
        "do_center_crop": True,
        "do_convert_rgb": True,
        "do_normalize": True,
        "do_rescale": True,
        "do_resize": True,
        "image_mean": MEAN,
        "image_processor_type": "CLIPImageProcessor",
        "image_std": STD,
        "resample": 3,
        "rescale_factor": 1 / 255,
        "size": {"shortest_edge": SIZE},
    }
    (output / "preprocessor_config.json").write_text(json.dumps(processor, indent=2) + "\n")


# ---- evaluation ------------------------------------------------------------------------------------------


def class_features(model, tokenizer, names):
    """[C,E]: for each class the mean over the prompts of the normalised features, normalised again."""
    with torch.no_grad():
        per_prompt = [
            text_features(model, encode(tokenizer, [template.format(name) for name in names])) for template in TEMPLATES
        ]
    return F.normalize(torch.stack(per_prompt).mean(0), dim=-1)


class Lora(torch.nn.Module):
    """y = Wx + b + (alpha/r)·B(Ax), W and b frozen."""

    def __init__(self, linear, rank=8, alpha=16):
        super().__init__()
        self.linear, self.scale = linear, alpha / rank
        self.a = torch.nn.Parameter(torch.empty(rank, linear.in_features))
        torch.nn.init.kaiming_uniform_(self.a, a=math.sqrt(5))
        self.b = torch.nn.Parameter(torch.zeros(linear.out_features, rank))

    def forward(self, x):
        return self.linear(x) + self.scale * F.linear(F.linear(x, self.a), self.b)


def add_lora(model):
    """Puts adapters on the four attention projections of every vision block; returns their tensors."""
    model.requires_grad_(False)
    tensors = []
    for layer in model.vision_model.encoder.layers:
        for name in ("q_proj", "k_proj", "v_proj", "out_proj"):
            lora = Lora(getattr(layer.self_attn, name))
            setattr(layer.self_attn, name, lora)
            tensors += [lora.a, lora.b]
    return tensors


def measure(model, head, text, images, labels):
    """Validation loss of the whole objective, top-1 of the head, top-1 of the text logits."""
    with torch.no_grad():
        f = torch.cat([image_features(model, part) for part in images.split(128)])
        by_head, by_text = head(f), model.logit_scale.exp() * f @ text.T
    loss = F.cross_entropy(by_head, labels) + 0.3 * F.cross_entropy(by_text, labels)
    top1 = [(logits.argmax(-1) == labels).float().mean().item() * 100 for logits in (by_head, by_text)]
    return loss.item(), *top1


def fine_tune(output, tokenizer, work, seed, lora, epochs=40, early_stop=3):
    """The recipe's `lora` (or, without adapters, `linear`) on the demo set. Prints every fifth epoch."""
    torch.manual_seed(seed)
    model = CLIPModel.from_pretrained(output, dtype=torch.float32).eval()
    (images, labels, names), (val_x, val_y, _) = demo_split(work, "train"), demo_split(work, "val")
    text = class_features(model, tokenizer, names)
    adapters = add_lora(model) if lora else model.requires_grad_(False) and []
    head = torch.nn.Linear(text.shape[1], len(names))
    groups = [{"params": head.parameters(), "lr": 1e-3, "weight_decay": 1e-4}]
    if adapters:
        groups.append({"params": adapters, "lr": 1e-4, "weight_decay": 1e-2})
    optimizer = torch.optim.AdamW(groups)
    best_accuracy, best_state, best_epoch, best_loss, waited = -1.0, None, 0, math.inf, 0
    for epoch in range(epochs):
        for rows in torch.randperm(len(images)).split(32):
            f = image_features(model, images[rows])
            by_text = model.logit_scale.exp() * f @ text.T
            loss = F.cross_entropy(head(f), labels[rows]) + 0.3 * F.cross_entropy(by_text, labels[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        val_loss, val_top1, val_text = measure(model, head, text, val_x, val_y)
        if val_top1 > best_accuracy:
            trained = [*adapters, *head.parameters()]
            best_accuracy, best_epoch, best_state = val_top1, epoch, [p.detach().clone() for p in trained]
        waited = 0 if val_loss < best_loss - 0.02 else waited + 1
        best_loss = min(best_loss, val_loss)
        if (epoch + 1) % 5 == 0:
            print(f"  epoch {epoch + 1:2d}  val loss {val_loss:.3f}  head {val_top1:.1f} %  text {val_text:.1f} %")
        if early_stop and waited >= early_stop:
            print(f"  stopped early after epoch {epoch + 1}")
            break
    test_x, test_y, _ = demo_split(work, "test")
    _, last, _ = measure(model, head, text, test_x, test_y)
    with torch.no_grad():
        for parameter, kept in zip([*adapters, *head.parameters()], best_state):
            parameter.copy_(kept)
    _, by_head, by_text = measure(model, head, text, test_x, test_y)
    method = "lora + head" if lora else "head only"
    print(f"{method}: best epoch {best_epoch + 1}, test top-1 head {by_head:.1f} %, text {by_text:.1f} %", end="")
    print(f"; last epoch {epoch + 1}, head {last:.1f} %", flush=True)


def zero_shot(output, tokenizer, work):
    model = CLIPModel.from_pretrained(output, dtype=torch.float32).eval()
    images, labels, names = demo_split(work, "test")
    text = class_features(model, tokenizer, names)
    with torch.no_grad():
        guess = (image_features(model, images) @ text.T).argmax(-1)
    top1 = (guess == labels).float().mean().item() * 100
    print(f"zero-shot: test top-1 {top1:.1f} % of {len(labels)} pictures (chance {100 / len(names):.1f} %)")
    for label, name in enumerate(names):
        row = guess[labels == label]
        print(f"  {(row == label).float().mean().item() * 100:5.1f} %  {name}")


def write_reference(output, tokenizer, work):
    """What `transformers` makes of the first test picture and the prompts of each class, for the tests."""
    model = CLIPModel.from_pretrained(output, dtype=torch.float32).eval()
    names = json.loads((work / "folder" / "classes.json").read_text())
    pictures = [sorted((work / "folder" / "test" / name).glob("*.png"))[0] for name in names]
    pixels = np.stack([np.asarray(Image.open(path)) for path in pictures])
    with torch.no_grad():
        tensors = {
            "pixels": torch.from_numpy(pixels),
            "image_features": image_features(model, normalise(pixels)),
            "class_features": class_features(model, tokenizer, names),
        }
    REFERENCE.parent.mkdir(parents=True, exist_ok=True)
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, REFERENCE)


def main():
    options = arguments()
    torch.set_num_threads(options.threads)
    torch.manual_seed(options.seed)
    drawn = options.evaluate_only or options.keep_pictures
    draw(options.work, 0 if drawn else options.images, options.seed)
    if not options.evaluate_only:
        rng = random.Random(options.seed)
        words = [json.loads(line) for line in (options.work / "pretraining" / "captions.jsonl").open()]
        tokenizer = train_tokenizer({caption(entry, rng) for entry in words})
        model = build_model(tokenizer)
        parameters = sum(p.numel() for p in model.parameters())
        print(f"{parameters / 1e6:.2f} M parameters, {tokenizer.get_vocab_size()} tokens", flush=True)
        pretrain(model, tokenizer, options.work, options)
        export(model, tokenizer, options.output)
    tokenizer = Tokenizer.from_file(str(options.output / "tokenizer.json"))
    zero_shot(options.output, tokenizer, options.work)
    fine_tune(options.output, tokenizer, options.work, options.seed, lora=False)
    fine_tune(options.output, tokenizer, options.work, options.seed, lora=True)
    if options.output.resolve() == ASSETS:
        write_reference(options.output, tokenizer, options.work)


if __name__ == "__main__":
    main()
