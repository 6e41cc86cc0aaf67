"""Formats sizes, durations and counts for people."""


def size(count: int) -> str:
    """``2.3 GB``: bytes in decimal units, like S3's console and Zooniverse."""
    if count < 1000:
        return f"{count} bytes"
    value = float(count)
    for unit in ("kB", "MB", "GB", "TB"):
        value /= 1000
        if value < 999.95 or unit == "TB":
            break
    return f"{value:.1f} {unit}"


def duration(seconds: float) -> str:
    """``0.4 s``, ``12 s``, ``3 min 5 s``, ``2 h 4 min``."""
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    minutes, rest = divmod(whole, 60)
    if minutes < 60:
        return f"{minutes} min {rest} s"
    return f"{minutes // 60} h {minutes % 60} min"


def count(number: int, thing: str, things: str | None = None) -> str:
    """``1 row``, ``2,000 rows``; ``things`` is an irregular plural."""
    return f"{number:,} {thing if number == 1 else things or thing + 's'}"
