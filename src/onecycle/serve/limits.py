"""Limits on requests, so that no client can stop the service."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Limits:
    """Limits per request, except where a comment says otherwise. Bytes are counted before images are decoded."""

    file_bytes: int = 16 * 2**20  # per file
    files: int = 32
    request_bytes: int = 64 * 2**20
    pixels: int = 30_000_000  # per image
    upload_seconds: float = 30  # longest time to receive a request
    header_seconds: float = 5  # longest time to receive the header of a request
    answer_seconds: float = 30  # longest time to decode and predict an image, including the wait in the queue
    decode_seconds: float = 10  # longest time to decode an image
    busy_decode_seconds: float = 2  # longest time to decode an image while other requests wait for a decoder
    decoder_bytes: int = 560 * 2**20  # memory of each decoder process; an image takes up to 20 bytes per pixel
    write_seconds: float = 30  # longest wait for a client to accept more of a response
    requests: int = 256  # active requests at a time, of all clients together
    waiting_bytes: int = 256 * 2**20  # total size of active requests; the memory of a request is up to 3 times its size
    connections: int = 512  # open connections of all clients; above this, the connection that is idle longest is closed
    waiting_images: int = 512  # images in the queue, of all clients together


LIMITS = Limits()
