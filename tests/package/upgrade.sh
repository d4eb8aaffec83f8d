# Run inside, by bash -eux, under a systemd that is process 1, with an older swaptide (OLD) installed: NEW is put in its
# place, taken away and put back, while a guest uses its disk.
. /srv/inside.sh
apt() { apt-get -y -q -o Dpkg::Options::=--force-confold "$@"; }
doctor() { swaptide doctor --config $configuration | tr -s ' '; }
# As on a host: services are restarted.
rm /usr/sbin/policy-rc.d

: the older one, as its operator configured it
echo 'host_reserve = "7%"' >>$configuration
systemctl restart swaptide
swaptide --version | grep '0\.0\.9$'
swaptide disk add g1 --size 64M --ram 32M
write
disk=$(disk_pid)
daemon=$(daemon_pid)
doctor | grep '^ok process of g1 version '
python3 /srv/smoke.py use $socket &
guest=$!

: upgraded
apt install "$NEW"
swaptide --version | grep -v '0\.0\.9$'
[ "$(systemctl is-active swaptide)" = active ]
[ "$(daemon_pid)" != "$daemon" ]
[ "$(disk_pid)" = "$disk" ]
mountpoint /run/swaptide/memory
doctor | grep '^ok daemon pid '
doctor | grep "^warn process of g1 pid $disk is version 0\.0\.9, "
grep '^host_reserve = "7%"$' $configuration
grep 'before the upgrade' $configuration
if grep 'before the upgrade' $configuration.dpkg-dist; then exit 1; fi
kill $guest
wait $guest
read_back

: what doctor says, done
$(doctor | sed -n '/^warn process of g1 /{n; s/^ mend: //; s/;.*//p}' | grep '^swaptide ')
[ "$(disk_pid)" != "$disk" ]
disk=$(disk_pid)
doctor | grep '^ok process of g1 version '
read_back

: back to the older one, and forth again
daemon=$(daemon_pid)
apt install --allow-downgrades "$OLD"
swaptide --version | grep '0\.0\.9$'
[ "$(daemon_pid)" != "$daemon" ]
[ "$(disk_pid)" = "$disk" ]
read_back
apt install "$NEW"
[ "$(disk_pid)" = "$disk" ]

: removed, which leaves the disk to its guest, and the configuration
python3 /srv/smoke.py use $socket &
guest=$!
apt remove swaptide 2>&1 | tee /dev/stderr | grep 'go on serving'
if [ -e /usr/bin/swaptide ]; then exit 1; fi
if systemctl is-active swaptide; then exit 1; fi
kill -0 "$disk"
grep '^host_reserve = "7%"$' $configuration
kill $guest
wait $guest
read_back
write
read_back

: purged, which leaves what the disk needs
apt purge swaptide
kill -0 "$disk"
if [ -e /etc/swaptide ]; then exit 1; fi
mountpoint /run/swaptide/memory
find /var/lib/swaptide -name '*g1*' | grep .
read_back

: the next one finds it
apt install "$NEW"
systemctl is-active swaptide
[ "$(disk_pid)" = "$disk" ]
read_back
swaptide disk rm g1
if [ -e /proc/"$disk" ]; then exit 1; fi

: nothing is left, and nothing said of disks
apt purge swaptide >/tmp/purged 2>&1
if grep 'go on serving' /tmp/purged; then exit 1; fi
if mountpoint /run/swaptide/memory; then exit 1; fi
for place in /etc/swaptide /var/lib/swaptide /run/swaptide /usr/lib/swaptide; do if [ -e $place ]; then exit 1; fi; done
systemctl list-units --all --no-legend 'swaptide*' | tee /dev/stderr
