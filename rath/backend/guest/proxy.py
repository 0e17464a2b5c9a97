"""The filtering proxy of a sandbox whose network is an allow-list: a container's main process, ``python3 -c SOURCE``.

The sandbox's own network has no way out but this program, which also stands on a network that has one. It speaks what
``HTTP_PROXY`` and ``HTTPS_PROXY`` mean: CONNECT, and requests with an absolute ``http://`` URL. One thread, one selector;
only the look-up of a name blocks, so that is done in a thread a name.

What it holds, against a client that tries everything:

- The ``host:port`` of the request line decides, and nothing else. It must be on the list, letter for letter.
- Names not on the list are never looked up: a look-up would carry data out. Those on it are looked up once; the first
  answer stays, so that a name cannot be made to mean another machine later.
- An address that is this machine's own, link-local (where clouds keep their metadata) or multicast is never connected to;
  a private one only if the list has that very address, not a name that means it.
- It is the sandbox's name server as well, and knows no name: programs that go around it learn so at once, and no look-up
  goes further.
- A plain connection carries one request. Its head is written anew, its body measured: what follows goes nowhere.
- Heads, buffers, connections and waiting have limits. A client that misbehaves loses its own connection only.

It has only what Debian's ``python3-minimal`` has. The end of its standard input means that its owner is gone: it exits.
"""

from __future__ import annotations

import collections
import errno
import os
import re
import selectors
import socket
import sys
import threading
import time
from collections.abc import Callable
from functools import partial

__all__ = ["PORT", "Refused", "denial", "never", "private"]

PORT = 3128
NAMES_PORT = 53
HEAD_BYTES = 65_536
BUFFER_BYTES = 65_536
CLIENTS = 256
ADDRESSES = 4
HEAD_S = 20.0
LOOKUP_S = 30.0
CONNECT_S = 15.0
IDLE_S = 900.0
HALF_OPEN_S = 120.0
LINGER_S = 2.0

_REQUEST = re.compile(rb"([A-Z]{1,20}) ([\x21-\x7e]+) HTTP/1\.([01])")
_AUTHORITY = re.compile(rb"([A-Za-z0-9][A-Za-z0-9.-]{0,253})(?::([0-9]{1,5}))?")
_URL = re.compile(rb"(?i:http)://([^/?#]*)([/?][\x21-\x7e]*)?")
_FIELD = re.compile(rb"([!#$%&'*+.^_`|~0-9A-Za-z-]+):[ \t]*([\t\x20-\x7e\x80-\xff]*)")
_CHUNK = re.compile(rb"([0-9A-Fa-f]{1,12})[ \t]*(?:;[\t\x20-\x7e\x80-\xff]*)?\r\n")
# Of one hop only (RFC 9110, 7.6.1), or what this proxy says itself.
_OURS = frozenset((b"connection", b"proxy-connection", b"keep-alive", b"proxy-authorization", b"te", b"upgrade", b"host"))

_NEVER = (
    "0.0.0.0/8", "127.0.0.0/8", "169.254.0.0/16", "100.100.100.200/32", "224.0.0.0/3", "::/127", "fe80::/10", "ff00::/8",
    "fd00:ec2::254/128",
)  # fmt: skip
_PRIVATE = (
    "10.0.0.0/8", "100.64.0.0/10", "172.16.0.0/12", "192.0.0.0/24", "192.168.0.0/16", "198.18.0.0/15", "fc00::/7",
    "fec0::/10",
)  # fmt: skip
# IPv4 addresses in IPv6's clothes: mapped, translated (NAT64), 6to4; and where the four bytes begin.
_CLOTHED = (("::ffff:0:0/96", 12), ("64:ff9b::/96", 12), ("::/96", 12), ("2002::/16", 2))


# -- addresses --------------------------------------------------------------------------------------------------------


def _packed(address: str) -> bytes | None:
    for family in (socket.AF_INET, socket.AF_INET6):
        try:
            return socket.inet_pton(family, address)
        except (OSError, ValueError):
            pass
    return None


