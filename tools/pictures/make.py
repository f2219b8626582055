"""Makes tests/data/pictures: files as other programs write them, each with the pixels that Pillow and LittleCMS find in it.

    pip install pillow numpy tifffile imagecodecs
    python tools/pictures/make.py

`NAME.expected.png` beside `NAME` is what reading `NAME` must give: upright, in sRGB, on white. Files that are damaged or
of kinds that are refused are made by the tests themselves.
"""

import io
import struct
import zlib
from pathlib import Path

import icc
import imagecodecs
import numpy as np
import tifffile
from PIL import Image, ImageCms, ImageOps

FOLDER = Path(__file__).parents[2] / "tests/data/pictures"
SIZE = WIDTH, HEIGHT = 44, 35


def photo(shift=0):
    """Smooth and colourful."""
    y, x = np.mgrid[0:HEIGHT, 0:WIDTH] / np.array([HEIGHT, WIDTH]).reshape(2, 1, 1)
    red = 128 + 110 * np.sin(6 * x + 2 * y + shift)
    green = 128 + 110 * np.cos(5 * y - 3 * x + shift)
    blue = 128 + 120 * np.sin(9 * (x - 0.5) ** 2 + 7 * y)
    return Image.fromarray(np.clip(np.stack([red, green, blue], -1), 0, 255).astype("uint8"))


PHOTO, GREY = photo(), photo().convert("L")
y, x = np.mgrid[0:HEIGHT, 0:WIDTH]
DISC = Image.fromarray(np.clip(700 - 45 * np.hypot(x - WIDTH / 2, y - HEIGHT / 2), 0, 255).astype("uint8"))
LOGO = PHOTO.copy()
LOGO.putalpha(DISC)
DISPLAY_P3 = icc.rgb("Display P3", icc.WHITE_D65, icc.P3, icc.SRGB_CURVE)


def encoded(picture, kind, **options):
    file = io.BytesIO()
    picture.save(file, kind, **options)
    return file.getvalue()


def opened(file):
    picture = Image.open(io.BytesIO(file))
    picture.load()
    return picture


def on_white(picture):
    picture = picture.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture).convert("RGB")


def in_srgb(picture, profile):
    return ImageCms.profileToProfile(picture, io.BytesIO(profile), ImageCms.createProfile("sRGB"), outputMode="RGB")


def write(name, file, expected):
    (FOLDER / name).write_bytes(file)
    expected.convert("RGB").save(FOLDER / f"{name}.expected.png", optimize=True)


def chunk(kind, content):
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def png(picture, *chunks):
    """A PNG with more chunks behind its header."""
    file = encoded(picture, "PNG", optimize=True)
    return file[:33] + b"".join(chunk(*c) for c in chunks) + file[33:]


def deep_png(samples, *chunks):
    """A PNG of 16-bit samples, [height, width, channels]."""
    height, width, channels = samples.shape
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in samples)
    header = struct.pack(">IIBBBBB", width, height, 16, {1: 0, 3: 2, 4: 6}[channels], 0, 0, 0)
    parts = [(b"IHDR", header), *chunks, (b"IDAT", zlib.compress(rows, 9)), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*part) for part in parts)


def interlaced_png(samples):
    """An Adam7 PNG of 8-bit samples, [height, width, 4]."""
    passes = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2))
    rows = b"".join(b"\0" + row.tobytes() for x, y, dx, dy in passes for row in samples[y::dy, x::dx])
    header = struct.pack(">IIBBBBB", samples.shape[1], samples.shape[0], 8, 6, 0, 0, 1)
    parts = [(b"IHDR", header), (b"IDAT", zlib.compress(rows, 9)), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*part) for part in parts)


def srgb_of(light):
    light = np.clip(light, 0, 1)
    signal = np.where(light <= 0.0031308, 12.92 * light, 1.055 * light ** (1 / 2.4) - 0.055)
    return Image.fromarray((signal * 255).round().astype("uint8"))


