#!/bin/busybox sh
# The guest's first process. What it says on the console is read by the demo and the tests:
#   FSCK CLEAN | FSCK n     the file system was found clean, or e2fsck's exit code
#   LAST n gaps g           the last good record, and how many are missing before it
#   READY                   the guest does its work from here on
#   TICK n                  record n is on the disk (written and fsynced)
#   LOAD n                  round n of the load is on the disk
#   DONE                    it has stopped by itself, its file system unmounted
/bin/busybox --install -s /bin
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev
option() { sed -n "s/.*holdfast\.$1=\([^ ]*\).*/\1/p" /proc/cmdline; }
depth=$(option depth)
while read -r module; do
    case $module in
        virtio_blk) insmod /virtio_blk.ko ${depth:+queue_depth=$depth} ;;
        *) insmod "/$module.ko" ;;
    esac
done < /modules
disk=/dev/vda
server=$(option nbd)
if [ -n "$server" ]; then
    disk=/dev/nbd0
    while read -r module; do insmod "/$module.ko" 2> /dev/null; done < /modules.nbd
    tries=0
    while [ ! -e /sys/class/net/eth0 ] && [ $tries -lt 100 ]; do usleep 50000; tries=$((tries + 1)); done
    ip addr add 10.0.2.15/24 dev eth0
    ip link set eth0 up
    /usr/sbin/nbd-client -N vda "$server" 10809 $disk -timeout 60
fi
tries=0
while [ ! -b $disk ] && [ $tries -lt 100 ]; do usleep 50000; tries=$((tries + 1)); done

# The first pass replays the file system's own journal, as any boot would; the second looks for harm.
/sbin/e2fsck -p $disk > /tmp/fsck 2>&1
code=$?
[ $code -le 1 ] && { /sbin/e2fsck -fn $disk >> /tmp/fsck 2>&1; code=$?; }
if [ $code -eq 0 ]; then echo "FSCK CLEAN"; else cat /tmp/fsck; echo "FSCK $code"; fi
mount -t ext4 $disk /mnt || { echo "DONE cannot mount"; poweroff -f; }

# The last record whose checksum holds is found from the end; a torn one may follow it.
n=0
gaps=0
if [ -s /mnt/ticks ]; then
    tail -n 3 /mnt/ticks > /tmp/tail
    while read -r number time sum; do
        [ "$(echo "$number $time" | crc32)" = "$sum" ] && n=$number
    done < /tmp/tail
    gaps=$(awk -v last="$n" '$1 <= last && $1 != ++want { bad++; want = $1 } END { print bad + 0 }' /mnt/ticks)
    good=$(awk -v last="$n" '$1 <= last { good = NR } END { print good + 0 }' /mnt/ticks)
    [ "$good" -lt "$(wc -l < /mnt/ticks)" ] && { head -n "$good" /mnt/ticks > /mnt/cut; mv /mnt/cut /mnt/ticks; sync; }
fi
echo "LAST $n gaps $gaps"
echo READY

tick() {
    while true; do
        n=$((n + 1))
        record="$n $(date +%s)"
        echo "$record $(echo "$record" | crc32)" |
            dd of=/mnt/ticks oflag=append conv=notrunc,fsync 2> /dev/null && echo "TICK $n"
        usleep 20000
    done
}

# Files of random bytes, written by several at once, deleted and written again; so many rounds.
load() {
    round=0
    while [ $round -lt "$1" ]; do
        round=$((round + 1))
        for worker in 1 2 3; do
            (
                file=/mnt/load.$worker.$((round % 4))
                dd if=/dev/urandom of=$file bs=16k count=$((8 + round % 16)) conv=fsync 2> /dev/null
                [ $((round % 5)) -eq $worker ] && { rm $file; fstrim /mnt; }
            ) &
        done
        wait
        echo "LOAD $round"
    done
}

# Random bytes all over the second disk, which has no file system.
write_second() {
    round=0
    while true; do
        round=$((round + 1))
        dd if=/dev/urandom of=/dev/vdb bs=64k count=4 seek=$((round * 37 % 200)) conv=notrunc,fsync 2> /dev/null
        usleep 20000
    done
}

[ -n "$(option second)" ] && write_second &
[ -n "$(option read)" ] && while true; do dd if=$disk of=/dev/null bs=64k iflag=direct 2> /dev/null; done &

case "$(option work)" in
    tick) tick ;;
    load) load 1000000 & tick ;;
    burst) load 8 ;;
esac
sync
umount /mnt
[ -n "$server" ] && /usr/sbin/nbd-client -d $disk
echo "DONE"
poweroff -f