def _within(packed: bytes, networks: tuple[str, ...]) -> bool:
    for network in networks:
        base, _, length = network.partition("/")
        begin = _packed(base)
        if begin is None or len(begin) != len(packed):
            continue
        shift = 8 * len(packed) - int(length)
        if int.from_bytes(packed, "big") >> shift == int.from_bytes(begin, "big") >> shift:
            return True
    return False


def _plain(address: str) -> bytes | None:
    packed = _packed(address.partition("%")[0])
    if packed is not None and len(packed) == 16:
        for network, begin in _CLOTHED:
            if _within(packed, (network,)) and not _within(packed, ("::/127",)):
                return packed[begin : begin + 4]
    return packed


def never(address: str) -> bool:
    """Whether an address is one that no allow-list opens: loopback, link-local, cloud metadata, multicast, nonsense."""
    packed = _plain(address)
    return packed is None or _within(packed, _NEVER)


def private(address: str) -> bool:
    """Whether an address is of a private network."""
    packed = _plain(address)
    return packed is None or _within(packed, _PRIVATE)


def _literal(host: str) -> bool:
    return _packed(host) is not None


# -- names ------------------------------------------------------------------------------------------------------------


def denial(query: bytes) -> bytes | None:
    """The answer "there is no such name" to a DNS query (RFC 1035, 4.1); ``None`` to what is none."""
    if len(query) < 12 or query[2] & 0x80 or query[4:6] != b"\0\1":
        return None
    end = 12
    while end < len(query) and query[end]:
        end += query[end] + 1
    if end + 5 > len(query):
        return None
    flags = bytes((0x80 | query[2] & 0x79, 0x83))
    return query[:2] + flags + b"\0\1" + bytes(6) + query[12 : end + 5]


# -- requests ---------------------------------------------------------------------------------------------------------


class Refused(Exception):
    """The answer to a request that is not passed on: a status and one line."""

    def __init__(self, status: int, reason: str) -> None:
        super().__init__(reason)
        self.status = status
        self.reason = reason


def _authority(text: bytes, port: int | None) -> tuple[str, int]:
    match = _AUTHORITY.fullmatch(text)
    if match is None or (match[2] is None and port is None):
        raise Refused(400, "the request names no host and port")
    number = int(match[2]) if match[2] is not None else int(port or 0)
    if not 0 < number < 65_536:
        raise Refused(400, "the request names no port that there is")
    return match[1].decode().lower(), number


class Request:
    """A request's head, understood; ``head`` is what is sent in its place (nothing for CONNECT).

    Raises:
        Refused: it is not what a proxy is asked.
    """

    def __init__(self, head: bytes) -> None:
        lines = head.split(b"\r\n")
        match = _REQUEST.fullmatch(lines[0])
        if match is None:
            raise Refused(400, "this is no HTTP/1 request")
        method, target, minor = match[1], match[2], match[3]
        fields = [_field(line) for line in lines[1:]]
        self.tunnel = method == b"CONNECT"
        self.head = b""
        self.body: Length | Chunked | None = None
        if self.tunnel:
            self.host, self.port = _authority(target, None)
            return
        url = _URL.fullmatch(target)
        if url is None:
            raise Refused(400, "this is a proxy: ask for http://host/path, or CONNECT host:port for https")
        self.host, self.port = _authority(url[1], 80)
        named = [value for name, value in fields if name == b"host"]
        if len(named) > 1 or (named and _authority(named[0], 80) != (self.host, self.port)):
            raise Refused(400, "the Host header is not the host of the request line")
        self.body = _body_of(fields, minor)
        path = url[2] or b"/"
        dropped = _OURS | {
            one.strip().lower() for name, value in fields if name == b"connection" for one in value.split(b",")
        } - {b"content-length", b"transfer-encoding"}
        kept = [b"%s: %s" % field for field in fields if field[0] not in dropped]
        first = b"%s %s%s HTTP/1.%s" % (method, b"" if path.startswith(b"/") else b"/", path, minor)
        self.head = b"\r\n".join([first, b"Host: " + url[1], *kept, b"Connection: close", b"", b""])


def _field(line: bytes) -> tuple[bytes, bytes]:
    match = _FIELD.fullmatch(line)
    if match is None:
        raise Refused(400, "a header is malformed")
    return match[1].lower(), match[2].strip(b" \t")


