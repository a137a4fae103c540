"""Sizes of memory as people write and read them: "2GiB" is 2 * 1024**3 bytes, "2GB" 2 * 1000**3."""

UNITS = {
    "B": 1,
    "kB": 10**3, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12,
    "KiB": 2**10, "MiB": 2**20, "GiB": 2**30, "TiB": 2**40,
}  # fmt: skip
PATTERN = rf"^(\d+(\.\d+)?\s?({'|'.join(UNITS)}))?$"
"""Of a size with its unit; empty is none."""
EXPECTED = "a size with its unit, such as 2GiB (2 x 1024^3 bytes) or 2GB (2 x 1000^3)"


def parse_size(text: str) -> int:
    """Bytes in a size that follows `PATTERN`; 0 in an empty one."""
    if not text:
        return 0
    unit = text.lstrip("0123456789. ")
    return round(float(text.removesuffix(unit)) * UNITS[unit])


def size(num_bytes: float) -> str:
    """Such as "512 MiB" or "1.86 GiB"."""
    mib = num_bytes / 2**20
    return f"{mib:,.0f} MiB" if mib < 1000 else f"{mib / 1024:,.2f} GiB"


def reading(text: str) -> str:
    """How a size was understood: "2GB is read as 2,000,000,000 bytes, 1.86 GiB"."""
    return f"{text} is read as {parse_size(text):,} bytes, {size(parse_size(text))}"
