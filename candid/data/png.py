"""What of a PNG decides the pixels of its first frame."""

import io
import struct

from candid.data.files import Rationed

SIGNATURE = b"\x89PNG\r\n\x1a\n"
HEADER = struct.Struct(">8x4x4xII")
"""Of a file: its signature, length and name of the first chunk, and of the picture its width and height."""
CHUNK = struct.Struct(">I4s")
ANCILLARY = 0x20
"""Set in the first letter of a chunk's name where one may do without the chunk."""


def pixel_chunks(file: Rationed, bytes_per_pixel: int, max_pixels: int) -> io.BytesIO:
    """A PNG's chunks without those that do not change its pixels: texts and profiles that unpack to anything, frames.

    `bytes_per_pixel` is what may be read of the file for each of at most `max_pixels`, beyond what may be read already.
    """
    kept = io.BytesIO()
    kept.write(file.read(len(SIGNATURE)))
    is_past_header = False
    while len(start := file.read(CHUNK.size)) == CHUNK.size:
        length, kind = CHUNK.unpack(start)
        if kind == b"IDAT" and not is_past_header:
            is_past_header = True
            width, height = HEADER.unpack_from(kept.getvalue().ljust(HEADER.size, b"\0"))
            file.ration += bytes_per_pixel * min(max_pixels, width * height)
        if kind == b"fcTL" and is_past_header:
            break  # the next frame of an animation
        if not kind[0] & ANCILLARY or kind in (b"tRNS", b"eXIf"):
            kept.write(start + file.read(length + 4))  # with its checksum
        else:
            file.seek(length + 4, io.SEEK_CUR)
        if kind == b"IEND":
            break
    kept.seek(0)
    return kept
