#!/bin/busybox sh
# The first process of a guest that is itself a host with an agent. Its disk /dev/vda is protected as a block device of
# its own kernel, which is then used while the agent is killed again and again. What the tests read on the console:
#   DEVICE path             where the protected disk is
#   READY                   the load runs from here on
#   TICK n                  record n is on the disk (written and fsynced)
#   KILLED n | STARTED n | BACK n   the agent was killed, is started, and answers again
#   REFUSED text            why a protection whose device is mounted cannot be ended
#   FSCK CLEAN | FSCK n     what e2fsck says of the unmounted device
#   KEPT device             where the device is after the agent was stopped and started
#   TAGGED                  the last checkpoint was asked for
#   GONE | LEFT             whether the device went with the protection
#   DONE                    all of it is over
/bin/busybox --install -s /bin
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev
mount -t tmpfs run /run
while read -r module; do insmod "/$module.ko"; done < /modules
while read -r module; do insmod "/$module.ko" 2> /dev/null; done < /modules.host
tries=0
while [ ! -e /sys/class/net/eth0 ] && [ $tries -lt 100 ]; do usleep 50000; tries=$((tries + 1)); done
ip link set lo up
ip addr add 10.0.2.15/24 dev eth0
ip link set eth0 up
export HOLDFAST_SOCKET=/site/run/agent.sock

fail() { echo "$1"; tail -n 20 /tmp/agent.log; echo DONE; poweroff -f; }
start() {
    /bin/holdfast agent --config /site/agent.toml >> /tmp/agent.log 2>&1 &
    agent=$!
    tries=0
    until /bin/holdfast status > /dev/null 2>&1; do
        tries=$((tries + 1))
        [ $tries -lt 100 ] || fail "LOST the agent"
        usleep 200000
    done
}
device() { /bin/holdfast vm show web --json | sed -n 's/.*"ublk_device": "\([^"]*\)".*/\1/p'; }

start
/bin/holdfast vm protect web --disk vda=/dev/vda --peer "$(cat /site/peer)" --ublk --wait > /tmp/protect 2>&1 ||
    fail "NOT PROTECTED $(cat /tmp/protect)"
disk=$(device)
echo "DEVICE $disk"
/sbin/mke2fs -q -t ext4 "$disk" || fail "NO FILE SYSTEM"
mount -t ext4 "$disk" /mnt || fail "NOT MOUNTED"
echo READY

(
    n=0
    while [ ! -e /tmp/enough ]; do
        n=$((n + 1))
        echo "$n" | dd of=/mnt/ticks oflag=append conv=notrunc,fsync 2> /tmp/dd || { echo "FAILED $n $(cat /tmp/dd)"; break; }
        echo "TICK $n"
    done
) &
ticks=$!
(
    n=0
    while [ ! -e /tmp/enough ]; do
        n=$((n + 1))
        dd if=/dev/urandom of=/mnt/noise.$((n % 4)) bs=64k count=16 conv=fsync 2> /dev/null
        [ $((n % 3)) -eq 0 ] && { rm /mnt/noise.$((n % 4)); fstrim /mnt; }
    done
) &
noise=$!
# How long the agent is away each time, in milliseconds.
n=0
for away in $(cat /site/away); do
    n=$((n + 1))
    sleep 2
    kill -9 $agent
    wait $agent
    echo "KILLED $n"
    usleep $((away * 1000))
    echo "STARTED $n"
    start
    echo "BACK $n"
done
# In one line, also where it is told that the answer takes its time.
echo REFUSED $(/bin/holdfast vm unprotect web 2>&1)
touch /tmp/enough
wait $ticks $noise
umount /mnt
/sbin/e2fsck -fn "$disk" > /tmp/fsck 2>&1
code=$?
if [ $code -eq 0 ]; then echo "FSCK CLEAN"; else cat /tmp/fsck; echo "FSCK $code"; fi
kill $agent
wait $agent
start
echo "KEPT $(device)"
until /bin/holdfast checkpoint tag --group web "the end" > /tmp/tag 2>&1; do usleep 500000; done
echo TAGGED
until [ "$(/bin/holdfast vm show web --json | sed -n 's/.*"dirty_bytes": \([0-9]*\).*/\1/p')" = 0 ]; do usleep 500000; done
/bin/holdfast vm unprotect web > /tmp/unprotect 2>&1 || fail "NOT UNPROTECTED $(cat /tmp/unprotect)"
if [ -e "$disk" ]; then echo LEFT; else echo GONE; fi
echo DONE
poweroff -f
