"""Limits on requests, so that no client can stop the service."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Limits:
    """Limits apply to one request unless noted. Bytes are counted before images are decoded."""

    file_bytes: int = 16 * 2**20
    files: int = 32
    request_bytes: int = 64 * 2**20
    pixels: int = 30_000_000  # per image; decoding takes up to 12 bytes per pixel
    upload_seconds: float = 30  # to receive a request
    header_seconds: float = 10  # to receive the header of a request
    answer_seconds: float = 30  # to decode and predict an image
    write_seconds: float = 30  # for a client to accept more of a response
    requests: int = 256  # at a time, of all clients
    waiting_bytes: int = 256 * 2**20  # of all clients; up to three copies of a request exist while it is read
    connections: int = 512  # at a time, of all clients
    waiting_images: int = 512  # in the queue, for all clients together


LIMITS = Limits()
