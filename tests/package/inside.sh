# What boot.sh and upgrade.sh share.  For bash, inside, under a systemd that is process 1.
socket=/run/swaptide/g1.sock
configuration=/etc/swaptide/swaptide.toml
write() { python3 /srv/smoke.py write $socket; }
read_back() { python3 /srv/smoke.py read $socket; }
disk_pid() { swaptide disk show g1 --json | python3 -c 'import json, sys; print(json.load(sys.stdin)["pid"])'; }
daemon_pid() { systemctl show -P MainPID swaptide; }
eventually() { for _ in $(seq 600); do if "$@"; then return; fi; sleep 0.1; done; return 1; }
is_another_daemon() {
    systemctl show -p ActiveState,MainPID swaptide | sort | tr '\n' ' ' | grep '^ActiveState=active MainPID=[1-9]' |
        grep -v "MainPID=$1 "
}
trap 'journalctl --no-pager -o cat -u swaptide -u run-swaptide-memory.mount -n 60' EXIT
