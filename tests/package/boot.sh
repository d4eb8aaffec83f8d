# Run inside, by bash -eux, under a systemd that is process 1: what the unit promises.
. /srv/inside.sh

systemd-analyze verify --man=no swaptide.service
systemd-analyze security --threshold=35 swaptide.service | tail -n 1
systemctl is-enabled swaptide
systemctl start swaptide
systemctl is-active swaptide run-swaptide-memory.mount
[ "$(systemctl show -P StatusText swaptide)" = "disks: 0" ]
findmnt -n -o OPTIONS /run/swaptide/memory | grep huge=within_size
grep swaptide.slice /proc/"$(daemon_pid)"/cgroup
id swaptide

swaptide disk add g1 --size 64M --ram 32M
python3 /srv/complete.py 'swaptide disk fre' 'swaptide disk freeze '
python3 /srv/complete.py 'swaptide disk show g' 'swaptide disk show g1 '
python3 /srv/complete.py 'swaptide disk add --swap-l' 'swaptide disk add --swap-label '
write
read_back
disk=$(disk_pid)
# A user of its own, and no privileges.
awk '/^Uid:/ { exit !($2 >= 2130706432) }' /proc/"$disk"/status
awk '/^CapEff:/ { exit !($2 == "0000000000000000") }' /proc/"$disk"/status
find /run/swaptide/memory -name g1.state | grep .

: the memory of a disk in use cannot be taken away
if systemctl stop run-swaptide-memory.mount; then exit 1; fi
mountpoint /run/swaptide/memory

: restarted
systemctl restart swaptide
[ "$(disk_pid)" = "$disk" ]
read_back

: killed
daemon=$(daemon_pid)
kill -KILL "$daemon"
eventually is_another_daemon "$daemon"
[ "$(disk_pid)" = "$disk" ]

: hung
mkdir -p /run/systemd/system/swaptide.service.d
printf '[Service]\nWatchdogSec=3\n' >/run/systemd/system/swaptide.service.d/soon.conf
systemctl daemon-reload
systemctl restart swaptide
daemon=$(daemon_pid)
kill -STOP "$daemon"
eventually is_another_daemon "$daemon"
journalctl --no-pager -o cat -u swaptide | grep -i watchdog
journalctl --no-pager -o cat -u swaptide | grep 'most recent call first'
[ "$(disk_pid)" = "$disk" ]
read_back

: stopped
systemctl stop swaptide
kill -0 "$disk"
read_back
systemctl start swaptide
[ "$(disk_pid)" = "$disk" ]

: a new process takes the disk over, key and all
swaptide disk restart g1
[ "$(disk_pid)" != "$disk" ]
read_back
kill -KILL "$(disk_pid)"
eventually read_back

swaptide disk rm g1
systemctl stop swaptide
[ "$(systemctl show -P Result swaptide)" = success ]
if find /run/swaptide/memory /var/lib/swaptide -type f | grep .; then exit 1; fi
