#!/usr/bin/env bash
# A discard below QEMU's mirror with copy-mode=write-blocking is answered as done, and done nowhere.
#
# Software: QEMU 7.2.22 (Debian 12's packages of the versions below), the same with QEMU 10.0.2 (bookworm-backports).
# Behaviour: while `blockdev-mirror` with `copy-mode=write-blocking` runs, a client's discard succeeds at once, although
# every node was opened with `discard=unmap`; neither the source nor the target gives back a block. Writes arrive at both.
# Once the job is cancelled the same discard frees the blocks.
# Matters to us: a guest's TRIM is lost while a VM is protected in place, and its image grows.
#
# Output seen:
#   16384 blocks before, 16384 after a discard of half under the mirror, 8192 after the same without it
# Ends with 0 where this is still so, with 1 where it has changed. Needs Debian 12, and the libraries of its QEMU.
set -euo pipefail

version=1:7.2+dfsg-7+deb12u18+b3
folder=$(mktemp -d)
daemon=
trap '[ -z "$daemon" ] || kill "$daemon"; rm -rf "$folder"' EXIT
cd "$folder"
apt-get download -q "qemu-utils=$version" "qemu-system-common=$version" > download.log 2>&1 || { cat download.log; exit 2; }
for package in *.deb; do dpkg-deb -x "$package" unpacked; done
bin=$folder/unpacked/usr/bin
"$bin/qemu-io" --version | head -n 1

head -c 8M /dev/urandom > source.raw
truncate -s 8M target.raw
node() { echo "driver=raw,node-name=$1,discard=unmap,file.driver=file,file.filename=$1.raw,file.discard=unmap"; }
"$bin/qemu-storage-daemon" --blockdev "$(node source)" --blockdev "$(node target)" \
    --nbd-server addr.type=unix,addr.path=nbd.sock --export type=nbd,id=e,node-name=source,name=disk,writable=on \
    --chardev socket,id=monitor,path=qmp.sock,server=on,wait=off --monitor chardev=monitor &
daemon=$!
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
blocks() { stat -c %b "$1.raw"; }
discard() { "$bin/qemu-io" -f raw -d unmap -c 'discard 0 4M' "$@" 'nbd+unix:///disk?socket=nbd.sock' > /dev/null; }

before=$(blocks source)
tell '{"execute": "blockdev-mirror", "arguments": {"job-id": "mirror", "device": "source", "target": "target",
       "sync": "none", "copy-mode": "write-blocking"}}'
discard -c 'write -P 7 4M 64k' -c flush
under=$(blocks source)
written=$(blocks target)
tell '{"execute": "block-job-cancel", "arguments": {"device": "mirror"}}'
sleep 1
discard
after=$(blocks source)
echo "$before blocks before, $under after a discard of half under the mirror, $after after the same without it"
[ "$written" -gt 0 ] || { echo "the write did not reach the target either"; exit 1; }
[ "$before" = "$under" ] && [ "$after" -lt "$before" ] || { echo "this has changed"; exit 1; }