def _body_of(fields: list[tuple[bytes, bytes]], minor: bytes) -> Length | Chunked:
    lengths = [value for name, value in fields if name == b"content-length"]
    codings = [value for name, value in fields if name == b"transfer-encoding"]
    # Two opinions on where a body ends are how a second request is smuggled past a proxy.
    if (lengths and codings) or len(lengths) > 1 or len(codings) > 1:
        raise Refused(400, "the length of the body is ambiguous")
    if codings:
        if codings[0].lower() != b"chunked" or minor != b"1":
            raise Refused(400, "of transfer codings only 'chunked' can be passed on")
        return Chunked()
    if lengths and re.fullmatch(rb"[0-9]{1,18}", lengths[0]) is None:
        raise Refused(400, "Content-Length is no number")
    return Length(int(lengths[0]) if lengths else 0)


class Length:
    """A body of so many bytes."""

    def __init__(self, left: int) -> None:
        self.left = left

    @property
    def done(self) -> bool:
        return self.left == 0

    def take(self, data: bytes) -> int:
        """How many of these bytes belong to the body."""
        taken = min(self.left, len(data))
        self.left -= taken
        return taken


class Chunked:
    """A body in chunks (RFC 9112, 7.1): followed, to know its end; not changed."""

    def __init__(self) -> None:
        self.done = False
        self._left = 0
        self._line = b""
        self._expects = "size"

    def take(self, data: bytes) -> int:
        """How many of these bytes belong to the body. Raises :class:`Refused` if they cannot."""
        at = 0
        while at < len(data) and not self.done:
            if self._expects == "data":
                step = min(self._left, len(data) - at)
                self._left -= step
                at += step
                if self._left == 0:
                    self._expects = "end of chunk"
                continue
            end = data.find(b"\n", at)
            stop = len(data) if end < 0 else end + 1
            self._line += data[at:stop]
            at = stop
            if len(self._line) > 4_096:
                raise Refused(400, "a line of a chunked body is too long")
            if end >= 0:
                line, self._line = self._line, b""
                self._next(line)
        return at

    def _next(self, line: bytes) -> None:
        if self._expects == "size":
            match = _CHUNK.fullmatch(line)
            if match is None:
                raise Refused(400, "a chunked body is malformed")
            self._left = int(match[1], 16)
            self._expects = "data" if self._left else "trailer"
        elif self._expects == "end of chunk":
            if line != b"\r\n":
                raise Refused(400, "a chunk is longer than it says")
            self._expects = "size"
        elif line == b"\r\n":
            self.done = True
        elif not line.endswith(b"\r\n"):
            raise Refused(400, "a trailer is malformed")


# -- connections ------------------------------------------------------------------------------------------------------


class Client:
    """A connection from the sandbox (``near``), and the one that it is passed on to (``far``)."""

    def __init__(self, near: socket.socket) -> None:
        self.near = near
        self.far: socket.socket | None = None
        self.state = "head"  # → lookup → connect → relay → linger
        self.deadline = time.monotonic() + HEAD_S
        self.request: Request | None = None
        self.addresses: list[str] = []
        self.received = b""
        self.to_far = b""
        self.to_near = b""
        self.near_ended = False
        self.far_ended = False
        self.far_told = False
        self.near_told = False

    @property
    def reads_more(self) -> bool:
        """Whether what the client may still send has a place to go."""
        body = self.request.body if self.request is not None else None
        return not self.near_ended and (body is None or not body.done)


