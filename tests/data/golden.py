"""Pictures of every kind that candid reads, each with the RGB that a person sees, computed from what was encoded."""

import io
import struct
import zlib
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageCms

HEIGHT, WIDTH = 16, 24
ROW, COLUMN = np.mgrid[:HEIGHT, :WIDTH]
GREY = (COLUMN * 8 + ROW * 4).astype(np.uint8)
COLOR = np.stack([10 + COLUMN * 9, 20 + ROW * 13, 200 - COLUMN * 4 - ROW * 5], axis=2).astype(np.uint8)
BLOCKS = COLOR[::8, ::8].repeat(8, axis=0).repeat(8, axis=1)  # what a JPEG keeps but for the rounding of its colours
ALPHA = (255 - COLUMN * 11).astype(np.uint8)
TURNED = {  # how a camera held like this stores the upright picture, by its EXIF orientation
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.swapaxes(0, 1),
    6: lambda a: np.rot90(a, 1),
    7: lambda a: a.swapaxes(0, 1)[::-1, ::-1],
    8: lambda a: np.rot90(a, -1),
}
LOSSLESS_JPEG = {"quality": 100, "subsampling": 0}
Golden = dict[str, tuple[bytes, np.ndarray]]
"""File name to its bytes and to the RGB in it, [H, W, 3]."""


def golden_files() -> Golden:
    return jpegs() | pngs() | animations() | tiffs() | simple_formats() | extreme_sides()


