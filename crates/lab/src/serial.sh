#!/bin/busybox sh
# The first process of a guest that asks for its disk's serial number, as udev does at every boot, while nothing else is
# asked of the disk. What it says on the console:
#   ASKING          it asks from here on
#   SERIAL text     the answer
/bin/busybox --install -s /bin
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev
while read -r module; do insmod "/$module.ko"; done < /modules
tries=0
while [ ! -b /dev/vda ] && [ $tries -lt 100 ]; do usleep 50000; tries=$((tries + 1)); done
# The kernel has looked for partitions by then.
sleep 1
echo ASKING
echo "SERIAL $(cat /sys/block/vda/serial)"
poweroff -f
