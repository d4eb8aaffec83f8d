# zram for the guest: swapping on it, and filling it from a disk.  Read by init where the command line asks for it.
zram_disk=/sys/block/zram0

load_zram() {
    for module in zsmalloc zram lzo-rle lz4_compress lz4 zstd_compress zstd; do
        insmod /modules/$module.ko || fail "no module $module"
    done
    await_device /dev/zram0
}

# Algorithm and size can only be set on a device that was just made, or reset.
zram_ready() { # ALGORITHM BYTES
    echo "$1" >$zram_disk/comp_algorithm || fail "zram has no algorithm $1"
    echo "$2" >$zram_disk/disksize || fail "zram takes no size $2"
}

free_kib() {
    sync
    echo 3 >/proc/sys/vm/drop_caches
    awk '/^MemFree:/ { print $2 }' /proc/meminfo
}

now_ms() {
    awk '{ print int($1 * 1000) }' /proc/uptime
}

# Direct, so that the guest's page cache holds neither copy.
zram_fill() { # DISK ALGORITHM
    zram_ready "$2" $(($(cat "/sys/block/${1##*/}/size") * 512))
    before=$(free_kib) started=$(now_ms)
    dd if="$1" of=/dev/zram0 bs=1M iflag=direct oflag=direct 2>/dev/null || fail "zram $2 did not hold $1"
    took=$(($(now_ms) - started))
    after=$(free_kib)
    # shellcheck disable=SC2046  # the fields of mm_stat
    set -- "$2" $(cat $zram_disk/mm_stat)
    echo "GUEST-ZRAM algorithm=$1 orig=$2 compr=$3 used=$4 same=$7 huge=$9" \
        "memfree_kib_before=$before memfree_kib_after=$after ms=$took"
    echo 1 >$zram_disk/reset
}

zram_fill_each() { # DISK ALGORITHM,ALGORITHM…
    await_device "$1"
    load_zram
    for algorithm in $(echo "$2" | tr , ' '); do
        zram_fill "$1" "$algorithm"
    done
}
