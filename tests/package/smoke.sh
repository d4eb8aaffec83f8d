# Run inside, by bash -eux: the installed command COMMAND, without systemd.  A daemon, a disk, its pages, its end.
"$COMMAND" --version
"$COMMAND" serve &
daemon=$!
until "$COMMAND" disk ls; do kill -0 $daemon; sleep 0.2; done
"$COMMAND" disk add g1 --size 64M --ram 32M
"$COMMAND" disk show g1
/usr/bin/python3 /srv/smoke.py write /run/swaptide/g1.sock
/usr/bin/python3 /srv/smoke.py read /run/swaptide/g1.sock
"$COMMAND" snippet g1 --format libvirt
"$COMMAND" disk rm g1
kill $daemon
wait $daemon
test ! -e /run/swaptide
test ! -e /var/lib/swaptide/run-swaptide
# And without the daemon.
nbdkit -U - python "$("$COMMAND" plugin-path)" size=64M ram=32M \
    --run '/usr/bin/python3 /srv/smoke.py write "$unixsocket" && /usr/bin/python3 /srv/smoke.py read "$unixsocket"'
