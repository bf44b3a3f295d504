#!/usr/bin/env bash
# e2fsck -fn ends with 0 on an ext4 whose journal it passes over, so it says nothing of what a guest will find there.
#
# Software: e2fsprogs 1.47.0 (Debian 12's package of the version below).
# Behaviour: a file system as a running VM leaves it at any moment has blocks that are in its journal only. A forced check that
# changes nothing skips the journal with a warning, checks what lies below it, and ends with 0, as for one that was unmounted;
# whoever reads files from it then (debugfs does so as well) is given their older blocks. The check that may change things
# replays the journal, so that files read otherwise than before, and ends with 0 too, not with 1 ("errors were corrected").
# Matters to us: a checkpoint is looked at through a writable image, on which the journal is replayed first; that `needs_recovery`
# is clear is what tells an application-consistent checkpoint from any other.
#
# Output seen:
#   needs_recovery: yes; e2fsck -fn: 0; the file: old; e2fsck -fy: 0; needs_recovery: no; the file: new
# Ends with 0 where this is still so, with 1 where it has changed. Needs Debian 12.
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
apt-get download -q e2fsprogs=1.47.0-2+b2 > download.log 2>&1 || { cat download.log; exit 2; }
dpkg-deb -x ./*.deb unpacked
bin=$folder/unpacked/sbin
export MKE2FS_CONFIG=$folder/unpacked/etc/mke2fs.conf
"$bin/e2fsck" -V 2>&1 | head -n 1

block_bytes=4096
truncate -s 64M disk
"$bin/mke2fs" -q -t ext4 -O ^metadata_csum -b $block_bytes disk
fill() { python3 -c "print('$1\\n' * 1024, end='')" > "$1"; }
fill old
fill new
ask() { "$bin/debugfs" -R "$1" disk 2> /dev/null; }
"$bin/debugfs" -w -R 'write old file' disk > /dev/null 2>&1
# A guest that has journalled the file's block and was stopped before it came to its place.
printf 'jo\njw -b %s new\njc\n' "$(ask 'blocks file' | tr -d ' ')" > commands
"$bin/debugfs" -w -f commands disk > /dev/null 2>&1

status_of() { local status=0; "$bin/e2fsck" "$1" disk > check.log 2>&1 || status=$?; echo "$status"; }
is_needed() { if ask 'features' | grep -q needs_recovery; then echo yes; else echo no; fi; }
content() { ask 'cat file' | head -n 1; }
row="needs_recovery: $(is_needed); e2fsck -fn: $(status_of -fn); the file: $(content)"
row="$row; e2fsck -fy: $(status_of -fy); needs_recovery: $(is_needed); the file: $(content)"
echo "$row"
[ "$row" = "needs_recovery: yes; e2fsck -fn: 0; the file: old; e2fsck -fy: 0; needs_recovery: no; the file: new" ] ||
    { echo "this has changed"; exit 1; }
