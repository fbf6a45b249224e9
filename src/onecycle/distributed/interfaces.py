"""The network interfaces of this machine."""

import socket
import struct
from contextlib import suppress

_ADDRESS_OF = 0x8915  # an interface: SIOCGIFADDR of Linux


def interface_towards(host: str) -> str | None:
    """The name of the network interface through which `host` is reached, where that is another machine."""
    try:
        import fcntl
    except ImportError:  # Windows
        return None
    try:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
            probe.connect((host, 9))  # which sends nothing
            address = probe.getsockname()[0]
            if address.startswith("127."):
                return None
            for _, name in socket.if_nameindex():
                with suppress(OSError):  # one without an address
                    request = struct.pack("256s", name.encode()[:15])
                    if socket.inet_ntoa(fcntl.ioctl(probe.fileno(), _ADDRESS_OF, request)[20:24]) == address:
                        return name
    except OSError:
        pass
    return None
