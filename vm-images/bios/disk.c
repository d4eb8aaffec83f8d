/* A guest without a system, whose only driver is the BIOS's: writes the whole of the other disk, checks it, writes it
 * anew, until something comes over the serial line.
 *
 * It runs in 16 bits below 64 KiB, all segments 0, and says the same as guest/tide.c, in pages of 4 KiB.
 */
#include <stdint.h>

#define PAGE 4096
#define SECTOR 512
#define PAGES 4 /* at a time */
#define BUFFER 0xc000
#define SERIAL 0x3f8
#define SERIAL_STATUS 0x3fd
#define MAX_WRONG_PRINTED 20

extern uint8_t boot_drive;

struct __attribute__((packed)) packet { /* what INT 13h takes for its extended functions */
    uint8_t size, zero;
    uint16_t sectors, offset, segment;
    uint64_t first;
};

struct __attribute__((packed)) facts {
    uint16_t size, flags;
    uint32_t cylinders, heads, per_track;
    uint64_t sectors;
    uint16_t sector_bytes;
};

static uint8_t drive;
static uint32_t filled, checked, rewritten, wrong, rounds;

static uint8_t in(uint16_t port)
{
    uint8_t value;
    asm volatile("inb %1, %0" : "=a"(value) : "d"(port));
    return value;
}

static void out(uint16_t port, uint8_t value)
{
    asm volatile("outb %0, %1" : : "a"(value), "d"(port));
}

static void say(const char *text)
{
    for (; *text; text++) {
        while (!(in(SERIAL_STATUS) & 0x20))
            ;
        out(SERIAL, *text);
    }
}

static void say_number(const char *name, uint32_t value)
{
    char digits[12], *at = digits + sizeof digits;
    *--at = 0;
    do
        *--at = '0' + value % 10;
    while (value /= 10);
    say(name);
    say(at);
}

static int was_spoken_to(void)
{
    if (!(in(SERIAL_STATUS) & 1))
        return 0;
    in(SERIAL);
    return 1;
}

__attribute__((noreturn)) static void power_off(void)
{
    asm volatile("outw %w0, %w1" : : "a"(0x2000), "d"(0x604));
    for (;;)
        asm volatile("hlt");
}

/* One of the BIOS's disk services on a structure; what it says, 0 for success. */
static uint8_t service(uint8_t function, uint8_t which, void *structure)
{
    uint32_t ax = function << 8, si = (uint32_t)structure, dx = which;
    uint8_t failed;
    asm volatile("int $0x13; setc %0"
                 : "=m"(failed), "+a"(ax), "+d"(dx), "+S"(si)
                 :
                 : "ebx", "ecx", "edi", "memory", "cc");
    return failed ? (ax >> 8 & 0xff) ?: 0xff : 0;
}

static void transfer(uint8_t function, uint32_t page)
{
    struct packet packet = { sizeof packet, 0, PAGES * PAGE / SECTOR, BUFFER, 0, (uint64_t)page * (PAGE / SECTOR) };
    uint8_t error = service(function, drive, &packet);
    if (error) {
        say_number("GUEST-ERROR INT 13h function=", function);
        say_number(" page=", page);
        say_number(" status=", error);
        say("\r\n");
        power_off();
    }
}

/* A word for each sector, which says whose it is.  The string instructions below are the only ones that are quick where
 * a KVM has to emulate 16-bit code. */
static uint32_t word_of(uint32_t sector, uint32_t generation)
{
    uint32_t x = (sector + 1) * 0x9e3779b9u ^ generation * 0x85ebca6bu;
    x ^= x >> 15;
    return x * 0x2c1b3c6du;
}

static void fill(uint32_t *at, uint32_t sector, uint32_t generation)
{
    uint32_t words = SECTOR / 4;
    asm volatile("rep stosl" : "+D"(at), "+c"(words) : "a"(word_of(sector, generation)) : "memory");
}

static int is_right(const uint32_t *at, uint32_t sector, uint32_t generation)
{
    uint32_t words = SECTOR / 4;
    uint8_t same;
    asm volatile("repe scasl; sete %2"
                 : "+D"(at), "+c"(words), "=qm"(same)
                 : "a"(word_of(sector, generation))
                 : "memory", "cc");
    return same;
}

static void say_all(const char *title, const char *phase)
{
    say(title);
    say_number(" wrong=", wrong);
    say_number(" checked=", checked);
    say_number(" filled=", filled);
    say_number(" rewritten=", rewritten);
    say_number(" rounds=", rounds);
    say(" phase=");
    say(phase);
    say("\r\n");
}

static void check_page(const uint8_t *at, uint32_t page, uint32_t generation)
{
    uint32_t sector = page * (PAGE / SECTOR);
    int right = 1;
    for (int i = 0; i < PAGE / SECTOR; i++)
        right &= is_right((const uint32_t *)(at + i * SECTOR), sector + i, generation);
    checked++;
    if (right || wrong++ >= MAX_WRONG_PRINTED)
        return;
    say_number("GUEST-WRONG page=", page);
    say_number(" generation=", generation);
    say_number(" expected=", word_of(sector, generation));
    say_number(" found=", *(const uint32_t *)at);
    say("\r\n");
}

static void check(uint32_t page, uint32_t generation)
{
    for (int i = 0; i < PAGES; i++)
        check_page((const uint8_t *)BUFFER + i * PAGE, page + i, generation);
}

static void write(uint32_t page, uint32_t generation)
{
    for (int i = 0; i < PAGES * (PAGE / SECTOR); i++)
        fill((uint32_t *)(BUFFER + i * SECTOR), page * (PAGE / SECTOR) + i, generation);
    transfer(0x43, page);
}

void run(void)
{
    struct facts facts = { .size = sizeof facts };
    drive = boot_drive == 0x80 ? 0x81 : 0x80;
    say("\r\nGUEST-READY kernel=none\r\n");
    if (service(0x48, drive, &facts)) {
        say("GUEST-ERROR the BIOS has no second disk\r\n");
        power_off();
    }
    uint32_t pages = (uint32_t)facts.sectors / (PAGE / SECTOR) / PAGES * PAGES;
    for (uint32_t page = 0; page < pages; page += PAGES, filled += PAGES) {
        write(page, 0);
        if (page % 256 == 0)
            say_all("GUEST-PROGRESS", "fill");
    }
    for (int stop = 0; !stop; rounds++)
        for (uint32_t page = 0; page < pages; page += PAGES, rewritten += PAGES) {
            transfer(0x42, page);
            check(page, rounds);
            write(page, rounds + 1);
            stop |= was_spoken_to();
            if (page % 256 == 0)
                say_all("GUEST-PROGRESS", "check");
        }
    say_all("GUEST-RESULT", "done");
    power_off();
}
