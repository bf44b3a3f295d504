#!/bin/busybox sh
# The first process of a guest that passes tokens on, beside whatever it does else. A token comes and goes on the second
# serial line: `TOKEN name one two three`, the newest record of each of three guests that whoever passes it on knows of. Each
# is answered by a record on the second disk that names them, and is told of once that is durable. `HERE` says that it
# listens; holdfast.own= which of the three it is.
#   record n: "n one two three sum", 512 bytes at 512 * (n mod 512); the sum is the CRC-32 of all before it and a newline
/bin/busybox --install -s /bin
# What goes on in the background reads from there, and `/init` mounts the devices.
mknod /dev/null c 1 3
(
    while [ ! -e /proc/cmdline ] || [ ! -b /dev/vdb ] || [ ! -c /dev/ttyS1 ]; do usleep 50000; done
    own=$(sed -n "s/.*holdfast\.own=\([^ ]*\).*/\1/p" /proc/cmdline)
    stty -F /dev/ttyS1 raw -echo
    exec 3<> /dev/ttyS1
    echo HERE >&3
    n=0
    one=0
    two=0
    three=0
    while read -r word name a b c <&3; do
        [ "$word" = TOKEN ] || continue
        [ "$a" -gt $one ] && one=$a
        [ "$b" -gt $two ] && two=$b
        [ "$c" -gt $three ] && three=$c
        n=$((n + 1))
        case $own in
            1) one=$n ;;
            2) two=$n ;;
            3) three=$n ;;
        esac
        record="$n $one $two $three"
        printf '%-511s\n' "$record $(echo "$record" | crc32)" |
            dd of=/dev/vdb bs=512 seek=$((n % 512)) conv=notrunc,fsync oflag=direct 2> /tmp/relay ||
            { echo "RELAY $(cat /tmp/relay)"; continue; }
        echo "TOKEN $name $one $two $three" >&3
    done
) &
exec /init
