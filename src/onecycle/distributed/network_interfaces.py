"""The network interfaces of this machine."""

import socket
import struct
from contextlib import suppress

_SIOCGIFADDR = 0x8915  # the Linux request for the address of an interface


def interface_towards(host: str) -> str | None:
    """The network interface through which this machine reaches `host`. None if `host` is this machine or unknown."""
    try:
        import fcntl
    except ImportError:  # Windows has no fcntl
        return None
    try:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
            probe.connect((host, 9))  # connecting a UDP socket sends nothing
            address = probe.getsockname()[0]
            if address.startswith("127."):
                return None
            for _, name in socket.if_nameindex():
                with suppress(OSError):  # an interface without an address raises an error
                    request = struct.pack("256s", name.encode()[:15])
                    if socket.inet_ntoa(fcntl.ioctl(probe.fileno(), _SIOCGIFADDR, request)[20:24]) == address:
                        return name
    except OSError:
        pass
    return None


def loopback_interface() -> str:
    """The network interface that only processes of this machine can reach."""
    return next((name for _, name in socket.if_nameindex() if name in ("lo", "lo0")), "lo")  # macOS calls it "lo0"
