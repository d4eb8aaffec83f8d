/* The guest's work: fills more memory than there is, and says whether every byte came back.
 *
 * One parent talks (a progress line a second, "stop" or "hibernate" on standard input, the verdict), and `workers`
 * children each own a range of pages.  They share one page of counters, each word of which has a single
 * writer, and `control`, which the parent writes.  Everything but the worked-on memory is locked, so that
 * what the pages are compared with never went through the swap disk itself.
 *
 * pattern.h says what the pages hold.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/swap.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "pattern.h"

#define MAX_WORKERS 16
#define MAX_WRONG_PRINTED 20

enum stage { WORK, STOP, KEEP, HOLD, LAST };

struct tally {
    volatile uint64_t filled, checked, rewritten, wrong, rounds, kept;
    char phase[16];
};

static struct shared {
    volatile int stage;
    volatile uint32_t wrong_printed;
    struct tally tally[MAX_WORKERS];
} *shared;

static struct options {
    struct recipe recipe;
    uint64_t mib, rounds, seconds, workers, rewrite, swapoff, hold;
    const char *order, *device, *zram;
} opt = { .recipe.seed = 1, .mib = 64, .rounds = 1, .workers = 1, .rewrite = 25, .order = "both", .device = "",
          .zram = "" };

static uint64_t started_ms;

static uint64_t now_ms(void)
{
    struct timespec ts;
    clock_gettime(CLOCK_MONOTONIC, &ts);
    return (uint64_t)ts.tv_sec * 1000 + ts.tv_nsec / 1000000;
}

/* One write(2) a line: lines of parent and children do not mix. */
__attribute__((format(printf, 1, 2))) static void say(const char *format, ...)
{
    char line[512];
    va_list args;
    va_start(args, format);
    int n = vsnprintf(line, sizeof line, format, args);
    va_end(args);
    if (write(STDOUT_FILENO, line, n) < 0)
        _exit(3);
}

static void report_wrong(const uint64_t *at, uint64_t page, uint32_t generation)
{
    struct difference d = compare_page(&opt.recipe, at, page, generation);
    if (__sync_fetch_and_add(&shared->wrong_printed, 1) >= MAX_WRONG_PRINTED)
        return;
    uint64_t named = page_name(&opt.recipe, at);
    say("GUEST-WRONG page=%llu generation=%u wrong_words=%d word=%d expected=%016llx found=%016llx "
        "looks_like_page=%llu looks_like_generation=%llu\n",
        (unsigned long long)page, generation, d.words, d.first, (unsigned long long)d.expected,
        (unsigned long long)d.found, (unsigned long long)(named >> 32), (unsigned long long)(named & 0xffffffffu));
}

/* -- a worker -------------------------------------------------------------------------------------------- */

struct range {
    uint64_t *memory;
    uint32_t *generation, *order;
    uint64_t base, pages, random;
    struct tally *tally;
};

static uint64_t draw(struct range *r)
{
    return r->random = mix(r->random);
}

static void rewrite(struct range *r, uint64_t i)
{
    write_page(&opt.recipe, r->memory + i * WORDS, r->base + i, ++r->generation[i]);
    r->tally->rewritten++;
}

static void visit(struct range *r, uint64_t i, int may_rewrite)
{
    uint64_t *at = r->memory + i * WORDS;
    if (!page_is_right(&opt.recipe, at, r->base + i, r->generation[i])) {
        report_wrong(at, r->base + i, r->generation[i]);
        r->tally->wrong++;
        rewrite(r, i); /* so that one lost page counts once */
    } else if (may_rewrite && draw(r) % 100 < opt.rewrite) {
        rewrite(r, i);
    }
    r->tally->checked++;
}

static void fill(struct range *r)
{
    strcpy(r->tally->phase, "fill");
    for (uint64_t i = 0; i < r->pages; i++, r->tally->filled++)
        write_page(&opt.recipe, r->memory + i * WORDS, r->base + i, r->generation[i]);
}

static void pass_in_order(struct range *r, uint64_t pages, const char *phase)
{
    strcpy(r->tally->phase, phase);
    for (uint64_t i = 0; i < pages; i++)
        visit(r, i, pages == r->pages);
}

static void pass_at_random(struct range *r)
{
    strcpy(r->tally->phase, "random");
    for (uint64_t i = r->pages - 1; i > 0; i--) {
        uint64_t j = draw(r) % (i + 1);
        uint32_t other = r->order[j];
        r->order[j] = r->order[i];
        r->order[i] = other;
    }
    for (uint64_t i = 0; i < r->pages; i++)
        visit(r, r->order[i], 1);
}

/* Every page is checked at least once, and a pass that was begun is finished, whatever the limits say. */
static void work(struct range *r)
{
    int in_order = strcmp(opt.order, "random") != 0, at_random = strcmp(opt.order, "sequential") != 0;
    fill(r);
    do {
        if (in_order)
            pass_in_order(r, r->pages, "sequential");
        if (at_random && (!in_order || shared->stage == WORK))
            pass_at_random(r);
        r->tally->rounds++;
    } while (shared->stage == WORK && (opt.rounds == 0 || r->tally->rounds < opt.rounds));
}

