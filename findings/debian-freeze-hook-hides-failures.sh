#!/usr/bin/env bash
# The fsfreeze hook that Debian gives its guests reports success whatever the scripts that it runs report, or if it runs none.
#
# Software: qemu-guest-agent 7.2.22 (Debian 12's package of the version below), its /etc/qemu/fsfreeze-hook.
# Behaviour: the agent gives up a freeze if its hook fails. The hook runs each script of fsfreeze-hook.d, writes the script's
# status to a log, and ends with 0: a database's script that could not make it ready for a freeze stops nothing, and the
# freeze counts as one of everything. Where the log cannot be opened (a full or read-only /var) no script is run at all, also
# with 0.
# Matters to us: that a guest's freeze succeeded says that its file systems were frozen, not that its applications agreed.
#
# Output seen:
#   a script that fails: run, its status in the log: 3, status of the hook: 0
#   a log that cannot be opened: not run, status of the hook: 0
# Ends with 0 where this is still so, with 1 where it has changed. Needs Debian 12, and user namespaces or root.
set -euo pipefail

version=1:7.2+dfsg-7+deb12u18+b3
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
apt-get download -q "qemu-guest-agent=$version" > download.log 2>&1 || { cat download.log; exit 2; }
dpkg-deb -x ./*.deb unpacked
hook=$folder/unpacked/etc/qemu/fsfreeze-hook
mkdir -p "$hook.d"
cat > "$hook.d/database" << 'SCRIPT'
#!/bin/sh
touch "$(dirname "$0")/../ran"
exit 3
SCRIPT
chmod +x "$hook.d/database"
ran=$folder/unpacked/etc/qemu/ran

# In a name space of its own, with another /var/log.
in_guest() {
    unshare --map-root-user --mount sh -c "mount -t tmpfs $1 none /var/log
        sh '$hook' freeze 2> /dev/null
        hook_status=\$?
        said=\$(sed -n 's/.* finished with status=//p' /var/log/qga-fsfreeze-hook.log 2> /dev/null)
        [ -e '$ran' ] && printf 'run, ' || printf 'not run, '
        [ -z \"\$said\" ] || printf 'its status in the log: %s, ' \"\$said\"
        echo \"status of the hook: \$hook_status\"; rm -f '$ran'"
}
{
    echo "a script that fails: $(in_guest '')"
    echo "a log that cannot be opened: $(in_guest '-o ro')"
} | tee seen
diff seen - << 'SEEN' || { echo "this has changed"; exit 1; }
a script that fails: run, its status in the log: 3, status of the hook: 0
a log that cannot be opened: not run, status of the hook: 0
SEEN
