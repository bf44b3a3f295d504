#!/usr/bin/env bash
# QEMU's NBD servers lock an image so that a VM will not start on it, and let every other writer in.
#
# Software: QEMU 7.2.22 (Debian 12's packages of the version below), the same with qemu-nbd 10.0.2 (bookworm-backports).
# Behaviour: a VM's disk keeps `qemu-io` and `qemu-nbd` away from its image with `Failed to get "write" lock`. An image that
# `qemu-nbd` or `qemu-storage-daemon` exports for writing does not, although they lock it too: a second server exports the
# same image and `qemu-io` writes to it, both without a word; the first client reads what neither it nor its server wrote.
# Only a VM is refused beside them.
# Matters to us: that an image could be locked as QEMU does it says nothing of an NBD server that has it open, so a disk that
# is served by one is no disk to replicate, and none that is served by us is left to QEMU's locks alone.
#
# Output seen:
#   beside a VM: qemu-io is refused, a second qemu-nbd is refused
#   beside qemu-nbd: qemu-io writes, a second qemu-nbd serves, a VM is refused
#   beside qemu-storage-daemon: qemu-io writes, a second qemu-nbd serves, a VM is refused
# Ends with 0 where this is still so, with 1 where it has changed. Needs Debian 12, and the libraries of its QEMU.
set -euo pipefail

version=1:7.2+dfsg-7+deb12u18+b3
folder=$(mktemp -d)
started=()
cleanup() { for pid in "${started[@]}"; do kill "$pid" 2> /dev/null || true; done; rm -rf "$folder"; }
trap cleanup EXIT
cd "$folder"
apt-get download -q "qemu-utils=$version" "qemu-system-common=$version" "qemu-system-x86=$version" seabios > download.log 2>&1 ||
    { cat download.log; exit 2; }
for package in *.deb; do dpkg-deb -x "$package" unpacked; done
bin=$folder/unpacked/usr/bin
"$bin/qemu-nbd" --version | head -n 1

truncate -s 8M disk.raw
vm=("$bin/qemu-system-x86_64" -L unpacked/usr/share/seabios -M microvm -nodefaults -display none -S -accel tcg
    -drive file=disk.raw,format=raw,if=none,id=d -device virtio-blk-device,drive=d)
start() { "$@" > /dev/null 2>&1 & started+=($!); }
end() { kill "${started[-1]}"; wait "${started[-1]}" 2> /dev/null || true; unset 'started[-1]'; }
# Whether a server or a VM stands: it goes on until it is ended.
stands() { start "$@"; sleep 2; kill -0 "${started[-1]}" 2> /dev/null && end; }
io() { "$bin/qemu-io" -f raw -c "$1" "$2" 2> error.log; }
said() { if "${@:3}" > /dev/null 2>&1; then echo "$1"; else echo "$2"; fi; }
others() {
    said 'qemu-io writes' 'qemu-io is refused' io 'write -P 7 0 4k' disk.raw
    said 'a second qemu-nbd serves' 'a second qemu-nbd is refused' \
        stands "$bin/qemu-nbd" -f raw -k "$folder/second.sock" -x disk --persistent disk.raw
    [ "$1" = vm ] || said 'a VM starts' 'a VM is refused' stands "${vm[@]}"
}
row() { echo "beside $1: $(others "$2" | paste -sd , | sed 's/,/, /g')"; }

start "${vm[@]}"
sleep 2
row 'a VM' vm | tee -a seen
end
start "$bin/qemu-nbd" -f raw -k "$folder/first.sock" -x disk --persistent disk.raw
sleep 1
io 'write -P 1 0 4k' 'nbd+unix:///disk?socket=first.sock' > /dev/null
row qemu-nbd server | tee -a seen
io 'read -P 7 0 4k' 'nbd+unix:///disk?socket=first.sock' > /dev/null || { echo "the client does not read it"; exit 1; }
end
start "$bin/qemu-storage-daemon" --blockdev driver=raw,node-name=d,file.driver=file,file.filename=disk.raw \
    --nbd-server addr.type=unix,addr.path=daemon.sock --export type=nbd,id=e,node-name=d,name=disk,writable=on
sleep 1
row qemu-storage-daemon server | tee -a seen
end
diff seen - << 'SEEN' || { echo "this has changed"; exit 1; }
beside a VM: qemu-io is refused, a second qemu-nbd is refused
beside qemu-nbd: qemu-io writes, a second qemu-nbd serves, a VM is refused
beside qemu-storage-daemon: qemu-io writes, a second qemu-nbd serves, a VM is refused
SEEN