def profiles():
    matrix = {
        "p3": DISPLAY_P3,
        "adobe": icc.rgb("Adobe RGB", icc.WHITE_D65, icc.ADOBE, icc.gamma(563 / 256)),
        "prophoto": icc.rgb("ProPhoto RGB", icc.WHITE_D50, icc.PROPHOTO, icc.gamma(1.8)),
        "bt709": icc.rgb("BT.709", icc.WHITE_D65, icc.SRGB, icc.BT709_CURVE),
        "table": icc.rgb_table("a table"),
    }
    for name, profile in matrix.items():
        write(f"profile-{name}.png", png(PHOTO, (b"iCCP", b"p\0\0" + zlib.compress(profile, 9))), in_srgb(PHOTO, profile))
    jpeg = encoded(PHOTO, "JPEG", quality=92, icc_profile=matrix["prophoto"])
    write("profile-prophoto.jpg", jpeg, in_srgb(opened(jpeg), matrix["prophoto"]))
    # In several segments, out of order.
    profile, start = matrix["adobe"], 2
    parts = [profile[:200], profile[200:300], profile[300:]]
    segments = [b"ICC_PROFILE\0" + bytes([i + 1, 3]) + part for i, part in enumerate(parts)]
    segments = b"".join(b"\xff\xe2" + struct.pack(">H", len(s) + 2) + s for s in (segments[2], segments[0], segments[1]))
    jpeg = encoded(PHOTO, "JPEG", quality=92)
    write("profile-in-parts.jpg", jpeg[:start] + segments + jpeg[start:], in_srgb(opened(jpeg), profile))
    write("profile.webp", encoded(PHOTO, "WEBP", lossless=True, icc_profile=DISPLAY_P3), in_srgb(PHOTO, DISPLAY_P3))
    write("profile.tif", encoded(PHOTO, "TIFF", compression="tiff_lzw", icc_profile=DISPLAY_P3), in_srgb(PHOTO, DISPLAY_P3))
    deep = np.asarray(PHOTO).astype("uint16") * 257
    write("profile-16.png", deep_png(deep, (b"iCCP", b"p\0\0" + zlib.compress(DISPLAY_P3))), in_srgb(PHOTO, DISPLAY_P3))
    for exponent in (1.0, 1.8):
        profile = icc.grey(exponent)
        write(f"profile-grey-{exponent}.png", encoded(GREY, "PNG", icc_profile=profile), in_srgb(GREY, profile))
    jpeg = encoded(GREY, "JPEG", quality=95, icc_profile=icc.grey(1.8))
    write("profile-grey.jpg", jpeg, in_srgb(opened(jpeg), icc.grey(1.8)))
    palette = PHOTO.quantize(32)
    file = encoded(palette, "PNG", icc_profile=DISPLAY_P3, transparency=bytes([0, 128] + 30 * [255]))
    converted = in_srgb(opened(file).convert("RGBA").convert("RGB"), DISPLAY_P3)
    converted.putalpha(opened(file).convert("RGBA").getchannel("A"))
    write("profile-palette.png", file, on_white(converted))
    own = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    write("profile-srgb.png", encoded(PHOTO, "PNG", icc_profile=own), PHOTO)
    write("profile-srgb.webp", encoded(PHOTO, "WEBP", lossless=True, icc_profile=icc.rgb("sRGB", icc.WHITE_D65, icc.SRGB, icc.SRGB_CURVE)), PHOTO)
    write("profile-broken.png", png(PHOTO, (b"iCCP", b"p\0\0" + zlib.compress(b"no profile" * 20))), PHOTO)
    write("profile-of-grey.png", png(PHOTO, (b"iCCP", b"p\0\0" + zlib.compress(icc.grey(1.8)))), PHOTO)


