/* stripe DEVICE PRIORITY: swap on with a priority, which busybox's swapon has no option for. */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/swap.h>

int main(int argc, char **argv)
{
    if (argc != 3)
        return 2;
    int priority = atoi(argv[2]) << SWAP_FLAG_PRIO_SHIFT & SWAP_FLAG_PRIO_MASK;
    if (swapon(argv[1], SWAP_FLAG_PREFER | priority) == 0)
        return 0;
    printf("GUEST-NOTE swapon %s: %s\n", argv[1], strerror(errno));
    return 1;
}
