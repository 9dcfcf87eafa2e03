"""Writes tests/fixtures/images: small image files of every kind, and what Pillow and the Hugging Face
CLIP processor make of them.

  photos/*            the files
  mat/*               small forms of Flowers-102's label and split files
  decoded.safetensors what the processor makes of Pillow's exif_transpose(Image.open(file)) before it resizes, u8
                      [H,W,3], one tensor per file; where that turns, "NAME as stored" is without. 16-bit grey that
                      does not fit 8 bits is its upper 8, where Pillow clips
  lab.sha256          of the RGB of all 2^24 L*a*b* of 8 bits: L slowest, b fastest, a and b with 128 added
  resize.json         width, height, size and the SHA-256 of Pillow's bicubic short-side resize and
                      centre crop of the pattern below, u8 [S,S,3]
  pixels.safetensors  for a few small cases the crop itself, u8 [S,S,3], and the processor's f32 [3,S,S]

Needs Pillow, numpy, scipy, safetensors and transformers. Run from the repository root:
  python tools/make_image_fixtures.py
"""
import hashlib
import json
import os
import pathlib

os.environ["HF_HUB_OFFLINE"] = "1"
import numpy as np
import PIL
from PIL import Image, ImageOps, TiffImagePlugin
from safetensors.numpy import save_file

OUT = pathlib.Path("tests/fixtures/images")

# width, height, size: down, up, equal on one side, odd, extreme aspect ratios, sides of one pixel.
RESIZE = [
    (500, 667, 224), (333, 501, 224), (667, 500, 224), (224, 1000, 224), (100, 80, 224), (224, 224, 224),
    (225, 224, 224), (224, 225, 224), (223, 225, 224), (1023, 769, 224), (17, 640, 32), (640, 17, 32),
    (1, 1, 16), (1, 40, 16), (40, 1, 16), (2, 3, 32), (61, 47, 32), (47, 61, 32), (33, 32, 32), (32, 33, 32),
    (31, 32, 32), (300, 301, 7), (301, 300, 1), (640, 480, 336), (65, 64, 63), (3000, 20, 8), (20, 3000, 8), (20, 3000, 32),
    (300, 600, 64), (300, 601, 64), (300, 610, 64), (250, 900, 64),
]
SMALL = [(61, 47, 32), (47, 61, 32), (2, 3, 32), (100, 80, 32), (224, 250, 24)]