def encoded(pixels: np.ndarray | Image.Image, file_format: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image = pixels if isinstance(pixels, Image.Image) else Image.fromarray(np.ascontiguousarray(pixels))
    image.save(buffer, file_format, **options)
    return buffer.getvalue()


def rgb(grey: np.ndarray) -> np.ndarray:
    return np.repeat(grey[:, :, None], 3, axis=2)


def over_white(pixels: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    """Of RGB in [0, 255] and alpha in [0, 1]."""
    return pixels * alpha[:, :, None] + 255 * (1 - alpha[:, :, None])


def printed(inks: np.ndarray) -> np.ndarray:
    """What is seen of cyan, magenta, yellow and black, [H, W, 4]."""
    light = 1 - inks / 255
    return 255 * light[:, :, :3] * light[:, :, 3:]


def oriented(orientation: int) -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif


def swapped_profile() -> bytes:
    """A colour profile by which red is blue."""
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    return profile.replace(b"rXYZ", b"tXYZ").replace(b"bXYZ", b"rXYZ").replace(b"tXYZ", b"bXYZ")


def jpegs() -> Golden:
    inks = np.dstack([BLOCKS, ROW * 5]).astype(np.uint8)
    adobe = encoded(Image.fromarray(inks, "CMYK"), "JPEG", **LOSSLESS_JPEG)
    marker = adobe.index(b"\xff\xee\x00\x0eAdobe")
    unmarked = adobe[:marker] + adobe[marker + 16 :]
    turned = {
        f"orientation-{number}.jpg": (
            encoded(turn(BLOCKS), "JPEG", exif=oriented(number), **LOSSLESS_JPEG),
            BLOCKS,
        )
        for number, turn in TURNED.items()
    }
    return turned | {
        "progressive.jpg": (encoded(BLOCKS, "JPEG", progressive=True, **LOSSLESS_JPEG), BLOCKS),
        "subsampled.jpg": (encoded(rgb(GREY), "JPEG", quality=100), rgb(GREY)),
        "grey.jpg": (encoded(GREY, "JPEG", quality=100), rgb(GREY)),
        "profile.jpg": (encoded(BLOCKS, "JPEG", icc_profile=swapped_profile(), **LOSSLESS_JPEG), BLOCKS),
        "cmyk-adobe.jpg": (adobe, printed(inks)),
        "cmyk.jpg": (unmarked, printed(inks)),  # inverted all the same, as browsers take it
        "ycck.jpg": (ycck(inks), printed(inks)),
        "two-views.jpg": (
            encoded(BLOCKS, "MPO", save_all=True, append_images=[Image.new("RGB", (9, 9))], **LOSSLESS_JPEG),
            BLOCKS,
        ),
    }


def ycck(inks: np.ndarray) -> bytes:
    """A JPEG as of Photoshop: cyan, magenta and yellow as luminance and chrominance, all inverted."""
    cyan, magenta, yellow, black = np.moveaxis(inks.astype(float), 2, 0)
    luminance = 0.299 * cyan + 0.587 * magenta + 0.114 * yellow
    planes = [luminance, 128 + (yellow - luminance) / 1.772, 128 + (cyan - luminance) / 1.402, 255 - black]
    inverted = 255 - np.dstack(planes).round().clip(0, 255).astype(np.uint8)  # which Pillow inverts again
    data = encoded(Image.fromarray(inverted, "CMYK"), "JPEG", **LOSSLESS_JPEG)
    transform = data.index(b"\xff\xee\x00\x0eAdobe") + 15
    return data[:transform] + b"\x02" + data[transform + 1 :]


def packed(samples: np.ndarray, depth: int) -> list[bytes]:
    """Rows [H, W * samples of a pixel] of integers, each in `depth` bits."""
    if depth == 16:
        return [row.astype(">u2").tobytes() for row in samples]
    bits = (samples[:, :, None] >> np.arange(depth)[::-1]) & 1
    return [np.packbits(row.ravel()).tobytes() for row in bits.astype(np.uint8)]


def chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def png(samples: np.ndarray, depth: int, color_type: int, *chunks: bytes) -> bytes:
    """A PNG of samples [H, W] or [H, W, C], written out after the specification."""
    header = struct.pack(">IIBBBBB", samples.shape[1], samples.shape[0], depth, color_type, 0, 0, 0)
    rows = b"".join(b"\0" + row for row in packed(samples.reshape(len(samples), -1), depth))
    parts = [chunk(b"IHDR", header), *chunks, chunk(b"IDAT", zlib.compress(rows)), chunk(b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def interlaced_png(pixels: np.ndarray) -> bytes:
    """Adam7: seven passes, each with its first row and column and its steps."""
    header = struct.pack(">IIBBBBB", pixels.shape[1], pixels.shape[0], 8, 2, 0, 0, 1)
    passes = [(0, 0, 8, 8), (0, 4, 8, 8), (4, 0, 8, 4), (0, 2, 4, 4), (2, 0, 4, 2), (0, 1, 2, 2), (1, 0, 2, 1)]
    rows = b"".join(
        b"\0" + row.tobytes() for y, x, rows, columns in passes for row in pixels[y::rows, x::columns].copy()
    )
    parts = [chunk(b"IHDR", header), chunk(b"IDAT", zlib.compress(rows)), chunk(b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def pngs() -> Golden:
    files: Golden = {
        "plain.png": (encoded(COLOR, "PNG"), COLOR),
        "interlaced.png": (interlaced_png(COLOR), COLOR),
        "profile.png": (encoded(COLOR, "PNG", icc_profile=swapped_profile()), COLOR),
        "orientation.png": (encoded(TURNED[6](COLOR), "PNG", exif=oriented(6)), COLOR),
    }
    for depth in (1, 2, 4, 8, 16):
        white = 2**depth - 1
        values = GREY.astype(int) * 257 >> (16 - depth)
        seen, hidden = rgb(values * 255 / white), values == values[4, 7]
        transparent = chunk(b"tRNS", struct.pack(">H", values[4, 7]))
        files[f"grey-{depth}.png"] = png(values, depth, 0), seen
        files[f"grey-{depth}-transparent.png"] = png(values, depth, 0, transparent), over_white(seen, 1 - hidden)
    for depth in (1, 2, 4, 8):
        indices = (COLUMN + ROW * 3) % 2**depth
        colors = np.random.default_rng(depth).integers(0, 256, (2**depth, 3))
        alphas = np.linspace(255, 40, 2**depth).astype(int)
        palette, alpha = (chunk(kind, bytes(v.ravel().tolist())) for kind, v in ((b"PLTE", colors), (b"tRNS", alphas)))
        files[f"palette-{depth}.png"] = png(indices, depth, 3, palette), colors[indices]
        seen = over_white(colors[indices], alphas[indices] / 255)
        files[f"palette-{depth}-transparent.png"] = png(indices, depth, 3, palette, alpha), seen
    for depth in (8, 16):
        color, grey, alpha = (pixels.astype(int) for pixels in (COLOR, GREY, ALPHA))
        if depth == 16:  # with lower bytes that are not the upper ones
            color, grey, alpha = (pixels * 256 + 7 for pixels in (color, grey, alpha))
        color[5:9, 5:9] = color[5, 5]
        seen = color * 255 / (2**depth - 1)
        files[f"rgb-{depth}.png"] = png(color, depth, 2), seen
        transparent = chunk(b"tRNS", struct.pack(">HHH", *color[5, 5]))
        opaque = (color != color[5, 5]).any(axis=2)
        files[f"rgb-{depth}-transparent.png"] = png(color, depth, 2, transparent), over_white(seen, opaque)
        files[f"rgba-{depth}.png"] = png(np.dstack([color, alpha]), depth, 6), over_white(seen, ALPHA / 255)
        files[f"grey-alpha-{depth}.png"] = png(np.dstack([grey, alpha]), depth, 4), over_white(rgb(GREY), ALPHA / 255)
    return files


def animations() -> Golden:
    """Several frames; and what else GIF and WebP have."""
    frames = {"save_all": True, "append_images": [Image.new("RGB", (WIDTH, HEIGHT), "red")] * 3}
    few = Image.fromarray(COLOR // 64 * 64).quantize(256)
    seen = np.asarray(few.convert("RGB"))
    hidden = np.asarray(few) == np.asarray(few)[3, 3]
    return {
        "plain.gif": (encoded(few, "GIF"), seen),
        "straight.gif": (encoded(few, "GIF", interlace=0), seen),
        "animated.gif": (encoded(few, "GIF", **frames), seen),
        "transparent.gif": (
            encoded(few, "GIF", transparency=int(np.asarray(few)[3, 3])),
            over_white(seen, 1 - hidden),
        ),
        "animated.png": (encoded(COLOR, "PNG", **frames), COLOR),
        "lossless.webp": (encoded(COLOR, "WEBP", lossless=True), COLOR),
        "animated.webp": (encoded(COLOR, "WEBP", lossless=True, **frames), COLOR),
        "orientation.webp": (encoded(TURNED[8](COLOR), "WEBP", lossless=True, exif=oriented(8)), COLOR),
        "transparent.webp": (
            encoded(np.dstack([COLOR, ALPHA]), "WEBP", lossless=True, exact=True),
            over_white(COLOR, ALPHA / 255),
        ),
    }


def tiff(
    data: bytes,
    bits: Sequence[int],
    photometric: int,
    *,
    order: str = "<",
    sample_format: int = 1,
    extra: int | None = None,
    planes: int = 1,
    compression: int = 1,
) -> bytes:
    """A TIFF of WIDTH x HEIGHT px, after the specification; `planes`, of one length, lie one after another."""
    size, start = len(data) // planes, 8
    offsets = [start + size * plane for plane in range(planes)]
    tags: dict[int, tuple[str, Sequence[int]]] = {
        256: ("H", [WIDTH]),
        257: ("H", [HEIGHT]),
        258: ("H", bits),
        259: ("H", [compression]),
        262: ("H", [photometric]),
        273: ("I", offsets),
        277: ("H", [len(bits)]),
        278: ("H", [HEIGHT]),
        279: ("I", [size] * planes),
        284: ("H", [1 if planes == 1 else 2]),
        339: ("H", [sample_format] * len(bits)),
    }
    if extra is not None:
        tags[338] = ("H", [extra])
    values = {tag: struct.pack(f"{order}{len(numbers)}{kind}", *numbers) for tag, (kind, numbers) in tags.items()}
    body, entries = data, b""
    for tag, (kind, numbers) in sorted(tags.items()):
        value = values[tag]
        if len(value) > 4:
            value, body = struct.pack(order + "I", start + len(body)), body + value
        entries += struct.pack(order + "HHI", tag, 3 if kind == "H" else 4, len(numbers)) + value.ljust(4, b"\0")
    header = (b"II" if order == "<" else b"MM") + struct.pack(order + "HI", 42, start + len(body))
    return header + body + struct.pack(order + "H", len(tags)) + entries + bytes(4)


def tiffs() -> Golden:
    deep_grey, deep_color = GREY.astype(int) * 257, COLOR.astype(int) * 257
    twelve = GREY.astype(int) * 4095 // 255
    bits_of_12 = (twelve.reshape(-1, 1) >> np.arange(12)[::-1]) & 1
    shares = GREY / 255
    with_holes = np.where(COLUMN == 2, np.nan, shares)
    inks = np.dstack([COLOR, ROW * 5]).astype(np.uint8)
    premultiplied = np.dstack([GREY * (ALPHA / 255), ALPHA]).round().astype(np.uint8)
    deflated = [zlib.compress(deep_color[:, :, band].astype("<u2").tobytes()) for band in range(3)]
    deflated = [plane.ljust(max(map(len, deflated)), b"\0") for plane in deflated]
    two = {"save_all": True, "append_images": [Image.new("RGB", (5, 5), "red")]}
    files: Golden = {
        "two-pages.tif": (encoded(COLOR, "TIFF", **two), COLOR),
        "orientation.tif": (encoded(TURNED[7](COLOR), "TIFF", exif=oriented(7)), COLOR),
        "bilevel.tif": (encoded(Image.fromarray(GREY > 99), "TIFF", compression="group4"), rgb((GREY > 99) * 255)),
        "cmyk.tif": (encoded(Image.fromarray(inks, "CMYK"), "TIFF"), printed(inks)),
        "rgba.tif": (encoded(np.dstack([COLOR, ALPHA]), "TIFF"), over_white(COLOR, ALPHA / 255)),
        "premultiplied.tif": (tiff(premultiplied.tobytes(), [8, 8], 1, extra=1), over_white(rgb(GREY), ALPHA / 255)),
        "white-is-zero.tif": (tiff(GREY.tobytes(), [8], 0), rgb(255 - GREY)),
        "grey-12.tif": (tiff(np.packbits(bits_of_12.astype(np.uint8)).tobytes(), [12], 1), rgb(GREY)),
        "grey-16-white-is-zero.tif": (tiff(deep_grey.astype("<u2").tobytes(), [16], 0), rgb(255 - GREY)),
        "planes-8.tif": (tiff(np.moveaxis(COLOR, 2, 0).tobytes(), [8] * 3, 2, planes=3), COLOR),
        "planes-16.tif": (tiff(b"".join(deflated), [16] * 3, 2, planes=3, compression=8), COLOR),
        "jpeg.tif": (encoded(BLOCKS, "TIFF", compression="jpeg", quality=100), BLOCKS),
        "float-255.tif": (encoded(GREY.astype(np.float32), "TIFF"), rgb(GREY)),
        "float-65535.tif": (encoded(deep_grey.astype(np.float32), "TIFF"), rgb(GREY)),
        "float-holes.tif": (
            tiff(with_holes.astype("<f4").tobytes(), [32], 1, sample_format=3),
            rgb(np.nan_to_num(with_holes) * 255),
        ),
        "integers-32.tif": (encoded(deep_grey.astype(np.int32), "TIFF"), rgb(GREY)),
    }
    for compression in ("tiff_lzw", "tiff_adobe_deflate", "packbits"):
        files[f"{compression}.tif"] = encoded(COLOR, "TIFF", compression=compression), COLOR
    files["deflate-16.tif"] = encoded(deep_grey.astype(np.uint16), "TIFF", compression="tiff_deflate"), rgb(GREY)
    for order, name in (("<", "little"), (">", "big")):
        files |= {
            f"grey-16-{name}.tif": (tiff(deep_grey.astype(order + "u2").tobytes(), [16], 1, order=order), rgb(GREY)),
            f"rgb-16-{name}.tif": (tiff(deep_color.astype(order + "u2").tobytes(), [16] * 3, 2, order=order), COLOR),
            f"float-1-{name}.tif": (
                tiff(shares.astype(order + "f4").tobytes(), [32], 1, order=order, sample_format=3),
                rgb(GREY),
            ),
        }
    return files


def simple_formats() -> Golden:
    few = COLOR // 64 * 64
    palette, indices = np.unique(few.reshape(-1, 3), axis=0, return_inverse=True)
    indexed = Image.fromarray(indices.reshape(HEIGHT, WIDTH).astype(np.uint8), "P")
    indexed.putpalette(palette.ravel().tolist())
    bilevel, size = GREY > 99, b"%d %d\n" % (WIDTH, HEIGHT)
    deep_grey, deep_color = GREY.astype(">u2") * 257, COLOR.astype(">u2") * 257
    percent = GREY * 100 // 255
    return {
        "plain.bmp": (encoded(COLOR, "BMP"), COLOR),
        "palette.bmp": (encoded(indexed, "BMP"), few),
        "bilevel.bmp": (encoded(Image.fromarray(bilevel), "BMP"), rgb(bilevel * 255)),
        "run-lengths.bmp": (run_length_bmp(indices.reshape(HEIGHT, WIDTH), palette), few),
        "bilevel.pgm": (b"P4\n" + size + np.packbits(~bilevel, axis=1).tobytes(), rgb(bilevel * 255)),
        "grey-8.pgm": (b"P5\n# said by hand\n" + size + b"255\n" + GREY.tobytes(), rgb(GREY)),
        "grey-percent.pgm": (b"P5\n" + size + b"100\n" + percent.astype(np.uint8).tobytes(), rgb(percent * 2.55)),
        "grey-16.pgm": (b"P5\n" + size + b"65535\n" + deep_grey.astype(">u2").tobytes(), rgb(GREY)),
        "rgb-8.ppm": (b"P6\n" + size + b"255\n" + COLOR.tobytes(), COLOR),
        "rgb-16.ppm": (b"P6\n" + size + b"65535\n" + deep_color.astype(">u2").tobytes(), COLOR),
        "words.ppm": (b"P3\n" + size + b"255\n" + " ".join(map(str, COLOR.ravel().tolist())).encode(), COLOR),
    }


def run_length_bmp(indices: np.ndarray, palette: np.ndarray) -> bytes:
    """Every pixel a run of its own."""
    rows = [b"".join(bytes([1, int(index)]) for index in row) + b"\0\0" for row in indices[::-1]]
    colors = b"".join(bytes([*map(int, color[::-1]), 0]) for color in palette)
    data = b"".join(rows)[:-2] + b"\0\1"
    start = 54 + len(colors)
    info = struct.pack("<IiiHHIIiiII", 40, indices.shape[1], len(indices), 1, 8, 1, len(data), 0, 0, len(palette), 0)
    return b"BM" + struct.pack("<IHHI", start + len(data), 0, 0, start) + info + colors + data


def extreme_sides() -> Golden:
    ramp = (np.arange(10_000) * 255 // 9_999).astype(np.uint8)
    return {
        "dot.png": (encoded(np.full((1, 1, 3), (200, 100, 50), np.uint8), "PNG"), np.array([[[200, 100, 50]]])),
        "dot.gif": (encoded(np.full((1, 1), 77, np.uint8), "GIF"), np.full((1, 1, 3), 77)),
        "wide.png": (encoded(ramp[None], "PNG"), rgb(ramp[None])),
        "tall.jpg": (encoded(ramp[:, None], "JPEG", quality=100), rgb(ramp[:, None])),
    }