def codes():
    """What a PNG states without a profile."""
    signal = np.asarray(PHOTO) / 255
    linear = (b"gAMA", struct.pack(">I", 100000))
    places = lambda white, primaries: (b"cHRM", struct.pack(">8I", *[round(v * 1e5) for p in [white, *primaries] for v in p]))
    write("gamma-1.png", png(PHOTO, linear), srgb_of(signal))
    write("gamma-1-grey.png", png(GREY, linear), srgb_of(np.asarray(GREY) / 255))
    write("gamma-1-16.png", deep_png((signal * 65535).round(), linear), srgb_of(signal))
    write("gamma-srgb.png", png(PHOTO, (b"gAMA", struct.pack(">I", 45455)), places(icc.WHITE_D65, icc.SRGB)), PHOTO)
    adobe = icc.rgb("Adobe RGB", icc.WHITE_D65, icc.ADOBE, icc.gamma(563 / 256))
    write("gamma-adobe.png", png(PHOTO, (b"gAMA", struct.pack(">I", 45470)), places(icc.WHITE_D65, icc.ADOBE)), in_srgb(PHOTO, adobe))
    write("srgb-counts.png", png(PHOTO, linear, (b"sRGB", b"\0")), PHOTO)
    write("cicp-p3.png", png(PHOTO, (b"cICP", bytes([12, 13, 0, 1])), linear), in_srgb(PHOTO, DISPLAY_P3))
    write("cicp-srgb.png", png(PHOTO, (b"cICP", bytes([1, 13, 0, 1])), linear), PHOTO)
    write("cicp-unknown.png", png(PHOTO, (b"cICP", bytes([1, 13, 0, 0]))), PHOTO)
    # SMPTE ST 2084, with the white of ordinary pictures at 203 of its 10000 cd/m².
    m1, m2, c1, c2, c3 = 2610 / 16384, 2523 / 32, 3424 / 4096, 2413 / 128, 2392 / 128
    power = signal ** (1 / m2)
    light = (np.maximum(power - c1, 0) / (c2 - c3 * power)) ** (1 / m1) * 10000 / 203
    to_srgb = np.linalg.inv(icc.colorants(icc.WHITE_D65, icc.SRGB)) @ icc.colorants(icc.WHITE_D65, icc.BT2020)
    write("cicp-pq.png", png(PHOTO, (b"cICP", bytes([9, 16, 0, 1]))), srgb_of(np.clip(light, 0, 1) @ to_srgb.T))


def inks():
    levels = np.asarray(PHOTO.convert("CMYK")).copy()
    levels[..., 3] = (np.arange(WIDTH) * 4)[None, :]
    press, cmyk = icc.cmyk_table("a press"), Image.fromarray(levels, "CMYK")
    plain, profiled = encoded(cmyk, "JPEG", quality=95), encoded(cmyk, "JPEG", quality=95, icc_profile=press)
    write("cmyk.jpg", plain, opened(plain))
    write("cmyk-profile.jpg", profiled, in_srgb(opened(profiled), press))
    # Adobe's other way: three inks as YCbCr. The fourth is stored as it is, all inverted.
    samples = 255 - levels
    ycc = np.asarray(Image.fromarray(255 - samples[..., :3]).convert("YCbCr"))
    stored = np.concatenate([ycc, samples[..., 3:]], -1)
    ycck = bytearray(imagecodecs.jpeg8_encode(stored, level=95, colorspace="CMYK", outcolorspace="CMYK"))
    adobe = ycck.find(b"Adobe")
    marker = b"\xff\xee\0\x0eAdobe\0\x64\0\0\0\0\x02"
    ycck = ycck[:2] + marker + ycck[2:] if adobe < 0 else ycck[: adobe + 11] + b"\x02" + ycck[adobe + 12 :]
    write("ycck.jpg", bytes(ycck), opened(bytes(ycck)))
    write("cmyk.tif", encoded(cmyk, "TIFF", compression="tiff_lzw"), cmyk)


