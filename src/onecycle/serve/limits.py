"""How much a client may ask for: far more than a page of pictures needs, and less than would stop the service."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Limits:
    """Of one client where nothing else is said; bytes are those that are sent, before pictures are decoded."""

    file_bytes: int = 16 * 2**20
    files: int = 32  # in a request
    request_bytes: int = 64 * 2**20
    pixels: int = 30_000_000  # of a picture; decoding one takes up to a dozen bytes for each
    upload_seconds: float = 30  # for a request to arrive
    header_seconds: float = 10  # for its head to arrive
    answer_seconds: float = 30  # for a picture to be decoded and the network's turn to come
    write_seconds: float = 30  # for a client to take more of an answer
    requests: int = 256  # at once, of all clients
    waiting_bytes: int = 256 * 2**20  # of all clients at once; while they are read there are up to three copies
    connections: int = 512  # at once, of all clients
    waiting_pictures: int = 512  # to be decoded and for the network, of all clients


LIMITS = Limits()
