#!/usr/bin/env bash
# With `discard=unmap` at the target QEMU's full mirror begins by making all of the target zeroes, whatever is there.
#
# Software: QEMU 7.2.22 (Debian 12's packages of the version below), nbdkit 1.32.5 as the target.
# Behaviour: `blockdev-mirror` with `sync=full` asks nothing of what the target has. Where the target was opened without
# `discard=unmap` only what is a hole at the source is made zeroes, and a target that was equal is equal throughout. With it,
# as one opens a node so that no room is wasted, the first request is zeroes over its whole length, and only then is copied what
# the source has allocated: a target that was equal in every byte is empty for a while.
# Matters to us: a replica that was seeded by hand, or lives on from before, must never be the target of a full mirror (which
# is also what libvirt's blockcopy is): it would cost the newest state of the disk, and a journal would hold it twice.
#
# Output seen:
#   without discard=unmap: equal before; first zeroes: 0x700000 bytes from 0x100000; written: 0x100000 bytes
#   with discard=unmap: equal before; first zeroes: 0x800000 bytes from 0x0; written: 0x100000 bytes
# Ends with 0 where this is still so, with 1 where it has changed. Needs Debian 12, and the libraries of its QEMU.
set -euo pipefail

version=1:7.2+dfsg-7+deb12u18+b3
folder=$(mktemp -d)
started=()
# The daemon before its target, or it waits for that.
end() {
    for ((i = ${#started[@]} - 1; i >= 0; i--)); do
        kill "${started[i]}" 2> /dev/null || true
        wait "${started[i]}" 2> /dev/null || true
    done
    started=()
}
cleanup() { end; rm -rf "$folder"; }
trap cleanup EXIT
cd "$folder"
apt-get download -q "qemu-utils=$version" "qemu-system-common=$version" nbdkit=1.32.5-1 > download.log 2>&1 ||
    { cat download.log; exit 2; }
for package in *.deb; do dpkg-deb -x "$package" unpacked; done
bin=$folder/unpacked/usr/bin
plugins=$folder/unpacked/usr/lib/x86_64-linux-gnu/nbdkit
"$bin/qemu-io" --version | head -n 1

truncate -s 8M source.raw
head -c 1M /dev/urandom | dd of=source.raw conv=notrunc status=none

mirror() {
    cp --sparse=always source.raw target.raw
    cmp source.raw target.raw
    rm -f target.sock qmp.sock target.log
    "$bin/nbdkit" -f -U "$folder/target.sock" --filter="$plugins/filters/nbdkit-log-filter.so" \
        "$plugins/plugins/nbdkit-file-plugin.so" target.raw logfile="$folder/target.log" > /dev/null & started+=($!)
    until [ -S target.sock ]; do sleep 0.1; done
    "$bin/qemu-storage-daemon" --blockdev driver=raw,node-name=source,file.driver=file,file.filename=source.raw \
        --blockdev "driver=nbd,node-name=target,server.type=unix,server.path=target.sock$1" \
        --chardev socket,id=monitor,path=qmp.sock,server=on,wait=off --monitor chardev=monitor > /dev/null & started+=($!)
    until [ -S qmp.sock ]; do sleep 0.1; done
    python3 - << 'PYTHON'
import json, socket
monitor = socket.socket(socket.AF_UNIX)
monitor.connect("qmp.sock")
lines = monitor.makefile("rw")
lines.readline()
mirror = {"job-id": "mirror", "device": "source", "target": "target", "sync": "full"}
for command in [{"execute": "qmp_capabilities"}, {"execute": "blockdev-mirror", "arguments": mirror}]:
    lines.write(json.dumps(command) + "\n")
    lines.flush()
    answer = {"event": ""}
    while "event" in answer:
        answer = json.loads(lines.readline())
    assert "return" in answer, answer
PYTHON
    sleep 2
    end
    # Requests as the target logs them when they begin.
    zeroes=$(sed -nE 's/.* Zero id=[0-9]+ offset=(0x[0-9a-f]+) count=(0x[0-9a-f]+) .*\.\.\.$/\2 bytes from \1/p' target.log | head -n 1)
    written=$(sed -nE 's/.* Write .* count=(0x[0-9a-f]+) .*\.\.\.$/\1/p' target.log |
        { sum=0; while read -r bytes; do sum=$((sum + bytes)); done; printf '0x%x' "$sum"; })
    echo "equal before; first zeroes: $zeroes; written: $written bytes"
}

{
    echo "without discard=unmap: $(mirror '')"
    echo "with discard=unmap: $(mirror ,discard=unmap)"
} | tee seen
diff seen - << 'SEEN' || { echo "this has changed"; exit 1; }
without discard=unmap: equal before; first zeroes: 0x700000 bytes from 0x100000; written: 0x100000 bytes
with discard=unmap: equal before; first zeroes: 0x800000 bytes from 0x0; written: 0x100000 bytes
SEEN
