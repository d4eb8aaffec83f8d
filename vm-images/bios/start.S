/* The boot sector of a guest without a system: load what follows it, and go on there, in 16 bits. */
        .code16
        .section .boot, "ax"
        .globl _start
_start:
        cli
        ljmp $0, $1f
1:      xorw %ax, %ax
        movw %ax, %ds
        movw %ax, %es
        movw %ax, %ss
        movl $0x7c00, %esp
        sti
        cld
        movb %dl, boot_drive
        movb $0x42, %ah
        movw $packet, %si
        int $0x13
        jc 2f
        calll run
2:      hlt
        jmp 2b

        .balign 4
packet: .byte 16, 0
        .word rest_sectors
        .word 0x7e00, 0
        .quad 1
        .globl boot_drive
boot_drive:
        .byte 0
        .org 510
        .word 0xaa55