/* swapoff needs room for what is still used: keep a part, let the parent switch off, check that part. */
static void outlive_swapoff(struct range *r, uint64_t keep_pages)
{
    uint64_t step = sysconf(_SC_PAGESIZE) / PAGE; /* of the guest's own, which may be larger */
    uint64_t keep = (keep_pages < r->pages ? keep_pages : r->pages - 1) / step * step;
    munmap((char *)r->memory + keep * PAGE, (r->pages - keep) * PAGE);
    r->tally->kept = keep + 1;
    while (shared->stage != LAST)
        usleep(20000);
    pass_in_order(r, keep, "last");
}

/* What is held in the end (mm_stat of zram, the host's memory) is looked at while it is still held. */
static int holds(void)
{
    return opt.hold || opt.zram[0];
}

static void hold(struct range *r)
{
    r->tally->kept = r->pages;
    while (shared->stage != LAST)
        usleep(20000);
}

static void lock_what_is_mapped(void)
{
    if (mlockall(MCL_CURRENT) < 0)
        say("GUEST-NOTE mlockall: %s\n", strerror(errno));
}

static uint64_t read_number(const char *path, const char *key);

static void worker(int number)
{
    struct range r = { .pages = opt.mib * 256 / opt.workers, .tally = &shared->tally[number] };
    r.base = r.pages * number;
    r.random = mix(opt.recipe.seed + number);
    r.generation = calloc(r.pages, sizeof *r.generation);
    r.order = calloc(r.pages, sizeof *r.order);
    for (uint64_t i = 0; i < r.pages; i++)
        r.order[i] = i;
    lock_what_is_mapped();
    r.memory = mmap(NULL, r.pages * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE,
                    -1, 0);
    if (r.memory == MAP_FAILED)
        _exit(2);
    work(&r);
    if (opt.swapoff)
        outlive_swapoff(&r, read_number("/proc/meminfo", "MemTotal:") / 4 * 4 / 10 / opt.workers);
    else if (holds())
        hold(&r);
    _exit(0);
}

/* -- the parent ------------------------------------------------------------------------------------------- */

static uint64_t read_number(const char *path, const char *key)
{
    static char text[16384];
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    ssize_t n = fd < 0 ? -1 : read(fd, text, sizeof text - 1);
    if (fd >= 0)
        close(fd);
    if (n <= 0)
        return 0;
    text[n] = 0;
    char *at = strstr(text, key);
    return at ? strtoull(at + strlen(key), NULL, 10) : 0;
}

static struct tally total(void)
{
    struct tally sum = { 0 };
    for (uint64_t i = 0; i < opt.workers; i++) {
        struct tally *t = &shared->tally[i];
        sum.filled += t->filled, sum.checked += t->checked, sum.rewritten += t->rewritten;
        sum.wrong += t->wrong, sum.rounds += t->rounds, sum.kept += t->kept > 0;
    }
    memcpy(sum.phase, shared->tally[0].phase, sizeof sum.phase);
    return sum;
}

static void say_numbers(const char *title, const char *phase, int died)
{
    struct tally t = total();
    uint64_t swap_kib = read_number("/proc/meminfo", "SwapTotal:") - read_number("/proc/meminfo", "SwapFree:");
    say("%s wrong=%llu checked=%llu filled=%llu pswpin=%llu pswpout=%llu rewritten=%llu rounds=%llu "
        "swapped_kib=%llu free_kib=%llu total_kib=%llu died=%d ms=%llu phase=%s\n",
        title, (unsigned long long)t.wrong, (unsigned long long)t.checked, (unsigned long long)t.filled,
        (unsigned long long)read_number("/proc/vmstat", "pswpin "),
        (unsigned long long)read_number("/proc/vmstat", "pswpout "), (unsigned long long)t.rewritten,
        (unsigned long long)(t.rounds / opt.workers), (unsigned long long)swap_kib,
        (unsigned long long)read_number("/proc/meminfo", "MemFree:"),
        (unsigned long long)read_number("/proc/meminfo", "MemTotal:"), died,
        (unsigned long long)(now_ms() - started_ms), phase);
}

/* The first three numbers of mm_stat: what is stored, what it was packed into, what that takes in all. */
static void say_zram(void)
{
    char text[256];
    unsigned long long orig = 0, compr = 0, used = 0;
    int fd = open("/sys/block/zram0/mm_stat", O_RDONLY | O_CLOEXEC);
    ssize_t n = fd < 0 ? 0 : read(fd, text, sizeof text - 1);
    if (fd >= 0)
        close(fd);
    text[n > 0 ? n : 0] = 0;
    if (sscanf(text, "%llu %llu %llu", &orig, &compr, &used) == 3)
        say("GUEST-ZRAM algorithm=%s orig=%llu compr=%llu used=%llu\n", opt.zram, orig, compr, used);
}

static void say_result(int died)
{
    if (opt.zram[0])
        say_zram();
    say_numbers("GUEST-RESULT", "done", died);
    shared->stage = opt.hold ? HOLD : LAST;
}