def pattern(width, height):
    """A pattern of integers that the Rust test makes too: noise, hard edges, saturated blocks."""
    y, x = np.mgrid[0:height, 0:width].astype(np.uint64)
    planes = []
    for c in range(3):
        with np.errstate(over="ignore"):
            h = (x * np.uint64(0x9E3779B1) + y * np.uint64(0x85EBCA77) + np.uint64(c * 0xC2B2AE3D)) & np.uint64(0xFFFFFFFF)
            h = ((h ^ (h >> np.uint64(15))) * np.uint64(0x2C1B3C6D)) & np.uint64(0xFFFFFFFF)
            h = (h ^ (h >> np.uint64(13))) & np.uint64(255)
        block = (x // np.uint64(13) + y // np.uint64(17) + np.uint64(c)) % np.uint64(4)
        ramp = (x * np.uint64(3) + y * np.uint64(2) + np.uint64(40 * c)) % np.uint64(256)
        planes.append(np.select([block == 0, block == 1, block == 2], [h, ramp, np.uint64(255) * (h & np.uint64(1))], 0))
    return np.stack(planes, -1).astype(np.uint8)


def crop(image, size):
    """Short side to `size`, the long one truncated, then the middle."""
    w, h = image.size
    tw, th = (size, int(size * h / w)) if w <= h else (int(size * w / h), size)
    image = image.resize((tw, th), Image.BICUBIC)
    left, top = (tw - size) // 2, (th - size) // 2
    return np.asarray(image.crop((left, top, left + size, top + size)))


def natural(width, height):
    """Something like a photo: smooth, a few edges, little noise."""
    y, x = np.mgrid[0:height, 0:width].astype(np.float64)
    r = np.random.default_rng(width * 1000 + height)
    a = np.stack([127 + 100 * np.sin(x / (5 + 3 * c) + y / (9 - 2 * c) + c) for c in range(3)], -1)
    a[(x - width / 2) ** 2 + (y - height / 2) ** 2 < (min(width, height) / 4) ** 2] = (230, 30, 120)
    a += r.normal(0, 6, a.shape)
    return np.clip(np.rint(a), 0, 255).astype(np.uint8)


def jpeg(width, height, factors):
    """A baseline JPEG of YCbCr with any (horizontal, vertical) sampling factors, by tables as plain as can be."""
    import struct

    from scipy.fft import dctn

    most_h, most_v = max(h for h, _ in factors), max(v for _, v in factors)
    across, down = -(-width // (8 * most_h)), -(-height // (8 * most_v))
    image = Image.fromarray(natural(across * 8 * most_h, down * 8 * most_v)).convert("YCbCr")
    planes = [np.asarray(image)[:: most_v // v, :: most_h // h, i] for i, (h, v) in enumerate(factors)]
    zigzag = sorted(np.ndindex(8, 8), key=lambda at: (sum(at), at[sum(at) % 2 == 0]))
    step, bits, last = 12, [], [0] * len(planes)

    def put(run, value, length):  # a code is its symbol
        size = abs(value).bit_length()
        code = f"{run << 4 | size:0{length}b}"
        bits.append(code + f"{value + (value < 0) * ((1 << size) - 1):0{size}b}" if size else code)

    for y, x in np.ndindex(down, across):
        for i, (h, v) in enumerate(factors):
            for row, column in np.ndindex(v, h):
                top, left = 8 * (y * v + row), 8 * (x * h + column)
                block = dctn(planes[i][top : top + 8, left : left + 8] - 128.0, norm="ortho") / step
                values = [int(np.rint(block[at])) for at in zigzag]
                put(0, values[0] - last[i], 4)
                last[i], run = values[0], 0
                for value in np.trim_zeros(values[1:], "b"):
                    while value and run > 15:
                        put(15, 0, 8)
                        run -= 16
                    if value:
                        put(run, value, 8)
                    run = 0 if value else run + 1
                if not any(values[63:]):
                    put(0, 0, 8)
    bits = "".join(bits)
    bits += "1" * (-len(bits) % 8)
    scan = int(bits, 2).to_bytes(len(bits) // 8, "big").replace(b"\xff", b"\xff\0")

    def segment(marker, data):
        return bytes([0xFF, marker]) + struct.pack(">H", len(data) + 2) + data

    parts = range(1, len(factors) + 1)
    frame = b"".join(bytes([i, h << 4 | v, 0]) for i, (h, v) in zip(parts, factors))
    counts = [bytes(n if length == i else 0 for i in range(1, 17)) for length, n in ((4, 12), (8, 251))]
    return (b"\xff\xd8" + segment(0xE0, b"JFIF\0\1\1\0\0\1\0\1\0\0") + segment(0xDB, bytes([0] + [step] * 64))
            + segment(0xC0, struct.pack(">BHHB", 8, height, width, len(factors)) + frame)
            + segment(0xC4, b"\x00" + counts[0] + bytes(range(12)) + b"\x10" + counts[1] + bytes(range(251)))
            + segment(0xDA, bytes([len(factors)]) + b"".join(bytes([i, 0]) for i in parts) + b"\0\x3f\0")
            + scan + b"\xff\xd9")


def write_photos():
    d = OUT / "photos"
    d.mkdir(parents=True, exist_ok=True)
    for old in d.iterdir():
        old.unlink()
    rgb = Image.fromarray(natural(61, 47))
    small = Image.fromarray(natural(21, 17))
    grey, cmyk = rgb.convert("L"), rgb.convert("CMYK")
    r = np.random.default_rng(7)

    # JPEG: every chroma layout, entropy coding and colour space a camera or an editor writes.
    for name, sub in [("444", 0), ("422", 1), ("420", 2)]:
        for q in (60, 95):
            rgb.save(d / f"base_{name}_q{q}.jpg", quality=q, subsampling=sub)
        rgb.save(d / f"prog_{name}.jpg", quality=85, subsampling=sub, progressive=True)
    # Without its last four scans, which refine the others.
    scans = (d / "prog_420.jpg").read_bytes().split(b"\xff\xda")
    (d / "prog_unrefined.jpg").write_bytes(b"\xff\xda".join(scans[:-4]) + b"\xff\xd9")
    rgb.save(d / "restart_420.jpg", quality=85, subsampling=2, restart_marker_blocks=2)
    rgb.save(d / "optimized_420.jpg", quality=90, subsampling=2, optimize=True)
    rgb.save(d / "kept_rgb.jpg", quality=90, keep_rgb=True)
    for w, h in [(1, 1), (2, 2), (3, 5), (16, 16), (17, 16), (33, 7)]:
        Image.fromarray(natural(w, h)).save(d / f"size_{w}x{h}.jpg", quality=88, subsampling=2)
    grey.save(d / "grey.jpg", quality=85)
    grey.save(d / "grey_prog.jpg", quality=85, progressive=True)
    cmyk.save(d / "cmyk.jpg", quality=90)
    # The same scan without Adobe's marker, and with the marker saying YCCK.
    data = (d / "cmyk.jpg").read_bytes()
    at = data.index(b"\xff\xee")
    length = int.from_bytes(data[at + 2 : at + 4], "big")
    assert data[at + 4 : at + 9] == b"Adobe" and data[at + 1 + length] == 0
    (d / "cmyk_no_adobe.jpg").write_bytes(data[:at] + data[at + 2 + length :])
    (d / "ycck.jpg").write_bytes(data[: at + 1 + length] + b"\2" + data[at + 2 + length :])
    # More samples of chroma than of luma: each of libjpeg-turbo's filters, for any of the parts.
    for name, factors in [("2x2", [(1, 1), (2, 2), (2, 2)]), ("2x1", [(1, 1), (2, 1), (2, 1)]), ("1x2", [(1, 1), (1, 2), (1, 2)]),
                          ("mixed", [(2, 1), (1, 2), (1, 1)]), ("4x1", [(1, 1), (4, 1), (2, 1)])]:
        (d / f"finer_{name}.jpg").write_bytes(jpeg(37, 29, factors))
    for w, h in [(1, 1), (4, 3), (5, 2)]:
        (d / f"finer_{w}x{h}.jpg").write_bytes(jpeg(w, h, [(1, 1), (2, 2), (1, 2)]))
    data = jpeg(13, 7, [(1, 1), (2, 2), (2, 2)])
    (d / "finer_adobe.jpg").write_bytes(data[:2] + b"\xff\xee\0\x0eAdobe\0\x64\0\0\0\0\1" + data[20:])
    exif = Image.Exif()
    exif[0x0112] = 6  # rotate by 90 degrees
    rgb.save(d / "exif_orientation.jpg", quality=85, exif=exif)

    # PNG: every colour type and depth.
    small.save(d / "rgb.png")
    small.convert("L").save(d / "grey.png")
    small.convert("1").save(d / "bits_1.png")
    small.quantize(200).save(d / "palette_8.png")
    small.quantize(13).save(d / "palette_4.png", bits=4)
    small.quantize(3).save(d / "palette_2.png", bits=2)
    small.quantize(2).save(d / "palette_1.png", bits=1)
    small.quantize(40).save(d / "palette_trns.png", transparency=3)
    small.quantize(40).save(d / "palette_trns_bytes.png", transparency=bytes(range(0, 240, 6)))
    alpha = Image.fromarray(r.integers(0, 256, (17, 21), dtype=np.uint8))
    hidden = alpha.point(lambda v: 0 if v < 128 else v)  # colours under full transparency stay
    rgba = small.copy()
    rgba.putalpha(hidden)
    rgba.save(d / "rgba.png")
    la = small.convert("L")
    la.putalpha(hidden)
    la.save(d / "la.png")
    small.save(d / "rgb_trns.png", transparency=tuple(np.asarray(small)[3, 4].tolist()))
    small.convert("L").save(d / "grey_trns.png", transparency=int(np.asarray(small.convert("L"))[3, 4]))
    sixteen = r.integers(0, 65536, (17, 21), dtype=np.uint16)
    sixteen[:5] //= 300  # some values below 256
    Image.fromarray(sixteen).save(d / "grey_16.png")
    write_png16(d / "rgb_16.png", r.integers(0, 65536, (17, 21, 3), dtype=np.uint16), 2)
    write_png16(d / "rgba_16.png", r.integers(0, 65536, (17, 21, 4), dtype=np.uint16), 6)
    write_png16(d / "la_16.png", r.integers(0, 65536, (17, 21, 2), dtype=np.uint16), 4)
    write_png_bits(d / "grey_2.png", r.integers(0, 4, (17, 21), dtype=np.uint8), 2)
    write_png_bits(d / "grey_4.png", r.integers(0, 16, (17, 21), dtype=np.uint8), 4)

    # WebP, BMP, GIF, TIFF.
    small.save(d / "lossless.webp", lossless=True)
    flipped = small.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    small.save(d / "frames.webp", lossless=True, save_all=True, append_images=[flipped])
    rgba.save(d / "lossless_alpha.webp", lossless=True, exact=True)
    rgb.save(d / "lossy.webp", quality=80)
    im = rgb.convert("RGBA")
    im.putalpha(Image.fromarray(natural(61, 47)).convert("L"))
    im.save(d / "lossy_alpha.webp", quality=80, exact=True)
    small.save(d / "rgb.bmp")
    small.convert("L").save(d / "grey.bmp")
    small.convert("1").save(d / "bits_1.bmp")
    small.quantize(100).save(d / "palette.bmp")
    rgba.save(d / "rgba.bmp")
    small.quantize(60).save(d / "palette.gif")
    small.quantize(60).save(d / "frames.gif", save_all=True, append_images=[small.transpose(0).quantize(60)])
    small.quantize(60).save(d / "transparent.gif", transparency=5)
    small.save(d / "rgb.tif")
    small.save(d / "rgb_lzw.tif", compression="tiff_lzw")
    small.convert("L").save(d / "grey.tif")
    small.convert("1").save(d / "bits_1.tif")
    rgba.save(d / "rgba.tif")
    small.convert("CMYK").save(d / "cmyk.tif")
    Image.fromarray(sixteen).save(d / "grey_16.tif")
    write_turned(d, small)
    write_transparent(d, r, small, rgba, la)
    write_numbers(d, r, sixteen)
    write_tiffs(d, r, small)
    write_odd_gifs_and_bmps(d, r)


def write_turned(d, small):
    """Every orientation, in every format that has one."""
    for o in range(2, 9):
        exif = Image.Exif()
        exif[0x0112] = o
        small.save(d / f"turned_{o}.jpg", quality=90, exif=exif)
        tags = TiffImagePlugin.ImageFileDirectory_v2()
        tags[274] = o
        small.save(d / f"turned_{o}.tif", tiffinfo=tags)
    exif = Image.Exif()
    exif[0x0112] = 5
    small.save(d / "turned_5.png", exif=exif)
    small.save(d / "turned_5.webp", lossless=True, exif=exif)
    small.save(d / "turned_named.webp", lossless=True, exif=b"Exif\0\0" + exif.tobytes().removeprefix(b"Exif\0\0"))
    # The tag behind the pixels, and numbers of the other order of bytes.
    early = (d / "turned_5.png").read_bytes()
    at = early.index(b"eXIf") - 4
    chunk = early[at : at + 12 + int.from_bytes(early[at : at + 4], "big")]
    plain, end = early.replace(chunk, b""), 12
    (d / "turned_late.png").write_bytes(plain[:-end] + chunk + plain[-end:])
    big = b"MM\0\x2a\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x07\0\0\0\0\0\0"
    small.save(d / "turned_big_endian.jpg", quality=90, exif=b"Exif\0\0" + big)
    # No orientation at all.
    exif[0x0112] = 9
    small.save(d / "turned_9.jpg", quality=90, exif=exif)


def write_transparent(d, r, small, rgba, la):
    """Alpha beside what the other formats have of it."""
    la.save(d / "la.tif")
    write_tiff(d / "rgba_associated.tif", np.asarray(rgba.convert("RGBa").convert("RGBA")), 2, extra=1)
    write_tiff(d / "rgb_and_more.tif", np.asarray(rgba), 2, extra=0)
    write_tiff(d / "rgba_16.tif", r.integers(0, 65536, (17, 21, 4), dtype=np.uint16), 2, extra=2)
    write_tiff(d / "rgba_16_associated.tif", r.integers(0, 65536, (17, 21, 4), dtype=np.uint16), 2, extra=1)
    values, alphas = np.mgrid[0:256:15, 0:256].astype(np.uint8)
    Image.fromarray(np.stack([values, alphas], -1)).save(d / "alphas.png")


def write_numbers(d, r, sixteen):
    """Grey in more than 8 bits."""
    low = (sixteen >> 8).astype(np.uint16)
    Image.fromarray(low).save(d / "grey_16_low.png")
    Image.fromarray(low).save(d / "grey_16_low.tif")
    write_tiff(d / "grey_16_big_endian.tif", sixteen, 1, order=">")
    rgb = r.integers(0, 65536, (17, 21, 3), dtype=np.uint16)
    write_tiff(d / "rgb_16.tif", rgb, 2)
    write_tiff(d / "planes_16.tif", rgb, 2, planes=True)
    write_tiff(d / "cmyk_16.tif", r.integers(0, 65536, (17, 21, 4), dtype=np.uint16), 5)
    write_tiff(d / "float.tif", (r.random((17, 21)) * 255).astype(np.float32), 1)
    for kind in (np.uint32, np.int32, np.int16, np.int8):
        values = low.astype(np.uint8) if kind == np.int8 else low
        write_tiff(d / f"{kind.__name__}.tif", values.astype(kind), 1)


def write_tiffs(d, r, small):
    small.quantize(200).save(d / "palette.tif")
    palette = r.integers(0, 256, (3, 16), dtype=np.uint16) * 257
    indices = r.integers(0, 16, (17, 21), dtype=np.uint8)
    packed = np.pad(indices, ((0, 0), (0, 1)))
    packed = packed[:, ::2] << 4 | packed[:, 1::2]
    write_tiff(d / "palette_4.tif", packed, 3, width=21, bits=4, palette=palette)
    write_tiff(d / "grey_4.tif", packed, 1, width=21, bits=4)
    write_tiff(d / "grey_4_white.tif", packed, 0, width=21, bits=4)
    write_tiff(d / "grey_white.tif", np.asarray(small.convert("L")), 0)
    write_tiff(d / "planes.tif", np.asarray(small), 2, planes=True)
    small.save(d / "big.tif", big_tiff=True)
    larger = Image.fromarray(natural(61, 47))
    larger.save(d / "jpeg.tif", compression="jpeg", quality=85, tiffinfo={278: 16})
    larger.convert("L").save(d / "jpeg_grey.tif", compression="jpeg", quality=85)
    larger.convert("YCbCr").save(d / "jpeg_ycbcr.tif", compression="jpeg", quality=85)
    small.save(d / "zip.tif", compression="tiff_adobe_deflate")
    small.save(d / "packed.tif", compression="packbits")
    small.convert("1").save(d / "fax_4.tif", compression="group4")
    small.convert("LAB").save(d / "lab_lzw.tif", compression="tiff_lzw")
    lab = np.random.default_rng(8).integers(0, 256, (17, 21, 3), dtype=np.uint8)
    write_tiff(d / "lab.tif", lab, 8)
    write_tiff(d / "lab_planes.tif", lab, 8, planes=True)


def all_of_lab():
    """SHA-256 of the RGB of every L*a*b*, L slowest, b fastest."""
    rgb = hashlib.sha256()
    a, b = (Image.fromarray(v.astype(np.uint8)) for v in np.mgrid[0:256, 0:256])
    for value in range(256):
        rgb.update(Image.merge("LAB", [Image.new("L", (256, 256), value), a, b]).convert("RGB").tobytes())
    return rgb.hexdigest()


def write_tiff(path, a, meaning, width=None, bits=None, extra=None, palette=None, planes=False, order="<"):
    """One strip, not compressed; a strip for each plane where they are apart."""
    import struct

    samples = a.shape[2] if a.ndim == 3 else 1
    height, width = a.shape[0], width or a.shape[1]
    bits = bits or a.dtype.itemsize * 8
    kind = {"u": 1, "i": 2, "f": 3}[a.dtype.kind]
    parts = [a[:, :, i] for i in range(samples)] if planes else [a]
    parts = [part.astype(a.dtype.newbyteorder(order)).tobytes() for part in parts]
    starts = [8 + sum(len(p) for p in parts[:i]) for i in range(len(parts))]
    tags = {256: [width], 257: [height], 258: [bits] * samples, 259: [1], 262: [meaning], 273: starts,
            277: [samples], 278: [height], 279: [len(p) for p in parts], 284: [2 if planes else 1],
            339: [kind] * samples}
    if extra is not None:
        tags[338] = [extra]
    if palette is not None:
        tags[320] = palette.reshape(-1).tolist()
    data, entries = b"".join(parts), []
    data += b"\0" * (len(data) % 2)
    for tag, values in sorted(tags.items()):
        value = struct.pack(f"{order}{len(values)}H", *values)
        if len(value) > 4:
            value, data = struct.pack(f"{order}I", 8 + len(data)), data + value
        entries.append(struct.pack(f"{order}HHI", tag, 3, len(values)) + value.ljust(4, b"\0"))
    start = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(f"{order}I", 8 + len(data))
    path.write_bytes(start + data + struct.pack(f"{order}H", len(entries)) + b"".join(entries) + bytes(4))


def write_odd_gifs_and_bmps(d, r):
    import io
    import struct

    def gif(name, screen, place, transparent=None, local=False):
        frame = Image.fromarray(r.integers(0, 256, (9, 11, 3), dtype=np.uint8)).quantize(16)
        buffer = io.BytesIO()
        frame.save(buffer, "GIF", **({} if transparent is None else {"transparency": transparent}))
        data = buffer.getvalue()
        size = 3 << ((data[10] & 7) + 1)
        table, rest = data[13 : 13 + size], data[13 + size :]
        at = rest.index(b",\0\0\0\0")
        rest = rest[: at + 1] + struct.pack("<HH", *place) + rest[at + 5 :]
        if local:
            flags = bytes([0x80 | (data[10] & 7)])
            rest = rest[: at + 9] + flags + table + rest[at + 10 :]
        start = data[:6] + struct.pack("<HH", *screen)
        start += data[10:13] + table if not local else bytes([data[10] & 0x7F]) + data[11:13]
        (d / name).write_bytes(start + rest)

    gif("frame_inside.gif", (20, 15), (4, 3))
    gif("frame_inside_transparent.gif", (20, 15), (4, 3), transparent=7)
    gif("frame_own_palette.gif", (20, 15), (4, 3), local=True)
    gif("frame_beyond.gif", (12, 9), (4, 3))
    gif("frame_larger.gif", (5, 4), (0, 0))
    gif("screen_zero.gif", (0, 0), (0, 0))

    def bmp(name, masks, compression):
        rows = r.integers(0, 65536, (5, 64), dtype=np.uint16).tobytes()
        table = struct.pack("<III", *masks) if compression else b""
        info = struct.pack("<IiiHHIIiiII", 40, 64, 5, 1, 16, compression, len(rows), 2835, 2835, 0, 0)
        offset = 14 + len(info) + len(table)
        head = b"BM" + struct.pack("<IHHI", offset + len(rows), 0, 0, offset)
        (d / name).write_bytes(head + info + table + rows)

    bmp("bits_555.bmp", None, 0)
    bmp("bits_555_masks.bmp", (0x7C00, 0x3E0, 0x1F), 3)
    bmp("bits_565.bmp", (0xF800, 0x7E0, 0x1F), 3)


def write_mats():
    """Flowers-102's two files in small: five photos, once as the originals are and once as doubles."""
    from scipy.io import savemat

    d = OUT / "mat"
    d.mkdir(parents=True, exist_ok=True)
    labels = {"labels": [[77, 102, 10, 1, 2]]}
    splits = {"trnid": [[4, 1]], "valid": [[2]], "tstid": [[3, 5]]}

    def typed(arrays, dtype):
        return {k: np.array(v, dtype) for k, v in arrays.items()}

    savemat(d / "imagelabels.mat", typed(labels, np.uint8), do_compression=True)
    savemat(d / "setid.mat", typed(splits, np.uint16), do_compression=True)
    savemat(d / "imagelabels_double.mat", typed(labels, np.float64))
    savemat(d / "setid_double.mat", typed(splits, np.float64))
    for path in d.iterdir():  # the description carries the time of writing
        path.write_bytes(b"MATLAB 5.0 MAT-file".ljust(116) + path.read_bytes()[116:])


def write_png(path, width, height, depth, colour, rows):
    import struct
    import zlib

    def chunk(kind, data):
        body = kind + data
        return struct.pack(">I", len(data)) + body + struct.pack(">I", zlib.crc32(body))

    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    data = b"".join(b"\0" + row for row in rows)
    path.write_bytes(
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(data)) + chunk(b"IEND", b"")
    )


def write_png16(path, a, colour):
    write_png(path, a.shape[1], a.shape[0], 16, colour, [row.astype(">u2").tobytes() for row in a])


def write_png_bits(path, a, depth):
    bits = (a[..., None] >> np.arange(depth - 1, -1, -1)) & 1
    rows = [np.packbits(row.reshape(-1)).tobytes() for row in bits.astype(np.uint8)]
    write_png(path, a.shape[1], a.shape[0], depth, 0, rows)


def pixels_of(path, turned=True):
    """What the processor starts from."""
    import io
    import struct

    from transformers.image_transforms import convert_to_rgb

    data = path.read_bytes()
    if not turned:
        # Pillow turns a TIFF whether it is asked to or not.
        for o in range(2, 9):
            data = data.replace(struct.pack("<HHIHH", 274, 3, 1, o, 0), struct.pack("<HHIHH", 274, 3, 1, 1, 0))
    image = Image.open(io.BytesIO(data))
    if turned:
        image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I;16") and (values := np.asarray(image)).max() > 255:
        return np.repeat((values >> 8).astype(np.uint8)[:, :, None], 3, 2)
    return convert_to_rgb(image, return_numpy=True).copy()


def main():
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    OUT.mkdir(parents=True, exist_ok=True)
    write_photos()
    write_mats()
    decoded = {}
    for p in sorted((OUT / "photos").iterdir()):
        # Which Pillow takes for planes of bytes, and for planes without a sign.
        if p.name in ("planes_16.tif", "lab_planes.tif"):
            continue
        decoded[p.name] = pixels_of(p)
        stored = pixels_of(p, turned=False)
        if not np.array_equal(decoded[p.name], stored):
            decoded[f"{p.name} as stored"] = stored
    save_file(decoded, OUT / "decoded.safetensors", {"pillow": PIL.__version__})
    (OUT / "lab.sha256").write_text(all_of_lab() + "\n")

    cases = []
    for w, h, s in RESIZE:
        pixels = crop(Image.fromarray(pattern(w, h)), s)
        cases.append({"width": w, "height": h, "size": s, "sha256": hashlib.sha256(pixels.tobytes()).hexdigest()})
    (OUT / "resize.json").write_text(json.dumps(cases, indent=0) + "\n")

    pixels = {}
    for w, h, s in SMALL:
        image = Image.fromarray(pattern(w, h))
        key = f"{w}x{h}_{s}"
        pixels[key + ".crop"] = crop(image, s).copy()
        processor = CLIPImageProcessorPil(size={"shortest_edge": s}, crop_size={"height": s, "width": s})
        values = processor(images=image, return_tensors="np")["pixel_values"][0]
        pixels[key + ".values"] = np.ascontiguousarray(values.astype(np.float32))
    save_file(pixels, OUT / "pixels.safetensors", {"pillow": PIL.__version__})
    for p in sorted((OUT / "photos").iterdir()):
        im = Image.open(p)
        print(p.name, im.format, im.mode, im.size, p.stat().st_size)


if __name__ == "__main__":
    main()
