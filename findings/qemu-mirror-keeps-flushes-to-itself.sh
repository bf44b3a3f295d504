#!/usr/bin/env bash
# The target of QEMU's mirror with copy-mode=write-blocking never learns what its client wanted to be durable.
#
# Software: QEMU 7.2.22 (Debian 12's packages of the version below), nbdkit 1.32.5 as the target.
# Behaviour: while the job runs every write waits for the target, which looks as if the two sides were equally safe. But a
# client's flush is answered by the source alone, and a write that was to be durable at once (FUA) arrives at the target
# without that flag and without a flush after it, though the target offers both. The only flushes the target gets are the job's own, at
# its beginning and at its end.
# Matters to us: what the tap gets may count as durable only once we have made it durable ourselves, without being asked.
#
# Output seen:
#   the client: 1 write, 1 flush, 1 write with FUA, 1 flush; the target: 2 writes, 0 with FUA, 0 flushes; at the job's end: 1 flush
# Ends with 0 where this is still so, with 1 where it has changed. Needs Debian 12, and the libraries of its QEMU.
set -euo pipefail

version=1:7.2+dfsg-7+deb12u18+b3
folder=$(mktemp -d)
started=()
cleanup() { for pid in "${started[@]}"; do kill "$pid" 2> /dev/null || true; done; rm -rf "$folder"; }
trap cleanup EXIT
cd "$folder"
apt-get download -q "qemu-utils=$version" "qemu-system-common=$version" nbdkit=1.32.5-1 > download.log 2>&1 ||
    { cat download.log; exit 2; }
for package in *.deb; do dpkg-deb -x "$package" unpacked; done
bin=$folder/unpacked/usr/bin
plugins=$folder/unpacked/usr/lib/x86_64-linux-gnu/nbdkit
"$bin/qemu-io" --version | head -n 1

"$bin/nbdkit" -f -U "$folder/target.sock" --filter="$plugins/filters/nbdkit-log-filter.so" \
    "$plugins/plugins/nbdkit-memory-plugin.so" 8M logfile="$folder/target.log" & started+=($!)
truncate -s 8M source.raw
until [ -S target.sock ]; do sleep 0.1; done
"$bin/qemu-storage-daemon" --blockdev driver=raw,node-name=source,file.driver=file,file.filename=source.raw \
    --blockdev driver=nbd,node-name=target,server.type=unix,server.path=target.sock \
    --nbd-server addr.type=unix,addr.path=nbd.sock --export type=nbd,id=e,node-name=source,name=disk,writable=on \
    --chardev socket,id=monitor,path=qmp.sock,server=on,wait=off --monitor chardev=monitor & started+=($!)
until [ -S qmp.sock ] && [ -S nbd.sock ]; do sleep 0.1; done

tell() {
    python3 - "$1" << 'PYTHON'
import json, socket, sys
monitor = socket.socket(socket.AF_UNIX)
monitor.connect("qmp.sock")
lines = monitor.makefile("rw")
lines.readline()
for command in [{"execute": "qmp_capabilities"}, json.loads(sys.argv[1])]:
    lines.write(json.dumps(command) + "\n")
    lines.flush()
    answer = {"event": ""}
    while "event" in answer:
        answer = json.loads(lines.readline())
    assert "return" in answer, answer
PYTHON
}
# How many of the target's requests since the last look are of a kind.
seen=0
count() { tail -n "+$((seen + 1))" target.log | grep -c "$1" || true; }
look() { seen=$(wc -l < target.log); }

grep -q 'Connect .* flush=1 .* fua=2' target.log || { echo "the target was to offer flushes and FUA"; exit 2; }
tell '{"execute": "blockdev-mirror", "arguments": {"job-id": "mirror", "device": "source", "target": "target",
       "sync": "none", "copy-mode": "write-blocking"}}'
sleep 1
look
"$bin/qemu-io" -f raw -c 'write -P 7 0 64k' -c flush -c 'write -f -P 8 64k 64k' -c flush \
    'nbd+unix:///disk?socket=nbd.sock' > /dev/null
sleep 1
during="$(count 'Write id=.*fua=') writes, $(count 'Write id=.*fua=1') with FUA, $(count 'Flush id=.*\.\.\.$') flushes"
look
tell '{"execute": "block-job-cancel", "arguments": {"device": "mirror"}}'
sleep 1
row="the client: 1 write, 1 flush, 1 write with FUA, 1 flush; the target: $during; at the job's end: $(count 'Flush id=.*\.\.\.$') flush"
echo "$row"
[ "$row" = "the client: 1 write, 1 flush, 1 write with FUA, 1 flush; the target: 2 writes, 0 with FUA, 0 flushes; at the \
job's end: 1 flush" ] || { echo "this has changed"; exit 1; }