def transparency():
    write("alpha.png", encoded(LOGO, "PNG"), on_white(LOGO))
    grey = GREY.copy()
    grey.putalpha(DISC)
    write("alpha-grey.png", encoded(grey, "PNG"), on_white(grey))
    deep = np.asarray(LOGO).astype("uint16") * 257
    write("alpha-16.png", deep_png(deep), on_white(LOGO))
    key = PHOTO.quantize(16).convert("RGB")
    file = encoded(key, "PNG", transparency=key.getpixel((5, 5)))
    write("alpha-key.png", file, on_white(opened(file)))
    write("alpha-interlaced.png", interlaced_png(np.asarray(LOGO)), on_white(LOGO))
    write("alpha-lossy.webp", encoded(LOGO, "WEBP", quality=90, exact=True), on_white(opened(encoded(LOGO, "WEBP", quality=90, exact=True))))
    write("alpha-lossless.webp", encoded(LOGO, "WEBP", lossless=True, exact=True), on_white(LOGO))
    palette = PHOTO.quantize(63)
    file = encoded(palette, "GIF", transparency=palette.getpixel((WIDTH // 2, HEIGHT // 2)))
    write("alpha.gif", file, on_white(opened(file)))
    multiplied = np.asarray(LOGO).astype(float)
    multiplied[..., :3] = (multiplied[..., :3] * multiplied[..., 3:] / 255).round()
    tifffile.imwrite(FOLDER / "alpha-associated.tif", multiplied.astype("uint8"), photometric="rgb", extrasamples=["ASSOCALPHA"])
    write("alpha-associated.tif", (FOLDER / "alpha-associated.tif").read_bytes(), on_white(LOGO))


def exif(number, size="H"):
    value = struct.pack("<H2x", number) if size == "H" else struct.pack("<I", number)
    return b"II" + struct.pack("<HIHHHI", 42, 8, 1, 0x112, 3 if size == "H" else 4, 1) + value + bytes(4)


def orientation():
    xmp = lambda number: (
        b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">'
        b'<rdf:Description xmlns:tiff="http://ns.adobe.com/tiff/1.0/"><tiff:Orientation>%d</tiff:Orientation>'
        b"</rdf:Description></rdf:RDF></x:xmpmeta>" % number
    )
    digits = (b"Exif\0\0" + exif(8)).hex()
    raw = f"\nexif\n{len(digits) // 2:8}\n{digits[:72]}\n{digits[72:]}\n".encode()
    files = {
        "upright-exif.jpg": encoded(PHOTO, "JPEG", quality=95, exif=b"Exif\0\0" + exif(5)),
        "upright-long.png": png(PHOTO, (b"eXIf", exif(6, "I"))),
        "upright-xmp.png": png(PHOTO, (b"iTXt", b"XML:com.adobe.xmp\0\1\0\0\0" + zlib.compress(xmp(7)))),
        "upright-raw.png": png(PHOTO, (b"zTXt", b"Raw profile type exif\0\0" + zlib.compress(raw))),
        "upright-text.png": png(PHOTO, (b"tEXt", b"exif\0Exif\0\0" + exif(3))),
        "upright-exif.webp": encoded(PHOTO, "WEBP", lossless=True, exif=b"Exif\0\0" + exif(2)),
        "upright-xmp.webp": encoded(PHOTO, "WEBP", lossless=True, xmp=xmp(4)),
        "upright.tif": encoded(PHOTO, "TIFF", tiffinfo={274: 6}),
    }
    for name, file in files.items():
        write(name, file, ImageOps.exif_transpose(opened(file)))


def frames():
    more = {"save_all": True, "append_images": [photo(1), photo(2)]}
    write("frames.png", encoded(PHOTO, "PNG", **more), PHOTO)
    write("frames.webp", encoded(PHOTO, "WEBP", lossless=True, **more), PHOTO)
    write("frames.tif", encoded(PHOTO, "TIFF", compression="tiff_lzw", **more), PHOTO)
    file = encoded(PHOTO, "GIF", **more)
    write("frames.gif", file, opened(file))


def packed_palette(bits, order):
    """A TIFF with a palette of `bits`, which no encoder at hand writes."""
    picture = PHOTO.quantize(2**bits)
    indices = np.pad(np.asarray(picture), ((0, 0), (0, -WIDTH % (8 // bits))))
    parts = [indices[:, k :: 8 // bits] << (8 - bits * (k + 1)) for k in range(8 // bits)]
    data = np.bitwise_or.reduce(parts).astype("uint8").tobytes()
    colours = np.array((picture.getpalette() + [0] * 768)[: 3 * 2**bits]).reshape(-1, 3)
    colours = (colours.T * 257).astype(order + "u2").tobytes()
    place = 8 + 2 + 9 * 12 + 4
    entry = lambda tag, kind, count, value: struct.pack(order + "HHI" + ("H2x" if kind == 3 and count == 1 else "I"), tag, kind, count, value)
    entries = [(256, 4, 1, WIDTH), (257, 4, 1, HEIGHT), (258, 3, 1, bits), (259, 3, 1, 1), (262, 3, 1, 3), (273, 4, 1, place + len(colours)),
               (278, 4, 1, HEIGHT), (279, 4, 1, len(data)), (320, 3, 3 * 2**bits, place)]  # fmt: skip
    head = {"<": b"II*\0", ">": b"MM\0*"}[order] + struct.pack(order + "IH", 8, len(entries))
    return head + b"".join(entry(*e) for e in entries) + bytes(4) + colours + data, picture


def tiffs():
    for bits, order in ((1, "<"), (2, ">"), (4, "<"), (8, ">")):
        write(f"palette-{bits}.tif", *packed_palette(bits, order))
    write("big.tif", encoded(PHOTO, "TIFF", big_tiff=True, compression="tiff_adobe_deflate"), PHOTO)
    ycbcr = encoded(PHOTO.convert("YCbCr"), "TIFF", compression="tiff_lzw")
    write("ycbcr.tif", ycbcr, opened(ycbcr))
    write("group4.tif", encoded(PHOTO.convert("1"), "TIFF", compression="group4"), PHOTO.convert("1"))
    options = {
        "tiles.tif": dict(tile=(16, 32), compression="zlib", predictor=True),
        "planes.tif": dict(planarconfig="separate", compression="lzw"),
        "jpeg.tif": dict(compression="jpeg", compressionargs={"level": 92}, subsampling=(2, 2), tile=(32, 32)),
    }
    for name, how in options.items():
        samples = np.asarray(PHOTO)
        samples = samples.transpose(2, 0, 1).copy() if "planarconfig" in how else samples
        tifffile.imwrite(FOLDER / name, samples, photometric="ycbcr" if name == "jpeg.tif" else "rgb", **how)
        write(name, (FOLDER / name).read_bytes(), Image.open(FOLDER / name))
    tifffile.imwrite(FOLDER / "rgb16.tif", np.asarray(PHOTO).astype("uint16") * 257, photometric="rgb", byteorder=">")
    write("rgb16.tif", (FOLDER / "rgb16.tif").read_bytes(), PHOTO)
    tifffile.imwrite(FOLDER / "float.tif", np.asarray(PHOTO).astype("float32") / 255, photometric="rgb", compression="zlib")


def jpegs():
    options = {
        "444-progressive.jpg": dict(subsampling=0, progressive=True),
        "422-optimised.jpg": dict(subsampling=1, optimize=True),
        "420-restarts.jpg": dict(subsampling=2, restart_marker_blocks=2),
        "420-progressive-restarts.jpg": dict(subsampling=2, restart_marker_blocks=1, progressive=True),
        "stored-as-rgb.jpg": dict(keep_rgb=True),
    }
    for name, how in options.items():
        file = encoded(PHOTO, "JPEG", quality=90, **how)
        write(name, file, opened(file))


def jpeg_xl():
    for name, samples, how in (
        ("lossless.jxl", PHOTO, dict(lossless=True)),
        ("lossy.jxl", PHOTO, dict(distance=0.5)),
        ("grey.jxl", GREY, dict(lossless=True)),
        ("alpha.jxl", LOGO, dict(lossless=True)),
    ):
        file = bytes(imagecodecs.jpegxl_encode(np.asarray(samples), **how))
        expected = Image.fromarray(imagecodecs.jpegxl_decode(file))
        write(name, file, on_white(expected) if expected.mode == "RGBA" else expected)


if __name__ == "__main__":
    FOLDER.mkdir(exist_ok=True)
    for old in FOLDER.iterdir():
        old.unlink()
    for kind in (profiles, codes, inks, transparency, orientation, frames, tiffs, jpegs, jpeg_xl):
        kind()
