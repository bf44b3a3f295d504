#!/usr/bin/env bash
# ext4 trims free space once as long as it is mounted, whatever has become of the discards.
#
# Software: the kernel's ext4 (seen with Linux 6.18.44), fstrim of util-linux 2.38.1 (Debian 12).
# Behaviour: the second `fstrim` of a mounted file system says that 0 bytes were trimmed and sends no discard, for each group
# of blocks is noted in memory as trimmed until something in it is freed again. After it was mounted anew all is trimmed.
# Matters to us: discards are lost while a VM is protected in place (qemu-mirror-answers-discard.sh). A guest that has trimmed
# meanwhile does not do so again after the protection has ended, unless its file systems were mounted anew.
#
# Output seen:
#   229.9 MiB (241067008 bytes) trimmed
#   0 B (0 bytes) trimmed
#   229.9 MiB (241067008 bytes) trimmed
# Ends with 0 where this is still so, with 1 where it has changed. Needs root and a loop device.
set -euo pipefail

folder=$(mktemp -d)
trap 'umount "$folder/mnt" 2> /dev/null || true; rm -rf "$folder"' EXIT
mkdir "$folder/mnt"
truncate -s 256M "$folder/disk"
mkfs.ext4 -q "$folder/disk"
trim() { fstrim --verbose "$folder/mnt" | sed 's/^[^:]*: //'; }
mount -o loop "$folder/disk" "$folder/mnt"
first=$(trim)
second=$(trim)
umount "$folder/mnt"
mount -o loop "$folder/disk" "$folder/mnt"
third=$(trim)
printf '%s\n' "$first" "$second" "$third"
[ "$first" = "$third" ] && [ "$second" = "0 B (0 bytes) trimmed" ] || { echo "this has changed"; exit 1; }