class Proxy:
    """All connections, and what is known of names."""

    def __init__(
        self, allowed: frozenset[tuple[str, int]], listener: socket.socket, names: socket.socket | None, peers: str
    ) -> None:
        self.allowed = allowed
        self.names = names
        self.peers = peers
        self.listener = listener
        self.selector = selectors.DefaultSelector()
        self.clients: set[Client] = set()
        self.pinned: dict[str, list[str]] = {}
        self.waiting: dict[str, list[Client]] = {}
        self.answers: collections.deque[tuple[str, list[str]]] = collections.deque()
        self.woken, self.waker = socket.socketpair()
        for one in (listener, self.woken, self.waker):
            one.setblocking(False)
        self.selector.register(self.woken, selectors.EVENT_READ)
        self.selector.register(listener, selectors.EVENT_READ)
        if names is not None:
            names.setblocking(False)
            self.selector.register(names, selectors.EVENT_READ)

    def serve(self, owner: int) -> None:
        """Until ``owner``, a descriptor, ends."""
        self.selector.register(owner, selectors.EVENT_READ)
        swept = time.monotonic()
        while True:
            for key, mask in self.selector.select(1.0):
                if key.fileobj == owner:
                    if not os.read(owner, 4_096):
                        return
                elif key.fileobj is self.listener:
                    self.accept()
                elif key.fileobj is self.names:
                    self.deny_name(self.names)
                elif key.fileobj is self.woken:
                    self.woken.recv(4_096)
                    self.take_answers()
                elif key.data in self.clients:
                    self.guarded(key.data, partial(self.happened, one=key.fileobj, mask=mask))
            now = time.monotonic()
            if now - swept >= 1.0:
                swept = now
                for client in [one for one in self.clients if one.deadline < now]:
                    self.guarded(client, self.overdue)

    def guarded(self, client: Client, step: Callable[[Client], None]) -> None:
        """A step of one client, whose failure is that client's only."""
        try:
            step(client)
            if client in self.clients:
                self.watch(client)
        except Refused as refused:
            try:
                self.refuse(client, refused)
            except OSError:
                self.drop(client)
        except Exception:  # whatever one client can do to the program must not reach the others
            self.drop(client)

    def deny_name(self, names: socket.socket) -> None:
        try:
            query, peer = names.recvfrom(4_096)
            answer = denial(query)
            if answer is not None:
                names.sendto(answer, peer)
        except OSError:  # of one datagram; the next may be better
            pass

    def accept(self) -> None:
        try:
            near, peer = self.listener.accept()
        except OSError:
            return
        near.setblocking(False)
        packed = _packed(peer[0])
        # Who stands on the other network of this container could send here, too.
        if packed is None or not _within(packed, (self.peers,)):
            near.close()
            return
        client = Client(near)
        self.clients.add(client)
        if len(self.clients) >= CLIENTS:
            self.selector.unregister(self.listener)
        self.guarded(client, lambda _: None)

    def drop(self, client: Client) -> None:
        if client not in self.clients:
            return
        full = len(self.clients) >= CLIENTS
        self.clients.discard(client)
        for one in (client.near, client.far):
            if one is not None:
                self.interest(one, 0, None)
                one.close()
        if full:
            self.selector.register(self.listener, selectors.EVENT_READ)

    def interest(self, one: socket.socket, mask: int, client: Client | None) -> None:
        key = self.selector.get_map().get(one.fileno()) if one.fileno() >= 0 else None
        if key is None:
            if mask:
                self.selector.register(one, mask, client)
        elif not mask:
            self.selector.unregister(one)
        elif key.events != mask:
            self.selector.modify(one, mask, client)

    def watch(self, client: Client) -> None:
        """Look at what a client can go on with, and at nothing else."""
        near = far = 0
        if client.state in ("head", "linger") and not client.near_ended:
            near = selectors.EVENT_READ
        if client.state == "connect":
            far = selectors.EVENT_WRITE
        if client.state == "relay":
            if client.reads_more and len(client.to_far) < BUFFER_BYTES:
                near |= selectors.EVENT_READ
            if not client.far_ended and len(client.to_near) < BUFFER_BYTES:
                far |= selectors.EVENT_READ
            if client.to_far:
                far |= selectors.EVENT_WRITE
        if client.to_near:
            near |= selectors.EVENT_WRITE
        self.interest(client.near, near, client)
        if client.far is not None:
            self.interest(client.far, far, client)

    def happened(self, client: Client, one: object, mask: int) -> None:
        if one is client.near:
            if mask & selectors.EVENT_WRITE:
                client.to_near = _send(client.near, client.to_near)
            if mask & selectors.EVENT_READ:
                self.read_near(client)
        elif client.state == "connect":
            self.connected(client)
        else:
            if mask & selectors.EVENT_WRITE and client.far is not None:
                client.to_far = _send(client.far, client.to_far)
            if mask & selectors.EVENT_READ:
                self.read_far(client)
        if client.state == "relay":
            self.settle(client)
        elif client.state == "linger" and not client.to_near:
            if client.near_ended:
                self.drop(client)
            elif not client.near_told:
                client.near_told = True
                client.near.shutdown(socket.SHUT_WR)

    def overdue(self, client: Client) -> None:
        if client.state == "head":
            raise Refused(408, "the request did not come in time")
        if client.state == "lookup" and client.request is not None:
            raise Refused(504, client.request.host + " could not be looked up in time")
        if client.state == "connect":
            self.next_address(client, "no answer")
            return
        self.drop(client)

    # -- the request --------------------------------------------------------------------------------------------------

    def read_near(self, client: Client) -> None:
        data = _receive(client.near)
        if client.state == "linger":
            client.near_ended = data == b""
        elif client.state == "head":
            if data == b"":
                self.drop(client)
            elif data:
                client.received += data
                self.read_head(client)
        elif data == b"":
            client.near_ended = True
        elif data:
            self.forward(client, data)

    def read_head(self, client: Client) -> None:
        end = client.received.find(b"\r\n\r\n")
        if end < 0 and len(client.received) <= HEAD_BYTES:
            return
        if end < 0 or end > HEAD_BYTES:
            raise Refused(431, "the head of the request is too long")
        request = client.request = Request(client.received[:end])
        client.received = client.received[end + 4 :]
        if (request.host, request.port) not in self.allowed:
            where = f"{request.host[:100]}:{request.port}"
            raise Refused(403, f"{where} is not on this sandbox's allow-list (BackendSandboxSpec.network)")
        client.state, client.deadline = "lookup", time.monotonic() + LOOKUP_S
        self.look_up(client, request.host)

    def look_up(self, client: Client, host: str) -> None:
        if _literal(host):
            self.connect(client, [host])
        elif host in self.pinned:
            self.connect(client, self.pinned[host])
        elif host in self.waiting:
            self.waiting[host].append(client)
        else:
            try:
                threading.Thread(target=self.ask_name_server, args=(host,), daemon=True).start()
            except RuntimeError:  # no thread to be had
                raise Refused(503, "too many look-ups are under way") from None
            self.waiting[host] = [client]

    def ask_name_server(self, host: str) -> None:
        found: list[str] = []
        try:
            # As bytes: for text, Python would load a codec that a minimal one lacks.
            for answer in socket.getaddrinfo(host.encode(), None, 0, socket.SOCK_STREAM):
                address = str(answer[4][0])
                if address not in found:
                    found.append(address)
        except (OSError, ValueError):
            pass
        self.answers.append((host, found))
        try:
            self.waker.send(b"!")
        except OSError:  # full: it is awake
            pass

    def take_answers(self) -> None:
        while self.answers:
            host, found = self.answers.popleft()
            if found:
                self.pinned[host] = found
            for client in self.waiting.pop(host, ()):
                if client in self.clients and client.state == "lookup":
                    self.guarded(client, partial(self.connect, addresses=found))

    # -- the other end ------------------------------------------------------------------------------------------------

    def connect(self, client: Client, addresses: list[str]) -> None:
        host = client.request.host if client.request is not None else ""
        if not addresses:
            raise Refused(502, host[:100] + " has no address that could be found")
        open_ones = [one for one in addresses if not never(one) and (not private(one) or one == host)]
        if not open_ones:
            where = f"{host[:100]} is at a private or local address"
            raise Refused(403, f"{where}: an allow-list opens a private one only by the address itself")
        client.addresses = open_ones[:ADDRESSES]
        self.next_address(client, "")

    def next_address(self, client: Client, reason: str) -> None:
        request = client.request
        assert request is not None
        while client.addresses:
            if client.far is not None:
                self.interest(client.far, 0, None)
                client.far.close()
                client.far = None
            address = client.addresses.pop(0)
            far = client.far = socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET, socket.SOCK_STREAM)
            far.setblocking(False)
            code = far.connect_ex((address, request.port))
            if code in (0, errno.EINPROGRESS):
                client.state, client.deadline = "connect", time.monotonic() + CONNECT_S
                return
            reason = os.strerror(code)
        raise Refused(502, f"{request.host[:100]}:{request.port} cannot be reached: {reason}")

    def connected(self, client: Client) -> None:
        assert client.far is not None
        assert client.request is not None
        code = client.far.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if code:
            self.next_address(client, os.strerror(code))
            return
        for one in (client.near, client.far):
            one.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        client.state = "relay"
        client.to_far = client.request.head
        if client.request.tunnel:
            client.to_near = b"HTTP/1.1 200 Connection established\r\n\r\n"
        early, client.received = client.received, b""
        self.forward(client, early)

    def forward(self, client: Client, data: bytes) -> None:
        body = client.request.body if client.request is not None else None
        client.to_far += data if body is None else data[: body.take(data)]

    def read_far(self, client: Client) -> None:
        assert client.far is not None
        data = _receive(client.far)
        if data == b"":
            client.far_ended = True
        elif data:
            client.to_near += data

    def settle(self, client: Client) -> None:
        """After any step of a relay: pass ends on, and see whether it is over."""
        assert client.far is not None
        assert client.request is not None
        now = time.monotonic()
        client.deadline = now + (HALF_OPEN_S if client.near_ended or client.far_ended else IDLE_S)
        if client.near_ended and not client.to_far and not client.far_told:
            client.far_told = True
            client.far.shutdown(socket.SHUT_WR)
        if not client.far_ended or client.to_near:
            return
        if not client.near_told:
            client.near_told = True
            client.near.shutdown(socket.SHUT_WR)
        if not client.request.tunnel:
            # Closed with bytes unread, the connection would be reset, and the answer lost on its way.
            self.linger(client)
        elif client.near_ended:
            self.drop(client)

    def linger(self, client: Client) -> None:
        if client.far is not None:
            self.interest(client.far, 0, None)
            client.far.close()
            client.far = None
        client.state, client.deadline = "linger", time.monotonic() + LINGER_S

    def refuse(self, client: Client, refused: Refused) -> None:
        """Answer with an error. The reason stands in the status line, which is what pip, git and curl show of it."""
        if client.state in ("relay", "linger"):
            self.drop(client)
            return
        text = (refused.reason + "\n").encode("ascii", "replace")
        client.to_near = (
            b"HTTP/1.1 %d %s\r\nContent-Type: text/plain\r\nContent-Length: %d\r\nConnection: close\r\n\r\n%s"
            % (refused.status, text.strip(), len(text), text)
        )
        client.received = client.to_far = b""
        self.linger(client)
        self.watch(client)


