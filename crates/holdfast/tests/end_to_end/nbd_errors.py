# What the protocol says of requests that cannot be served, asked with libnbd, whose own checks are off.
# The socket is in SOCKET.
import os

import nbd


def connect(structured=True, contexts=()):
    h = nbd.NBD()
    h.set_strict_mode(0)
    h.set_request_structured_replies(structured)
    for context in contexts:
        h.add_meta_context(context)
    h.set_export_name("vda")
    h.connect_unix(os.environ["SOCKET"])
    return h


def refused(what, expected, call):
    try:
        call()
    except nbd.Error as error:
        assert error.errno == expected, f"{what}: {error.errno} where {expected} is due"
    else:
        raise AssertionError(f"{what} was not refused")


for structured in (True, False):
    h = connect(structured)
    size = h.get_size()
    refused("read past the end", "EINVAL", lambda: h.pread(512, size))
    refused("read over the end", "EINVAL", lambda: h.pread(1024, size - 512))
    refused("write past the end", "ENOSPC", lambda: h.pwrite(b"x" * 512, size))
    refused("zero past the end", "ENOSPC", lambda: h.zero(512, size))
    refused("trim past the end", "EINVAL", lambda: h.trim(512, size))
    refused("cache past the end", "EINVAL", lambda: h.cache(512, size))
    refused("unknown flags", "EINVAL", lambda: h.pwrite(b"x" * 512, 0, 1 << 12))
    # The connection is whole after each of them.
    h.pwrite(b"a" * 512, 0, nbd.CMD_FLAG_FUA)
    assert h.pread(512, 0) == b"a" * 512
    # Nothing has to be aligned.
    h.pwrite(b"bcd", 777)
    assert h.pread(5, 776) == b"\0bcd\0" or h.pread(3, 777) == b"bcd"
    # The largest request, and one that is larger.
    largest = h.get_block_size(nbd.SIZE_MAXIMUM) if structured else 64 << 20
    assert largest == 64 << 20, largest
    h.shutdown()

h = connect()
assert h.can_cache() and h.can_fast_zero() and h.can_df() and h.can_multi_conn()
h.cache(4096, 0)
h.pwrite(b"z" * 65536, 0)
h.zero(65536, 0, nbd.CMD_FLAG_FAST_ZERO)
assert h.pread(65536, 0) == bytes(65536)
h.pwrite(b"n" * 65536, 0)
h.zero(65536, 0, nbd.CMD_FLAG_NO_HOLE)
assert h.pread(65536, 0) == bytes(65536)
h.trim(65536, 0)
assert h.pread(65536, 0) == bytes(65536)
h.shutdown()

# A request of the largest size, both ways.
h = connect()
if h.get_size() >= 64 << 20:
    data = os.urandom(1 << 20) * 64
    h.pwrite(data, 0)
    assert h.pread(64 << 20, 0) == data
h.shutdown()

# Two connections see each other's writes as soon as those are acknowledged.
one, two = connect(), connect()
for number in range(200):
    one.pwrite(number.to_bytes(8, "little"), 4096)
    assert two.pread(8, 4096) == number.to_bytes(8, "little")
one.shutdown()
two.shutdown()

# Both contexts, also at once; and what was written and not yet acknowledged at the other side is told of.
h = connect(contexts=("base:allocation", "holdfast:unsent"))
seen = {}


def told(context, offset, entries, error):
    seen.setdefault(context, []).append((offset, list(entries)))


assert h.can_meta_context("base:allocation") and h.can_meta_context("holdfast:unsent")
h.block_status(h.get_size() if h.get_size() < 1 << 30 else 1 << 30, 0, told)
for context in ("base:allocation", "holdfast:unsent"):
    lengths = sum(sum(entries[::2]) for _, entries in seen[context])
    assert lengths == min(h.get_size(), 1 << 30), (context, seen[context])
one_entry = {}
h.block_status(65536, 0, lambda c, o, e, err: one_entry.setdefault(c, list(e)), nbd.CMD_FLAG_REQ_ONE)
assert all(len(entries) == 2 for entries in one_entry.values()), one_entry
h.shutdown()

# Exports by list, and one that is not there.
h = nbd.NBD()
h.set_opt_mode(True)
h.connect_unix(os.environ["SOCKET"])
names = []
h.opt_list(lambda name, description: names.append(name))
assert names == ["vda"], names
h.set_export_name("nowhere")
refused("an export that is not there", "ENOENT", h.opt_go)
h.opt_abort()
print("all as the protocol says")
