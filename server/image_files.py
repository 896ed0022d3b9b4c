"""What an image in a request may be: one of the formats and sizes that every dialect here takes."""

from server.media_hosts import MediaRefused

MAX_IMAGE_BYTES = 10 * 1024**2
FORMATS = ("JPEG", "PNG", "WebP", "GIF")
_SIZE = f"an image is at most {MAX_IMAGE_BYTES // 1024**2} MiB large"


def check_image(data: bytes) -> None:
    """By its first bytes, whatever type it was announced as. Raises MediaRefused."""
    check_size(len(data))
    if _format(data) is None:
        raise MediaRefused(f"an image is one of {', '.join(FORMATS)}; this file is none of them")


def check_size(size: int) -> None:
    """Raises MediaRefused."""
    if size > MAX_IMAGE_BYTES:
        raise MediaRefused(f"{_SIZE}; this one has {size} bytes")


def _format(data: bytes) -> str | None:
    if data.startswith(b"\xff\xd8\xff"):
        return "JPEG"
    if data.startswith(b"\x89PNG\r\n\x1a\n"):
        return "PNG"
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "WebP"
    return "GIF" if data[:6] in (b"GIF87a", b"GIF89a") else None
