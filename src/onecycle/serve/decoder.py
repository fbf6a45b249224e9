"""Decode images in a separate process: `python -m onecycle.serve.decoder SIZE PIXELS BYTES`.

The process reads images from standard input, and writes the pixels or an error to standard output. It imports neither
torch nor asyncio, so that it starts quickly and is small. `onecycle.serve.decoders` starts and ends the process.
"""

import os
import struct
import sys
from typing import BinaryIO

from PIL import AvifImagePlugin

from onecycle.core.errors import InputError
from onecycle.data.image_files import open_image, to_square

FORMATS = (
    "JPEG",
    "PNG",
    "GIF",
    "BMP",
    "WEBP",
    "TIFF",
    "AVIF",
    "HEIF",  # phones send HEIF; decoding it needs pillow-heif
)  # common formats only: decoders of rare formats are less well maintained
READY = b"ready"
REQUEST = struct.Struct("!Q")  # the length of the image file that follows
RESPONSE = struct.Struct("!?Q")  # whether pixels follow (else an error message), and the length of what follows


def serve(requests: BinaryIO, responses: BinaryIO, *, size: int, most_pixels: int) -> None:
    """Decode images from `requests` to `size`×`size` pixels, until `requests` ends."""
    responses.write(READY)
    responses.flush()
    while head := requests.read(REQUEST.size):
        content = requests.read(*REQUEST.unpack(head))
        try:
            image = open_image(content, "this file", most_pixels=most_pixels, only=FORMATS)
            is_decoded, answer = True, to_square(image, size, "this file").tobytes()
        except InputError as error:
            is_decoded, answer = False, str(error).encode()
        except MemoryError:
            is_decoded, answer = False, b"this file: decoding takes too much memory; make the image smaller"
        image = None  # type: ignore[assignment]  # its memory is needed for the next image
        responses.write(RESPONSE.pack(is_decoded, len(answer)) + answer)
        responses.flush()


def limit_memory(most_bytes: int) -> None:
    """Limit the data of this process to `most_bytes`. This does nothing on a system without such a limit."""
    try:
        import resource

        resource.setrlimit(resource.RLIMIT_DATA, (most_bytes, most_bytes))
    except (ImportError, ValueError, OSError):
        pass


def main() -> None:
    size, most_pixels, most_bytes = map(int, sys.argv[1:])
    limit_memory(most_bytes)
    AvifImagePlugin.DEFAULT_MAX_THREADS = 1  # there are several processes, and each thread needs memory
    responses = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # libraries then print to standard error, and not into the responses
    serve(sys.stdin.buffer, responses, size=size, most_pixels=most_pixels)


if __name__ == "__main__":
    main()
