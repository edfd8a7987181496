"""Raw PostgreSQL sessions over a plain socket: cheap to open by hundreds, cut off at will.

The messages are those of the PostgreSQL manual, "Message Formats" (protocol 3.0); trust
authentication only.
"""

from __future__ import annotations

import contextlib
import functools
import select
import socket
import ssl
import struct
from collections.abc import Iterator
from types import TracebackType
from typing import Optional

from check_pgsock.pgsock.lab.errors import LabError

Row = tuple[Optional[str], ...]

_TERMINATE = b"X\0\0\0\x04"


class WireError(LabError):
    """The server refused or ended a session: `sqlstate` and `message` are its own words."""

    def __init__(self, sqlstate: str, message: str) -> None:
        super().__init__(f"{sqlstate} {message}".strip())
        self.sqlstate = sqlstate
        self.message = message


class NoTlsError(WireError):
    """TLS was asked for, and the server has none."""


class Session:
    """One session; `socket` is the client's end, `backend_pid` what the server says it is.

    `columns` are the names of the columns of the last result.
    """

    def __init__(self, connected: socket.socket) -> None:
        self.socket = connected
        self.backend_pid = 0
        self.columns: list[str] = []
        self._unread = bytearray()

    @classmethod
    def connect(
        cls,
        host: str,
        port: int,
        user: str = "postgres",
        database: str = "postgres",
        *,
        application_name: str = "",
        timeout: float = 10.0,
        tls: bool = False,
    ) -> Session:
        """Open a session and wait until it is ready for a query.

        A `host` with a slash is the directory of a Unix socket; `timeout` (seconds) holds for
        every wait of the session; with `tls` it is encrypted, whoever the server is. Raises
        NoTlsError where the server does not, WireError when it refuses, OSError when there is
        none or it does not answer.
        """
        if "/" in host:
            connected = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            connected.settimeout(timeout)
            address = f"{host}/.s.PGSQL.{port}"
            try:
                connected.connect(address)
            except BaseException:
                connected.close()
                raise
        else:
            connected = socket.create_connection((host, port), timeout)
            # As libpq does: else the second of two small messages waits for a delayed ACK, 40 ms.
            connected.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        session = cls(connected)
        parameters = {"user": user, "database": database}
        if application_name:
            parameters["application_name"] = application_name
        try:
            if tls:
                session._encrypt()
            session.send_startup(parameters)
            session.wait_ready()
        except BaseException:
            session.socket.close()
            raise
        return session

    @property
    def local_port(self) -> int:
        """The client's own TCP port."""
        return int(self.socket.getsockname()[1])

    def is_lost(self) -> bool:
        """Whether the server has ended it; what it says before that is left to be read."""
        poll = select.poll()
        poll.register(self.socket, select.POLLIN)
        try:
            while poll.poll(0):
                data = self.socket.recv(65536)
                if not data:
                    return True
                self._unread += data
        except OSError:
            return True
        return False

    def simple_query(self, sql: str) -> None:
        """Send `sql` (one or more statements) and do not wait for its answer."""
        payload = sql.encode() + b"\0"
        self.socket.sendall(b"Q" + struct.pack("!I", len(payload) + 4) + payload)

    def wait_ready(self) -> list[Row]:
        """Read until the server is ready for the next query; the rows it sent, as text.

        Raises WireError when it reports an error (after the session is ready again, if it goes
        on), OSError when the time is over.
        """
        rows: list[Row] = []
        error: WireError | None = None
        while True:
            try:
                kind, payload = self._read_message()
            except (EOFError, ConnectionResetError):
                if error is None:
                    error = WireError("", "the server closed the connection")
                raise error from None
            if kind == b"Z":
                if error is not None:
                    raise error
                return rows
            if kind == b"R":
                (method,) = struct.unpack_from("!I", payload)
                if method != 0:
                    raise WireError("", f"the server asks for authentication method {method}")
            elif kind == b"K":
                (self.backend_pid,) = struct.unpack_from("!i", payload)
            elif kind == b"T":
                self.columns = list(_parse_names(payload))
            elif kind == b"D":
                rows.append(tuple(_parse_columns(payload)))
            elif kind == b"E":
                fields = _parse_error(payload)
                error = WireError(fields.get("C", ""), fields.get("M", ""))

    def query(self, sql: str) -> list[Row]:
        """Send `sql` and wait for its rows; raises as wait_ready() does."""
        self.simple_query(sql)
        return self.wait_ready()

    def close(self) -> None:
        """End the session cleanly: Terminate, then close, as libpq does."""
        with contextlib.suppress(OSError):
            if isinstance(self.socket, ssl.SSLSocket):
                self.socket.sendall(_TERMINATE)
                # libpq says so (SSL_shutdown), and does not wait for the answer.
                self.socket.setblocking(False)
                self.socket.unwrap()
            else:
                # With the FIN, in one packet. Between two calls another thread of ours may run for
                # so long that the server closes first: libpq is faster.
                self.socket.sendall(_TERMINATE, socket.MSG_MORE)
        self.socket.close()

    def close_after_server(self) -> None:
        """End the session, but leave it to the server to close first.

        Raises OSError when it does not.
        """
        try:
            self.socket.sendall(_TERMINATE)
            while self.socket.recv(65536):
                pass
        finally:
            self.socket.close()

    def abort(self) -> None:
        """Cut the session off with a RST."""
        with contextlib.suppress(OSError):
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.socket.close()

    def kill(self) -> None:
        """Close the socket without a word, as the kernel does for a killed client."""
        self.socket.close()

    def __enter__(self) -> Session:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def send_startup(self, parameters: dict[str, str]) -> None:
        """Send the startup packet and do not wait for its answer."""
        payload = struct.pack("!I", 196608)  # protocol 3.0
        for name, value in parameters.items():
            payload += name.encode() + b"\0" + value.encode() + b"\0"
        payload += b"\0"
        self.socket.sendall(struct.pack("!I", len(payload) + 4) + payload)

    def _encrypt(self) -> None:
        self.socket.sendall(struct.pack("!II", 8, 80877103))  # SSLRequest
        # One byte and not more: what follows is TLS.
        answer = self.socket.recv(1)
        if answer == b"N":
            raise NoTlsError("", "the server does not speak TLS")
        if answer != b"S":
            raise WireError("", "the server closed the connection")
        self.socket = _tls_context().wrap_socket(self.socket)

    def _read_message(self) -> tuple[bytes, bytes]:
        head = self._read_exactly(5)
        (length,) = struct.unpack_from("!I", head, 1)
        return head[:1], self._read_exactly(length - 4)

    def _read_exactly(self, size: int) -> bytes:
        while len(self._unread) < size:
            data = self.socket.recv(65536)
            if not data:
                raise EOFError
            self._unread += data
        taken = bytes(self._unread[:size])
        del self._unread[:size]
        return taken


@functools.cache
def _tls_context() -> ssl.SSLContext:
    """Encryption only: the certificates of throw-away servers are nobody's."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


def _parse_names(payload: bytes) -> Iterator[str]:
    """The column names of a RowDescription."""
    (count,) = struct.unpack_from("!H", payload)
    offset = 2
    for _ in range(count):
        end = payload.index(b"\0", offset)
        yield payload[offset:end].decode("utf-8", "replace")
        offset = end + 1 + 18  # table, column, type, its size, modifier, format


def _parse_columns(payload: bytes) -> Iterator[str | None]:
    """The columns of a DataRow."""
    (count,) = struct.unpack_from("!H", payload)
    offset = 2
    for _ in range(count):
        (length,) = struct.unpack_from("!i", payload, offset)
        offset += 4
        if length < 0:
            yield None
        else:
            yield payload[offset : offset + length].decode("utf-8", "replace")
            offset += length


def _parse_error(payload: bytes) -> dict[str, str]:
    """The fields of an ErrorResponse by their one-letter code."""
    fields = (f.decode("utf-8", "replace") for f in payload.split(b"\0") if f)
    return {field[0]: field[1:] for field in fields}
