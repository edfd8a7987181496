"""The kernel's destroy events of TCP sockets, received: one per connection that ends.

Unprivileged: the groups SKNLGRP_INET_TCP_DESTROY and SKNLGRP_INET6_TCP_DESTROY of
NETLINK_SOCK_DIAG (include/uapi/linux/sock_diag.h), of one network namespace. The
ports are filtered in the kernel, so that the connections of others do not fill the buffer; what
is lost in spite of that is counted by the kernel, exactly.
"""

import errno
import socket
import time
from array import array
from struct import Struct

from check_pgsock.deadline import Deadline
from check_pgsock.errors import SourceError
from check_pgsock.sockets.destroy_filter import pack_filter, parse_events
from check_pgsock.sockets.sources.netlink import open_channel

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Optional

    from check_pgsock.sockets.model import Socket
    from check_pgsock.sockets.namespaces import Namespace

_GROUPS = (1, 3)  # SKNLGRP_INET_TCP_DESTROY, SKNLGRP_INET6_TCP_DESTROY
_SOL_NETLINK = 270
_NETLINK_ADD_MEMBERSHIP = 1
_NETLINK_NO_ENOBUFS = 5
_SO_ATTACH_FILTER = 26
_SO_RCVBUFFORCE = 33
_SO_MEMINFO = 55
_FILTER_PROGRAM = Struct("@HP")  # struct sock_fprog
_MEMORY = Struct("=9I")  # SK_MEMINFO_*: the last is SK_MEMINFO_DROPS
_DATAGRAM = 1 << 14  # an event takes 380 bytes on Linux 6.18
BUFFER = 1 << 24  # bytes to ask for; memory is used only for events that wait


class DestroyEvents:
    """The destroy events of the connections of `ports`, from its making on, in `namespace` or
    that of this process.

    Raises SourceError where the kernel refuses. To be used as a context manager.
    """

    def __init__(
        self,
        ports: "tuple[int, ...]",
        local: bool,
        deadline: Deadline,
        buffer: int = BUFFER,
        namespace: "Optional[Namespace]" = None,
    ) -> None:
        self._deadline = deadline
        self._data = bytearray(_DATAGRAM)
        self.received = 0
        program = pack_filter(ports, local)
        try:
            self._channel = open_channel(namespace)
        except OSError as error:
            raise SourceError(_refused(error)) from error
        try:
            self._set_up(program, buffer)
        except OSError as error:
            self._channel.close()
            raise SourceError(_refused(error)) from error

    def _set_up(self, program: bytes, buffer: int) -> None:
        # The filter before the groups: nothing unfiltered is ever queued.
        channel, code = self._channel, array("B", program)
        channel.setsockopt(
            socket.SOL_SOCKET,
            _SO_ATTACH_FILTER,
            _FILTER_PROGRAM.pack(len(program) // 8, code.buffer_info()[0]),
        )
        try:
            channel.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, buffer)
        except OSError:  # without CAP_NET_ADMIN as much as net.core.rmem_max allows
            channel.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer)
        # A full buffer loses what does not fit, and not all that comes until it is empty.
        channel.setsockopt(_SOL_NETLINK, _NETLINK_NO_ENOBUFS, 1)
        channel.bind((0, 0))
        for group in _GROUPS:
            channel.setsockopt(_SOL_NETLINK, _NETLINK_ADD_MEMBERSHIP, group)

    def __enter__(self) -> "DestroyEvents":
        return self

    def __exit__(self, *_: object) -> None:
        self._channel.close()

    def receive(self, until: float) -> "Iterator[Socket]":
        """Yield the events that come until the monotonic time `until`; if that has passed, the
        waiting ones.
        """
        while True:
            left = until - time.monotonic()
            self._channel.settimeout(max(min(left, self._deadline.remaining()), 0))
            try:
                size = self._channel.recv_into(self._data)
            except (socket.timeout, BlockingIOError):
                if left <= 0:
                    return
                continue
            except OSError as error:
                if error.errno == errno.ENOBUFS:  # the loss is counted, see lost()
                    continue
                raise SourceError(
                    f"the kernel's destroy events cannot be read: {error.strerror or error}"
                ) from error
            for one in parse_events(self._data[:size]):
                self.received += 1
                yield one

    def lost(self) -> int:
        """How many events of our ports the buffer had no room for."""
        memory = self._channel.getsockopt(socket.SOL_SOCKET, _SO_MEMINFO, _MEMORY.size)
        if len(memory) < _MEMORY.size:
            raise SourceError("this kernel does not tell how many destroy events were lost")
        drops: int = _MEMORY.unpack(memory)[8]
        return drops

    def describe(self) -> str:
        """How much was received, for -vv."""
        size = self._channel.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF)
        return (
            f"destroy events: {self.received} received, {self.lost()} lost, "
            f"receive buffer {size} bytes"
        )


def _refused(error: OSError) -> str:
    return f"the kernel's destroy events are refused: {error.strerror or error}"