/* The system that writes this is switched off; the next one that finds it on the swap disk goes on here. */
static void hibernate(void)
{
    say("GUEST-HIBERNATING uptime_ms=%llu\n", (unsigned long long)now_ms());
    int fd = open("/sys/power/state", O_WRONLY | O_CLOEXEC);
    int failed = fd < 0 || write(fd, "disk", 4) != 4 ? errno : 0;
    if (fd >= 0)
        close(fd);
    say("GUEST-RESUMED errno=%d\n", failed);
}

static void listen(int milliseconds)
{
    static int fd = STDIN_FILENO;
    char text[64];
    struct pollfd poller = { .fd = fd, .events = POLLIN };
    if (poll(&poller, 1, milliseconds) <= 0)
        return;
    ssize_t n = read(fd, text, sizeof text - 1);
    if (n <= 0) {
        fd = -1; /* poll ignores it from now on and only waits */
        return;
    }
    text[n] = 0;
    if (strstr(text, "hibernate"))
        hibernate();
    if (strstr(text, "stop") && shared->stage == WORK)
        shared->stage = STOP;
    else if (strstr(text, "stop") && shared->stage == HOLD)
        shared->stage = LAST;
}

static void switch_swap_off(void)
{
    shared->stage = KEEP;
    uint64_t before = now_ms();
    int failed = swapoff(opt.device) < 0 ? errno : 0;
    say("GUEST-SWAPOFF errno=%d ms=%llu\n", failed, (unsigned long long)(now_ms() - before));
    shared->stage = LAST;
}

static int reap(int *died)
{
    int status, gone = 0;
    while (waitpid(-1, &status, WNOHANG) > 0) {
        gone++;
        if (!WIFEXITED(status) || WEXITSTATUS(status))
            ++*died;
    }
    return gone;
}

static int supervise(void)
{
    int alive = opt.workers, died = 0, said = 0;
    uint64_t next = now_ms() + 1000;
    while (alive > 0) {
        uint64_t now = now_ms();
        listen(now < next ? (int)(next - now < 100 ? next - now : 100) : 0);
        alive -= reap(&died);
        if (opt.seconds && now_ms() - started_ms > opt.seconds * 1000 && shared->stage == WORK)
            shared->stage = STOP;
        if (opt.swapoff && shared->stage < KEEP && alive > 0 && total().kept == (uint64_t)alive)
            switch_swap_off();
        if (holds() && !said && alive > 0 && total().kept == (uint64_t)alive)
            say_result(died), said = 1;
        if (now_ms() >= next && !said) {
            say_numbers("GUEST-PROGRESS", shared->tally[0].phase, died);
            next = now_ms() + 1000;
        }
    }
    if (!said)
        say_result(died);
    return died || total().wrong;
}

static void parse(int argc, char **argv)
{
    struct { const char *name; uint64_t *value; } numbers[] = {
        { "mib", &opt.mib }, { "seed", &opt.recipe.seed }, { "rounds", &opt.rounds }, { "seconds", &opt.seconds },
        { "workers", &opt.workers }, { "rewrite", &opt.rewrite }, { "zero", &opt.recipe.zero }, { "same", &opt.recipe.same },
        { "swapoff", &opt.swapoff }, { "hold", &opt.hold }, { "compress", &opt.recipe.compress },
    };
    for (int i = 1; i < argc; i++) {
        char *value = strchr(argv[i], '=');
        int known = 0;
        if (value)
            *value++ = 0;
        for (size_t k = 0; value && k < sizeof numbers / sizeof *numbers; k++)
            if (strcmp(argv[i], numbers[k].name) == 0)
                *numbers[k].value = strtoull(value, NULL, 10), known = 1;
        if (value && strcmp(argv[i], "order") == 0)
            opt.order = value, known = 1;
        if (value && strcmp(argv[i], "device") == 0)
            opt.device = value, known = 1;
        if (value && strcmp(argv[i], "zram") == 0)
            opt.zram = value, known = 1;
        if (!known) {
            say("GUEST-ERROR tide: unknown parameter %s\n", argv[i]);
            _exit(2);
        }
    }
    if (opt.workers < 1 || opt.workers > MAX_WORKERS || opt.mib < opt.workers) {
        say("GUEST-ERROR tide: workers must be 1 to %d, and at least 1 MiB for each\n", MAX_WORKERS);
        _exit(2);
    }
    if (opt.recipe.compress > 100 || (opt.swapoff && holds())) {
        say("GUEST-ERROR tide: compress is a percentage; swapoff goes neither with hold nor with zram\n");
        _exit(2);
    }
    make_alphabet(&opt.recipe);
}

int main(int argc, char **argv)
{
    parse(argc, argv);
    started_ms = now_ms();
    shared = mmap(NULL, sizeof *shared, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    if (shared == MAP_FAILED)
        return 2;
    lock_what_is_mapped();
    for (uint64_t i = 0; i < opt.workers; i++) {
        pid_t pid = fork();
        if (pid == 0)
            worker(i);
        if (pid < 0) {
            say("GUEST-ERROR tide: fork: %s\n", strerror(errno));
            return 2;
        }
    }
    return supervise();
}
