"""Writes the seeds of the fuzz targets, fuzz/corpus/TARGET/*: small files of every kind that is read, whole,
cut short, with flipped bits, and made to mislead. Entries that fuzzing found are left alone; they bear a hash
as their name, these bear words.

    python3 tools/fuzz_corpus.py

Needs Python 3.9 or later alone. The result depends on nothing but the fixtures.
"""

import hashlib
import json
import pathlib
import random
import struct
import zlib

ROOT = pathlib.Path(__file__).resolve().parent.parent
FIXTURES = ROOT / "tests" / "fixtures"
CORPUS = ROOT / "fuzz" / "corpus"
LARGEST = 20_000


def write(target, name, data):
    folder = CORPUS / target
    folder.mkdir(parents=True, exist_ok=True)
    assert len(data) <= LARGEST, f"{target}/{name}: {len(data)} bytes"
    (folder / name).write_bytes(data)


def damaged(target, name, data):
    """The data whole, cut at two places, and with some bits flipped."""
    write(target, name, data)
    rng = random.Random(f"{target}/{name}")
    for part, length in (("half", len(data) // 2), ("all_but_one", len(data) - 1)):
        write(target, f"{name}.{part}", data[:length])
    flipped = bytearray(data)
    for _ in range(3):
        flipped[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    write(target, f"{name}.flipped", bytes(flipped))


# ---- safetensors


def safetensors(header, data=b""):
    text = header if isinstance(header, bytes) else json.dumps(header, separators=(",", ":")).encode()
    return struct.pack("<Q", len(text)) + text + data


def f32_file(shapes, metadata=None):
    """Tensors of small numbers, one after the other."""
    header, data = {}, b""
    if metadata is not None:
        header["__metadata__"] = metadata
    for name, shape in shapes.items():
        count = 1
        for extent in shape:
            count *= extent
        values = struct.pack(f"<{count}f", *((i % 7 - 3) / 8 for i in range(count)))
        header[name] = {"dtype": "F32", "shape": shape, "data_offsets": [len(data), len(data) + len(values)]}
        data += values
    return safetensors(header, data)


def tensor(dtype, shape, start, end):
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}


def misleading_safetensors():
    big = 2**63
    yield "header_2_63", struct.pack("<Q", big) + b"{}"
    yield "header_all_ones", b"\xff" * 8 + b"{}"
    yield "header_past_end", struct.pack("<Q", 3) + b"{}"
    yield "header_array", safetensors(b"[]")
    yield "header_nul", safetensors(b"\0\0\0\0")
    yield "header_deep", safetensors(b'{"a":' + b"[" * 5000 + b"]" * 5000 + b"}")
    yield "no_tensor", safetensors({})
    yield "overlap", safetensors({"a": tensor("F32", [2], 0, 8), "b": tensor("F32", [2], 4, 12)}, bytes(12))
    yield "gap", safetensors({"a": tensor("F32", [1], 0, 4), "b": tensor("F32", [1], 8, 12)}, bytes(12))
    yield "backwards", safetensors({"a": tensor("F32", [1], 4, 0)}, bytes(4))
    yield "same_twice", safetensors(
        b'{"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},'
        b'"a":{"dtype":"U8","shape":[2],"data_offsets":[1,3]}}', bytes(3)
    )
    yield "product_overflows", safetensors({"a": tensor("F32", [2**32, 2**32], 0, 4)}, bytes(4))
    yield "zero_times_huge", safetensors({"logit_scale": tensor("F32", [0, 2**62, 2**62], 0, 0)})
    yield "offsets_huge", safetensors({"a": tensor("F32", [1], 2**64 - 5, 2**64 - 1)}, bytes(4))
    yield "negative", safetensors({"a": tensor("F32", [-1], 0, 4)}, bytes(4))
    yield "rank_40", safetensors({"a": tensor("F32", [1] * 40, 0, 4)}, bytes(4))
    yield "type_unknown", safetensors({"a": tensor("F33", [1], 0, 4)}, bytes(4))
    for kind, size in (("BOOL", 1), ("I64", 8), ("F8_E4M3", 1), ("F16", 2), ("BF16", 2), ("F64", 8)):
        yield f"type_{kind}", safetensors({"logit_scale": tensor(kind, [], 0, size)}, b"\xff" * size)
    yield "name_control", safetensors({"a\n\x1b[2J\0": tensor("F32", [1], 0, 4)}, bytes(4))
    yield "metadata_numbers", safetensors({"__metadata__": {"a": 1}})


# ---- a checkpoint: config.json, zero, model.safetensors


def tiny_config():
    tower = {"hidden_size": 8, "intermediate_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    return {
        "model_type": "clip",
        "projection_dim": 4,
        "vision_config": tower | {"image_size": 4, "patch_size": 2},
        "text_config": tower | {"vocab_size": 12, "max_position_embeddings": 5, "eos_token_id": 11},
    }


def tiny_shapes():
    shapes = {
        "logit_scale": [],
        "text_model.embeddings.token_embedding.weight": [12, 8],
        "text_model.embeddings.position_embedding.weight": [5, 8],
        "text_projection.weight": [4, 8],
        "vision_model.embeddings.class_embedding": [8],
        "vision_model.embeddings.patch_embedding.weight": [8, 3, 2, 2],
        "vision_model.embeddings.position_embedding.weight": [5, 8],
        "visual_projection.weight": [4, 8],
    }
    norms = ["text_model.final_layer_norm", "vision_model.pre_layrnorm", "vision_model.post_layernorm"]
    linears = {}
    for tower in ("text_model", "vision_model"):
        for layer in range(2):
            block = f"{tower}.encoder.layers.{layer}"
            norms += [f"{block}.layer_norm1", f"{block}.layer_norm2"]
            linears |= {f"{block}.self_attn.{p}_proj": [8, 8] for p in ("q", "k", "v", "out")}
            linears |= {f"{block}.mlp.fc1": [16, 8], f"{block}.mlp.fc2": [8, 16]}
    for norm in norms:
        shapes |= {f"{norm}.weight": [8], f"{norm}.bias": [8]}
    for linear, shape in linears.items():
        shapes |= {f"{linear}.weight": shape, f"{linear}.bias": shape[:1]}
    return shapes


def checkpoint():
    config = json.dumps(tiny_config()).encode()
    whole = f32_file(tiny_shapes())
    damaged("checkpoint", "whole", config + b"\0" + whole)
    for name, data in misleading_safetensors():
        write("checkpoint", f"weights_{name}", config + b"\0" + data)

    def changed(part, key, value):
        root = tiny_config()
        (root[part] if part else root)[key] = value
        return root

    numbers = {
        "infinity": "1e999", "nan": "NaN", "minus_infinity": "-Infinity", "tiny": "1e-320", "large": "1e308",
        "minus": "-1", "half": "0.5", "null": "null", "text": '"8"', "u64": "18446744073709551615",
        "more_than_u64": "18446744073709551616", "digits": "1" * 4000,
    }
    for name, literal in numbers.items():
        for key in ("layer_norm_eps", "hidden_size"):
            text = json.dumps(changed("vision_config", key, "HERE")).replace('"HERE"', literal)
            write("checkpoint", f"config_{key}_{name}", text.encode())
    for part, key, value in (
        ("", "projection_dim", 0), ("", "logit_scale_init_value", 1e300), ("", "model_type", "siglip"),
        ("", "vision_config", []), ("", "text_config_dict", {}), ("vision_config", "patch_size", 0),
        ("vision_config", "image_size", [4, 4]), ("vision_config", "image_size", 16384),
        ("vision_config", "num_hidden_layers", 512), ("vision_config", "num_attention_heads", 3),
        ("text_config", "eos_token_id", 2), ("text_config", "eos_token_id", 2**32),
        ("text_config", "max_position_embeddings", 65536), ("text_config", "vocab_size", 4194304),
    ):
        name = f"config_{part or 'root'}_{key}_{value}".replace("[", "").replace("]", "").replace(", ", "_")
        write("checkpoint", name.replace("{}", "object"), json.dumps(changed(part, key, value)).encode())
    write("checkpoint", "config_deep", b'{"model_type":"clip","a":' + b"[" * 9000)
    write("checkpoint", "config_not_utf8", b'{"model_type":"cl\xffip"}')
    write("checkpoint", "empty", b"")
    for name, index in {
        "whole": {"weight_map": {}}, "missing": {"weight_map": {"a": "shard.safetensors"}},
        "outside": {"weight_map": {"a": "../../../../etc/passwd"}}, "itself": {"weight_map": {"a": "."}},
        "absolute": {"weight_map": {"a": "/dev/zero"}}, "none": {},
    }.items():
        write("checkpoint", f"index_{name}", config + b"\0" + json.dumps(index).encode())


# ---- an adapter: adapter_config.json, zero, tensors


def adapter():
    config = {"peft_type": "LORA", "r": 2, "lora_alpha": 4.0, "bias": "none",
              "target_modules": ["q_proj", "v_proj"]}
    prefix = "base_model.model.vision_model.encoder.layers."
    shapes = {}
    for layer in range(2):
        for target in ("q_proj", "v_proj"):
            name = f"{prefix}{layer}.self_attn.{target}"
            shapes |= {f"{name}.lora_A.weight": [2, 8], f"{name}.lora_B.weight": [8, 2]}
    text = json.dumps(config).encode()
    damaged("adapter", "whole", text + b"\0" + f32_file(shapes))
    twice = shapes | {f"{prefix}+1.self_attn.q_proj.lora_A.weight": [2, 8],
                      f"{prefix}01.self_attn.q_proj.lora_B.weight": [8, 2]}
    write("adapter", "layer_by_three_names", text + b"\0" + f32_file(twice))
    write("adapter", "layer_2_64", text + b"\0" + f32_file(
        {f"{prefix}{2**64}.self_attn.q_proj.lora_A.weight": [2, 8]}))
    write("adapter", "scalar", text + b"\0" + f32_file({f"{prefix}0.self_attn.q_proj.lora_A.weight": []}))
    half = dict(list(shapes.items())[:-1])
    write("adapter", "half_a_pair", text + b"\0" + f32_file(half))
    for name, changes in {
        "rank_0": {"r": 0}, "rank_2_63": {"r": 2**63}, "rank_text": {"r": "2"}, "alpha_null": {"lora_alpha": None},
        "alpha_large": {"lora_alpha": 1e308}, "pattern_backtracks": {"target_modules": "(a*)*(a*)*(a*)*$b"},
        "pattern_large": {"target_modules": "((a{999}){999}){999}"}, "pattern_open": {"target_modules": "(((("},
        "rslora": {"use_rslora": True}, "dora": {"use_dora": True}, "type": {"peft_type": "IA3"},
        "rank_pattern": {"rank_pattern": {"q_proj": 4}}, "targets_empty": {"target_modules": []},
    }.items():
        write("adapter", f"config_{name}", json.dumps(config | changes).encode() + b"\0" + f32_file(shapes))
    for name, data in misleading_safetensors():
        write("adapter", f"tensors_{name}", text + b"\0" + data)
    names = json.dumps(["rose", "tulip", "\x1b[2J\n"])
    head = {"head.weight": [3, 8], "head.bias": [3]}
    damaged("adapter", "head", text + b"\0" + f32_file(head, {"class_names": names}))
    write("adapter", "head_without_classes", text + b"\0" + f32_file(
        {"head.weight": [0, 8], "head.bias": [0]}, {"class_names": "[]"}))
    write("adapter", "head_names_deep", text + b"\0" + f32_file(head, {"class_names": "[" * 4000}))
    for mode in ("replace", "accumulate", "", "remove"):
        for shape in ([3, 8], [2, 3, 8], [0, 8], [2, 0, 8], [8]):
            name = "prompts_" + "_".join(map(str, [mode or "none", *shape]))
            write("adapter", name, text + b"\0" + f32_file({"prompts": shape}, {"mode": mode}))


# ---- MATLAB files


def element(kind, data, pad=True):
    padding = bytes(-len(data) % 8) if pad else b""
    return struct.pack("<II", kind, len(data)) + data + padding


def matrix(name, values, dims=None, kind=2, code="B"):
    dims = [1, len(values)] if dims is None else dims
    return element(14, element(6, struct.pack("<II", 9, 0)) + element(5, struct.pack(f"<{len(dims)}i", *dims))
                   + element(1, name) + element(kind, struct.pack(f"<{len(values)}{code}", *values)))


def mat():
    start = b"MATLAB 5.0 MAT-file".ljust(124) + b"\0\1IM"
    ids = [(b"trnid", [1, 2, 3]), (b"valid", [4]), (b"tstid", [5, 6])]
    splits = b"".join(matrix(name, values) for name, values in ids)
    labels = matrix(b"labels", list(range(1, 103)))
    damaged("mat", "labels", start + labels)
    damaged("mat", "splits", start + splits)
    zipped = b"".join(element(15, zlib.compress(matrix(*part)), pad=False) for part in ids)
    damaged("mat", "splits_zipped", start + zipped)
    for path in sorted((FIXTURES / "images" / "mat").iterdir()):
        if path.stat().st_size <= LARGEST:
            damaged("mat", path.stem, path.read_bytes())
    for kind, code in ((1, "b"), (3, "h"), (4, "H"), (5, "i"), (6, "I"), (7, "f"), (9, "d"), (12, "q"), (13, "Q")):
        write("mat", f"type_{kind}", start + matrix(b"labels", [1, 2, 102], kind=kind, code=code))
    for name, value in (("nan", float("nan")), ("infinity", float("inf")), ("minus", -1.0), ("half", 1.5),
                        ("zero", 0.0), ("large", 1e300)):
        write("mat", f"label_{name}", start + matrix(b"labels", [1.0, value], kind=9, code="d"))
    swapped = b"MATLAB".ljust(124) + b"\1\0MI"
    write("mat", "big_endian_claimed", swapped + labels)
    write("mat", "dims_overflow", start + matrix(b"labels", [1, 2], dims=[2**31 - 1] * 40))
    write("mat", "dims_minus", start + matrix(b"labels", [1], dims=[-1, -1]))
    write("mat", "dims_none", start + matrix(b"labels", [1], dims=[]))
    write("mat", "length_all_ones", start + struct.pack("<II", 14, 2**32 - 1) + bytes(8))
    write("mat", "small_too_long", start + struct.pack("<HH", 14, 9) + bytes(4))
    write("mat", "tag_cut", start + b"\x0e\0")
    write("mat", "zip_empty", start + element(15, zlib.compress(b""), pad=False))
    write("mat", "zip_no_data", start + element(15, b"", pad=False))
    write("mat", "zip_in_zip", start + element(15, zlib.compress(element(15, zlib.compress(labels))), pad=False))
    bomb = zlib.compress(bytes(8 << 20), 9)
    write("mat", "zip_bomb", start + element(15, bomb, pad=False))
    part = element(15, zlib.compress(matrix(b"padding", bytes(1 << 20)), 9), pad=False)
    write("mat", "zip_bomb_in_parts", start + part * 12)
    write("mat", "empty", b"")
    write("mat", "start_alone", start)


# ---- lists of photos, zero, names of classes or groups


def lists():
    table = b"file_name,label,split,group\n0.jpg,rose,train,1\n1.jpg,tulip,train,2\n2.jpg,rose,val,3\n3.jpg,tulip,test,3\n"
    names = json.dumps({"rose": "dog rose", "tulip": "garden tulip"}).encode()
    damaged("list", "table", table + b"\0" + names)
    damaged("list", "windows", b"\xef\xbb\xbf" + table.replace(b"\n", b"\r\n").replace(b",", b";") + b"\0a rose\nb tulip")
    damaged("list", "drawn", b"path\tlabel\r" + b"".join(b"%d\t%s\r" % (i, b"ab"[i % 2 :][:1]) for i in range(12)))
    lines = b"".join(b'{"file_name": "%d.jpg", "label": %d}\n' % (i, i % 3) for i in range(9))
    damaged("list", "lines", lines + b'\0["zero", "one", "two"]')
    entries = {"train": [["0.jpg", 0, "rose"], ["1.jpg", 1, "tulip"]], "val": [["2.jpg", 0, "rose"]], "test": []}
    damaged("list", "coop", json.dumps(entries).encode())
    groups = b"path,group\n0.jpg,x\n1.jpg,x\n2.jpg,y\n"
    damaged("list", "groups", b"path,label\n0.jpg,a\n1.jpg,b\n2.jpg,a\n\0" + groups)
    write("list", "utf16", table.decode().encode("utf-16"))
    write("list", "latin1", "path,label\n0.jpg,caf\u00e9\n1.jpg,th\u00e9\n".encode("latin-1"))
    write("list", "quotes", b'path,label\n"0.jpg,a\n1.jpg,b\n')
    write("list", "control", b"path,label\n0.jpg,\x1b[2J\n1.jpg,a\x07b\n")
    write("list", "outside", b"path,label\n../../0.jpg,a\n/etc/1.jpg,b\n0.jpg,a\n")
    write("list", "same_twice", b"path,label,split\n0.jpg,a,train\n0.jpg,b,test\n")
    write("list", "deep", b'{"train":' + b"[" * 5000 + b"]" * 5000 + b"}")
    write("list", "wide", b"path,label," + b"x," * 4000 + b"\n0.jpg,a," + b"1," * 4000)
    write("list", "empty", b"")


# ---- image caches


def cache_file(header, pixels, pixel_bytes=None, header_bytes=None, version=3):
    text = header if isinstance(header, bytes) else json.dumps(header, separators=(",", ":")).encode()
    pixel_bytes = len(pixels) if pixel_bytes is None else pixel_bytes
    header_bytes = len(text) if header_bytes is None else header_bytes
    start = b"CLIPPIX\n" + struct.pack("<IIQQ", version, 0, pixel_bytes, header_bytes)
    return start + hashlib.sha256(text).digest() + pixels + text


def cache():
    header = {
        "fingerprint": "0" * 64,
        "preprocess": {"resize": {"ShortSide": 4}, "crop": 4, "mean": [0.5] * 3, "std": [0.25] * 3, "orientation": "exif"},
        "dtype": "u8", "class_names": ["rose", "tulip"], "root": "photos", "counts": [2, 1, 1],
        "labels": [0, 1, 0, 1], "files": ["a.jpg", "b.jpg", "c.jpg", "d.jpg"], "rows": [0, 1, 2, 3],
        "skipped": [{"file": "e.jpg", "reason": "the file is empty"}], "photos": "0" * 64,
        "duplicates": {
            "splits": [{"photos": 1, "example": ["a.jpg", "c.jpg"]}, None, None],
            "classes": {"photos": 2, "example": ["a.jpg", "b.jpg"]},
        },
        "sixteen_bit": {"count": 1, "first": "photos/a.jpg", "largest": 4095},
    }
    pixels = bytes(i * 7 % 256 for i in range(4 * 48))
    damaged("cache", "u8", cache_file(header, pixels))
    for dtype, size in (("f16", 2), ("f32", 4)):
        damaged("cache", dtype, cache_file(header | {"dtype": dtype}, pixels * size))
    changes = {
        "no_image": {"counts": [0, 0, 0], "labels": [], "files": [], "rows": []},
        "counts_overflow": {"counts": [2**63, 2**63, 4]}, "counts_lie": {"counts": [4, 0, 1]},
        "counts_minus": {"counts": [-1, 4, 1]}, "label_unknown": {"labels": [0, 1, 0, 2]},
        "label_2_32": {"labels": [0, 1, 0, 2**32]}, "row_past_end": {"rows": [0, 1, 2, 4]},
        "row_2_64": {"rows": [0, 1, 2, 2**64 - 1]}, "row_2_58": {"rows": [0, 1, 2, 2**58]},
        "rows_equal": {"rows": [0, 0, 0, 0]}, "rows_short": {"rows": [0]}, "files_short": {"files": []},
        "dtype_f64": {"dtype": "f64"}, "no_classes": {"class_names": []}, "file_absolute": {"root": "/"},
        "crop_0": {"preprocess": header["preprocess"] | {"crop": 0}},
        "crop_over_side": {"preprocess": header["preprocess"] | {"crop": 5}},
        "crop_2_63": {"preprocess": header["preprocess"] | {"crop": 2**63, "resize": {"Square": 2**63}}},
        "std_0": {"preprocess": header["preprocess"] | {"std": [0.0, -0.0, 1e-45]}},
        "std_large": {"preprocess": header["preprocess"] | {"std": [3e38] * 3, "mean": [-3e38] * 3}},
        "std_null": {"preprocess": header["preprocess"] | {"std": [None] * 3}},
    }
    for name, change in changes.items():
        for dtype in ("u8", "f32"):
            size = 4 if dtype == "f32" else 1
            write("cache", f"{name}_{dtype}", cache_file(header | {"dtype": dtype} | change, pixels * size))
    write("cache", "header_deep", cache_file(b"[" * 9000, pixels))
    write("cache", "header_empty", cache_file(b"", pixels))
    write("cache", "pixels_2_64", cache_file(header, pixels, pixel_bytes=2**64 - 1))
    write("cache", "pixels_wrap", cache_file(header, pixels, pixel_bytes=2**64 - 64, header_bytes=64))
    write("cache", "header_2_63", cache_file(header, pixels, header_bytes=2**63))
    write("cache", "version_1", cache_file(header, pixels, version=1))
    write("cache", "empty", b"")
    write("cache", "start_alone", cache_file(b"", b"")[:63])


# ---- images


def png(width, height, data, depth=8, colour=2, extra=b"", interlace=0):
    def chunk(kind, body):
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    head = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, interlace)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + extra + chunk(b"IDAT", zlib.compress(data, 9)) + chunk(b"IEND", b"")


def tiff(entries, data=b"", first=8):
    """Little endian, one directory of (tag, type, count, value); offsets in it count from the file's start."""
    body = struct.pack("<H", len(entries))
    body += b"".join(struct.pack("<HHII", *entry) for entry in sorted(entries)) + struct.pack("<I", 0)
    return b"II*\0" + struct.pack("<I", first) + body + data


def tiff_of(width, height, data, **changes):
    tags = {"width": (256, 4, 1, width), "height": (257, 4, 1, height), "bits": (258, 3, 1, 8),
            "compression": (259, 3, 1, 1), "kind": (262, 3, 1, 1), "samples": (277, 3, 1, 1),
            "rows": (278, 4, 1, height), "length": (279, 4, 1, len(data))}
    count = len(tags) + 1
    tags["offset"] = (273, 4, 1, 8 + 2 + 12 * count + 4)
    return tiff(list((tags | changes).values()), data)


def gif(width, height, blocks):
    return b"GIF89a" + struct.pack("<HHBBB", width, height, 0x80, 0, 0) + bytes(6) + blocks + b";"


def gif_frame(left, top, width, height, data=b"\x02\x02\x4c\x01\0"):
    return b"," + struct.pack("<HHHHB", left, top, width, height, 0) + data


def bmp(width, height, bits, data, compression=0, colours=0):
    head = struct.pack("<IiiHHIIiiII", 40, width, height, 1, bits, compression, len(data), 0, 0, colours, 0)
    return b"BM" + struct.pack("<IHHI", 54 + len(data), 0, 0, 54) + head + data


def riff(kind, body):
    chunk = kind + struct.pack("<I", len(body)) + body + bytes(len(body) % 2)
    return b"RIFF" + struct.pack("<I", 4 + len(chunk)) + b"WEBP" + chunk


def vp8l(width, height, rest):
    return riff(b"VP8L", b"\x2f" + struct.pack("<I", (width - 1) | (height - 1) << 14) + rest)


def jpeg_with_size(data, width, height):
    at = next(i for i in range(len(data)) if data[i] == 0xFF and data[i + 1] in (0xC0, 0xC1, 0xC2))
    return data[: at + 5] + struct.pack(">HH", height, width) + data[at + 9 :]


def orientations(jpeg):
    """EXIF data that mislead, in a JPEG, a PNG and a WebP."""
    def exif(entries, first=8, order="<", count=None):
        start = b"II*\0" if order == "<" else b"MM\0*"
        body = b"".join(struct.pack(f"{order}HHIHH", *entry, 0) for entry in entries)
        return start + struct.pack(f"{order}IH", first, len(entries) if count is None else count) + body

    tag = (0x112, 3, 1, 6)
    for name, data in {
        "other_order": exif([tag], order=">"), "type_long": exif([(0x112, 4, 1, 6)]), "two_values": exif([(0x112, 3, 2, 6)]),
        "0": exif([(0x112, 3, 1, 0)]), "65535": exif([(0x112, 3, 1, 65535)]), "twice": exif([tag, (0x112, 3, 1, 3)]),
        "list_past_end": exif([tag], first=2**32 - 1), "list_at_0": exif([tag], first=0), "many": exif([], count=65535),
        "cut": exif([tag])[:-6], "start_alone": b"II*\0", "empty": b"", "named_often": b"Exif\0\0" * 900 + exif([tag]),
    }.items():
        named = b"Exif\0\0" + data
        segment = b"\xff\xe1" + struct.pack(">H", len(named) + 2) + named
        write("image", f"exif_{name}.jpg", jpeg[:2] + segment + jpeg[2:])
        chunk = struct.pack(">I", len(data)) + b"eXIf" + data + struct.pack(">I", zlib.crc32(b"eXIf" + data))
        write("image", f"exif_{name}.png", png(3, 2, bytes(20), extra=chunk))
    write("image", "exif_past_end.png", png(3, 2, bytes(20)) + struct.pack(">I", 2**32 - 1) + b"eXIf")
    write("image", "exif_chunk_of_2_32.png", png(3, 2, bytes(20), extra=struct.pack(">I", 2**32 - 1) + b"abcd"))


def tiffs():
    """Of what the crate does not interpret."""
    photos = FIXTURES / "images" / "photos"
    write("image", "tiff_no_kind.tif", tiff_of(4, 4, bytes(16), kind=(263, 3, 1, 1)))
    write("image", "tiff_kind_of_two.tif", tiff_of(4, 4, bytes(16), kind=(262, 3, 2, 1)))
    write("image", "tiff_kind_65535.tif", tiff_of(4, 4, bytes(16), kind=(262, 3, 1, 65535)))
    write("image", "tiff_palette_short.tif", tiff_of(4, 4, bytes(16), kind=(262, 3, 1, 3), colours=(320, 3, 2, 0)))
    write("image", "tiff_palette_of_2_29.tif", tiff_of(4, 4, bytes(16), kind=(262, 3, 1, 3), colours=(320, 3, 2**29, 8)))
    for bits in (1, 2, 4, 12, 16, 32, 64):
        write("image", f"tiff_bits_{bits}.tif", tiff_of(5, 4, b"\xa5" * 160, bits=(258, 3, 1, bits)))
        write("image", f"tiff_float_{bits}.tif", tiff_of(5, 4, b"\x42" * 160, bits=(258, 3, 1, bits), form=(339, 3, 1, 3)))
    for samples in (2, 3, 4, 5, 6, 7):
        for kind in (0, 1, 2, 3, 5):
            write("image", f"tiff_{samples}_of_{kind}.tif", tiff_of(3, 3, b"\x77" * 63, samples=(277, 3, 1, samples),
                  kind=(262, 3, 1, kind), extra=(338, 3, 1, samples % 3)))
    jpeg = (photos / "jpeg.tif").read_bytes()
    at = jpeg.index(struct.pack("<HHI", 278, 3, 1)) + 8
    write("image", "tiff_jpeg_other_rows.tif", jpeg[:at] + struct.pack("<H", 7) + jpeg[at + 2 :])
    for name, change in {
        "tiles_2_31": {"tile_width": (322, 4, 1, 2**31), "tile_height": (323, 4, 1, 2**31)},
        "tiles_1": {"tile_width": (322, 4, 1, 1), "tile_height": (323, 4, 1, 1)},
        "rows_2_32": {"rows": (278, 4, 1, 2**32 - 1)}, "ycbcr": {"kind": (262, 3, 1, 6), "samples": (277, 3, 1, 3)},
        "tables_1": {"tables": (347, 7, 1, 0)}, "tables_past_end": {"tables": (347, 7, 999, 8)},
    }.items():
        grey = (photos / "grey.jpg").read_bytes()
        write("image", f"tiff_jpeg_{name}.tif", tiff_of(61, 47, grey, compression=(259, 3, 1, 7), **change))
    write("image", "bigtiff_list_2_63.tif", b"II\x2b\0\x08\0\0\0" + struct.pack("<QQ", 2**63, 1))
    write("image", "bigtiff_entries_2_63.tif", b"II\x2b\0\x08\0\0\0" + struct.pack("<QQ", 16, 2**63) + bytes(400))


def image():
    photos = FIXTURES / "images" / "photos"
    for path in sorted(photos.iterdir()):
        if path.stat().st_size <= LARGEST:
            write("image", path.name, path.read_bytes())
    for name in ("base_420_q60.jpg", "prog_420.jpg", "cmyk.jpg", "restart_420.jpg", "palette_8.png", "rgba_16.png",
                 "lossy.webp", "lossless.webp", "lossy_alpha.webp", "frames.webp", "frames.gif", "rgb_lzw.tif",
                 "palette.bmp", "turned_5.png", "turned_late.png", "turned_5.webp", "turned_6.jpg", "turned_6.tif",
                 "frame_inside.gif", "bits_555.bmp", "big.tif", "jpeg.tif", "palette_4.tif", "planes.tif", "float.tif",
                 "finer_mixed.jpg", "finer_adobe.jpg", "lab_lzw.tif"):
        data = (photos / name).read_bytes()
        if len(data) <= LARGEST:
            damaged("image", name, data)
    base, progressive = ((photos / name).read_bytes() for name in ("base_444_q60.jpg", "prog_420.jpg"))
    for name, data in (("base", base), ("prog", progressive)):
        for width, height in ((65535, 65535), (65500, 2700), (4096, 4096), (0, 16), (16, 0), (1, 65500)):
            write("image", f"{name}_{width}x{height}.jpg", jpeg_with_size(data, width, height))
    scan = progressive.rindex(b"\xff\xda")
    write("image", "prog_many_scans.jpg", progressive[:scan] + progressive[scan:-2] * 600 + b"\xff\xd9"
          if len(progressive[scan:]) * 600 < LARGEST else progressive[:scan] + progressive[scan : scan + 10] * 1500)
    write("image", "start_alone.jpg", b"\xff\xd8\xff")
    write("image", "ends_at_once.jpg", b"\xff\xd8\xff\xd9")
    write("image", "segment_of_0.jpg", b"\xff\xd8\xff\xe0\0\0" + base[4:])
    write("image", "no_tables.jpg", base[:2] + base[base.index(b"\xff\xc0") :])
    write("image", "png_65535x65535.png", png(65535, 65535, bytes(1 << 16)))
    write("image", "png_2_31.png", png(2**31 - 1, 2**31 - 1, b""))
    write("image", "png_0x0.png", png(0, 0, b""))
    write("image", "png_tall.png", png(1, 178_000_000, bytes(1 << 20), 1, 0))
    write("image", "png_wide.png", png(178_000_000, 1, bytes(1 << 20), 1, 0))
    write("image", "png_one_colour.png", png(3000, 3000, bytes(376 * 3000), 1, 0))
    write("image", "png_too_little.png", png(64, 64, bytes(10)))
    write("image", "png_too_much.png", png(1, 1, bytes(1 << 22)))
    write("image", "png_interlaced.png", png(9, 9, bytes(9 * 28 + 100), interlace=1))
    write("image", "png_no_palette.png", png(4, 4, bytes(20), 8, 3))
    write("image", "png_depth_3.png", png(4, 4, bytes(60), 3, 2))
    text = b"Comment\0\0" + zlib.compress(bytes(8 << 20), 9)
    write("image", "png_text_bomb.png", png(1, 1, bytes(4), extra=struct.pack(">I", len(text)) + b"zTXt" + text
          + struct.pack(">I", zlib.crc32(b"zTXt" + text))))
    profile = b"icc\0\0" + zlib.compress(bytes(8 << 20), 9)
    write("image", "png_profile_bomb.png", png(1, 1, bytes(4), extra=struct.pack(">I", len(profile)) + b"iCCP"
          + profile + struct.pack(">I", zlib.crc32(b"iCCP" + profile))))
    orientations(base)
    write("image", "gif_no_frame.gif", gif(4, 4, b""))
    write("image", "gif_65535.gif", gif(65535, 65535, gif_frame(0, 0, 1, 1)))
    write("image", "gif_frame_outside.gif", gif(4, 4, gif_frame(65535, 65535, 65535, 65535)))
    write("image", "gif_frame_0.gif", gif(4, 4, gif_frame(0, 0, 0, 0)))
    write("image", "gif_screen_0.gif", gif(0, 0, gif_frame(0, 0, 1, 1)))
    write("image", "gif_many_frames.gif", gif(4, 4, gif_frame(0, 0, 4, 4) * 900))
    write("image", "gif_extension_open.gif", gif(4, 4, b"!\xfe" + b"\xff" + bytes(255)))
    write("image", "bmp_2_31.bmp", bmp(2**31 - 1, -(2**31), 24, bytes(12)))
    write("image", "bmp_minus_width.bmp", bmp(-4, 4, 24, bytes(48)))
    write("image", "bmp_tall.bmp", bmp(1, 10_000_000, 1, bytes(64)))
    write("image", "bmp_4096.bmp", bmp(4096, 4096, 24, bytes(64)))
    write("image", "bmp_rle.bmp", bmp(16, 16, 8, b"\0\2\xff\xff" * 100 + b"\xff\x01" * 100 + b"\0\1", 1, 2))
    write("image", "bmp_rle_4096.bmp", bmp(4096, 4096, 8, b"\0\1", 1, 1))
    write("image", "bmp_colours_2_32.bmp", bmp(4, 4, 8, bytes(64), 0, 2**32 - 1))
    write("image", "bmp_bits_0.bmp", bmp(4, 4, 0, bytes(64)))
    write("image", "tiff_whole.tif", tiff_of(4, 4, bytes(16)))
    write("image", "tiff_directory_loop.tif", tiff([(256, 4, 1, 4)])[:-4] + struct.pack("<I", 8))
    write("image", "tiff_directory_in_header.tif", tiff([], first=0))
    write("image", "tiff_directory_past_end.tif", tiff([], first=2**32 - 1))
    write("image", "tiff_2_32.tif", tiff_of(2**32 - 1, 2**32 - 1, bytes(16)))
    write("image", "tiff_4096.tif", tiff_of(4096, 4096, bytes(16)))
    write("image", "tiff_strip_itself.tif", tiff_of(4, 4, bytes(16), offset=(273, 4, 1, 0)))
    write("image", "tiff_strips_2_31.tif", tiff_of(4, 4, bytes(16), offset=(273, 4, 2**31, 8), length=(279, 4, 2**31, 8)))
    write("image", "tiff_rows_0.tif", tiff_of(4, 4, bytes(16), rows=(278, 4, 1, 0)))
    write("image", "tiff_samples_65535.tif", tiff_of(4, 4, bytes(16), samples=(277, 3, 1, 65535)))
    write("image", "tiff_tag_of_many_values.tif", tiff_of(4, 4, bytes(16), bits=(258, 3, 2**23 - 8, 8)))
    write("image", "tiff_tiles.tif", tiff_of(64, 64, bytes(64), tile_width=(322, 4, 1, 2**31), tile_height=(323, 4, 1, 2**31)))
    bomb = zlib.compress(bytes(4 << 20), 9)
    write("image", "tiff_zip_bomb.tif", tiff_of(16, 16, bomb, compression=(259, 3, 1, 8)))
    write("image", "tiff_packed.tif", tiff_of(256, 256, b"\x81\0" * 512, compression=(259, 3, 1, 32773)))
    write("image", "webp_16384.webp", vp8l(16384, 16384, bytes(64)))
    write("image", "webp_16383x1024.webp", vp8l(16383, 1024, bytes(64)))
    write("image", "webp_all_ones.webp", vp8l(64, 64, b"\xff" * 256))
    write("image", "webp_chunk_too_long.webp", b"RIFF\x10\0\0\0WEBPVP8 \xff\xff\xff\xff")
    write("image", "webp_lossy_16383.webp", riff(b"VP8 ", b"\x10\0\0\x9d\x01\x2a\xff\x3f\xff\x3f" + bytes(64)))
    write("image", "webp_extended_2_24.webp", riff(b"VP8X", b"\x12\0\0\0" + b"\xff" * 6))
    tiffs()
    write("image", "empty", b"")
    write("image", "text", b"these are not the pixels you are looking for")


# ---- a tokenizer: tokenizer.json, zero, preprocessor_config.json


def tokenizer():
    whole = json.loads((ROOT / "assets" / "demo-clip" / "tokenizer.json").read_text("utf-8"))
    small = json.loads(json.dumps(whole))
    words = ["a", "b", "a</w>", "b</w>", "ab</w>", " ", "<|startoftext|>", "<|endoftext|>"]
    small["model"]["vocab"] = {word: i for i, word in enumerate(words)}
    small["model"]["merges"] = [["a", "b</w>"]]
    for added, i in zip(small["added_tokens"], (6, 7)):
        added["id"] = i
    small["post_processor"]["cls"][1], small["post_processor"]["sep"][1] = 6, 7
    settings = (ROOT / "assets" / "demo-clip" / "preprocessor_config.json").read_bytes()

    def text(value):
        return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode()

    damaged("tokenizer", "demo", text(whole))
    damaged("tokenizer", "small", text(small) + b"\0" + settings)

    def changed(name, **parts):
        write("tokenizer", name, text(small | parts))

    def sequence(steps):
        return {"type": "Sequence", "normalizers": steps}

    grow = {"type": "Replace", "pattern": {"String": "a"}, "content": "aaaaaaaa"}
    changed("grows_8_to_the_9", normalizer=sequence([grow] * 9))
    changed("grows_from_nothing", normalizer=sequence([grow | {"pattern": {"Regex": ""}, "content": "b"}] * 30))
    changed("grows_once", normalizer=grow)
    byte_level = {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": False}
    changed("grows_by_bytes", pre_tokenizer={"type": "Sequence", "pretokenizers": [byte_level] * 40})
    for name, pattern in {
        "backtracks": r"(?=(a+)+$)(a+)+b\1", "look_around": r"(?<=a)(?=b)", "open": "((((", "nothing": "",
        "large": "((a{999}){999}){999}", "counted": "(?=a{9999})", "nested": "(" * 100 + ")" * 100,
        "long": "(a|b)" * 200, "reference": r"(a)\9", "repeats_nothing": "(?:)*", "set": r"[\p{L}&&[^a-z]]",
    }.items():
        split = {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Removed", "invert": True}
        changed(f"pattern_{name}", pre_tokenizer=split)
    changed("no_normalizer", normalizer=None, pre_tokenizer=None, decoder=None)
    changed("no_frame", post_processor=None)
    changed("frame_unknown", post_processor=small["post_processor"] | {"sep": ["<|endoftext|>", 2**32 - 1]})
    template = {"type": "TemplateProcessing", "single": [{"SpecialToken": {"id": "x", "type_id": 0}}] * 2,
                "pair": [], "special_tokens": {"x": {"id": "x", "ids": [6], "tokens": ["x"]}}}
    changed("template", post_processor=template)
    changed("template_unknown", post_processor=template | {"special_tokens": {}})
    changed("template_many", post_processor=template | {"special_tokens": {"x": {"id": "x", "ids": [6] * 99, "tokens": ["x"] * 99}}})
    changed("precompiled", normalizer={"type": "Precompiled", "precompiled_charsmap": "/////w=="})
    changed("metaspace", pre_tokenizer={"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "split": True})
    changed("unigram", model={"type": "Unigram", "unk_id": 9, "vocab": [["a", -1.0]], "byte_fallback": True})
    changed("unigram_empty", model={"type": "Unigram", "unk_id": None, "vocab": []})
    changed("word_piece", model={"type": "WordPiece", "unk_token": "no", "continuing_subword_prefix": "##",
                                 "max_input_chars_per_word": 10, "vocab": {"a": 0}})
    changed("word_level", model={"type": "WordLevel", "vocab": {}, "unk_token": "none"})
    model = small["model"]
    changed("merge_unknown", model=model | {"merges": [["z", "z"]]})
    changed("merge_one_word", model=model | {"merges": ["a"]})
    changed("ids_equal", model=model | {"vocab": {word: 0 for word in words}})
    changed("id_2_32", model=model | {"vocab": model["vocab"] | {"a</w>": 2**32 - 1}})
    changed("unk_missing", model=model | {"unk_token": "none", "fuse_unk": True, "byte_fallback": True})
    changed("dropout", model=model | {"dropout": 2.0})
    changed("suffix_long", model=model | {"end_of_word_suffix": "w" * 999, "continuing_subword_prefix": "é"})
    changed("added_empty", added_tokens=[small["added_tokens"][0] | {"content": ""}])
    changed("added_twice", added_tokens=small["added_tokens"] * 2)
    changed("truncated", truncation={"max_length": 0, "stride": 9, "strategy": "LongestFirst", "direction": "Left"})
    changed("padded", padding={"strategy": {"Fixed": 10**9}, "direction": "Right", "pad_to_multiple_of": 0,
                               "pad_id": 0, "pad_type_id": 0, "pad_token": "x"})
    write("tokenizer", "deep", b'{"normalizer":' + b'{"type":"Sequence","normalizers":[' * 400)
    write("tokenizer", "deep_list", b"[" * 15000)
    write("tokenizer", "empty", b"")
    for name, value in {
        "size_0": {"size": 0}, "size_2_63": {"size": 2**63}, "edge": {"size": {"shortest_edge": 32}, "crop_size": 32},
        "square": {"size": {"height": 32, "width": 32}, "do_center_crop": False}, "crop_over": {"size": 16, "crop_size": 32},
        "large": {"size": 4096, "crop_size": 32}, "std_0": {"size": 32, "crop_size": 32, "image_std": [0, 0, 0]},
        "std_tiny": {"size": 32, "crop_size": 32, "image_std": [1e-44] * 3, "image_mean": [3e38] * 3},
        "mean_large": {"size": 32, "crop_size": 32, "image_mean": [1e39] * 3}, "rescale": {"rescale_factor": 1e308},
        "object": {"size": {}}, "list": {"size": [32, 32]}, "resample": {"resample": 2},
    }.items():
        write("tokenizer", f"settings_{name}", b"{}\0" + json.dumps(value).encode())
    write("tokenizer", "settings_deep", b"{}\0" + b"[" * 9000)


# ---- a run: config.toml, zero, state.safetensors


def run():
    config = """demo = true
recipe = "lora"
method = "lora"
rank = 8
alpha = 16.0
targets = ["q_proj", "v_proj"]
epochs = 3
batch-size = 4
seed = 42
lr-head = 0.001
early-stop = 3
device = "cpu"
templates = ["a photo of a {}"]
"""
    state = f32_file({"head.weight.value": [3, 8], "head.bias.value": [3], "optimizer.control": [4]},
                     {"progress": json.dumps({"epoch": 1})})
    damaged("run", "whole", config.encode() + b"\0" + state)
    for name, line in {
        "nan": "lr-head = nan", "infinity": "alpha = inf", "minus_zero": "margin = -0.0", "rank_0": "rank = 0",
        "rank_2_63": "rank = 9223372036854775807", "batch_2_63": "batch-size = 9223372036854775807",
        "seed_minus": "seed = -1", "epochs_2_32": "epochs = 4294967295", "early_off": 'early-stop = "off"',
        "early_minus": "early-stop = -1", "early_list": "early-stop = [1]", "unknown": "surplus = 1",
        "targets_none": "targets = []", "targets_twice": 'targets = ["q_proj", "q_proj"]',
        "template_none": "templates = []", "template_plain": 'templates = ["\\u001b[2J"]', "shots_0": "shots = 0",
        "data_path": 'data = "/dev/zero"', "prompts": 'method = "vpt"\nprompt-count = 1000000',
        "mixup": "mixup = 1e308", "triplet": "triplet = 1.5", "warmup": "warmup = 9223372036854775807",
        "delta": "early-stop-min-delta = 1e308",
    }.items():
        key = line.split(" = ")[0]
        kept = "".join(l + "\n" for l in config.splitlines() if l.split(" = ")[0] != key and l.split(" = ")[0] != line.split("\n")[0].split(" = ")[0])
        write("run", f"config_{name}", (kept + line + "\n").encode())
    write("run", "deep_list", b"templates = " + b"[" * 9000)
    write("run", "deep_table", b"a = " + b"{a = " * 3000)
    write("run", "deep_key", b"a" + b".a" * 5000 + b" = 1")
    write("run", "many_tables", b"".join(b"[t%d]\n" % i for i in range(1500)))
    write("run", "array_of_tables", b"[[a]]\n" * 2500)
    write("run", "open_text", b'device = """' + b"x" * 100)
    write("run", "empty", b"")
    for name, data in misleading_safetensors():
        write("run", f"state_{name}", config.encode() + b"\0" + data)


if __name__ == "__main__":
    for part in (checkpoint, adapter, mat, lists, cache, image, tokenizer, run):
        part()
    for folder in sorted(CORPUS.iterdir()):
        files = list(folder.iterdir())
        print(f"{folder.name}: {len(files)} files, {sum(f.stat().st_size for f in files)} bytes")