def _receive(one: socket.socket) -> bytes | None:
    """Bytes; none at the end; ``None`` if there is nothing yet."""
    try:
        return one.recv(BUFFER_BYTES)
    except (BlockingIOError, InterruptedError):
        return None


def _send(one: socket.socket, data: bytes) -> bytes:
    """What is left of ``data``."""
    try:
        return data[one.send(data) :]
    except (BlockingIOError, InterruptedError):
        return data


def _name_server(address: str) -> socket.socket | None:
    names = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    try:
        names.bind((address, NAMES_PORT))
    except OSError:  # an engine that keeps low ports for root: then look-ups end at a closed port
        names.close()
        return None
    return names


def _main(arguments: list[str]) -> None:
    """``ADDRESS/PREFIX host:port …``: where to listen, for whom, and what is allowed."""
    network, *entries = arguments
    address = network.partition("/")[0]
    allowed = set()
    for entry in entries:
        host, _, port = entry.rpartition(":")
        allowed.add((host.lower(), int(port)))
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.bind((address, PORT))
    listener.listen(CLIENTS)
    proxy = Proxy(frozenset(allowed), listener, _name_server(address), network)
    os.write(1, b"ready %d\n" % listener.getsockname()[1])
    proxy.serve(0)
    os._exit(0)  # a look-up may still be under way


if __name__ == "__main__":
    _main(sys.argv[1:])
