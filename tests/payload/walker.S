# A guest that walks its memory: multiboot, 32-bit. Interrupts are off, or (STI=1) on
# with none to come. With DEVICE=1 it reads a device's register for each page instead.
#
# The command line says how many MiB to walk, from 2 MiB on (`mib=64`). Each pass
# adds to one word of every page, so a page is never zero and always dirty, and
# ends with a dot on the serial line.

    .section .multiboot, "a"
    .align 4
    .long 0x1badb002                    # magic
    .long 0x00000002                    # wants the memory information
    .long -(0x1badb002 + 0x00000002)

    .section .text
    .globl _start
_start:
    cli
    movl $stack, %esp
    movl $0x200000, %ebp                # first byte walked
    movl 16(%ebx), %esi                 # multiboot_info.cmdline
    xorl %eax, %eax
    xorl %edx, %edx
find_digit:
    movb (%esi), %dl
    testb %dl, %dl
    jz parsed
    incl %esi
    cmpb $'=', %dl
    jne find_digit
digit:
    movb (%esi), %dl
    subb $'0', %dl
    cmpb $9, %dl
    ja parsed
    imull $10, %eax
    addl %edx, %eax
    incl %esi
    jmp digit
parsed:
    testl %eax, %eax
    jnz sized
    movl $16, %eax
sized:
    shll $20, %eax
    addl %ebp, %eax                     # end
    movl $1, %ecx
    .if STI
    pushl %eax
    movl $idt, %edi                     # whatever comes all the same is ignored
    movl $ignore, %eax
    movl %eax, %edx
    movw $0x8e00, %dx                   # a present interrupt gate
gate:
    movw %ax, (%edi)
    movw %cs, 2(%edi)
    movl %edx, 4(%edi)
    addl $8, %edi
    cmpl $idt_end, %edi
    jb gate
    lidt idt_pointer
    movb $0xff, %al                     # masked at the PIC, so that none comes
    outb %al, $0x21
    outb %al, $0xa1
    popl %eax
    sti
    .endif
pass:
    movl %ebp, %edi
page:
    .if DEVICE
    movl 0xfed000f0, %edx               # main counter of the HPET, which QEMU emulates
    .else
    addl %ecx, (%edi)
    .endif
    addl $4096, %edi
    cmpl %eax, %edi
    jb page
    incl %ecx
    movl %eax, %ebx
    movw $0x3f8, %dx
    movb $'.', %al
    outb %al, %dx
    movl %ebx, %eax
    jmp pass

ignore:
    iret

    .align 4
idt_pointer:
    .word idt_end - idt - 1
    .long idt

    .section .bss
    .align 16
    .skip 256
stack:
idt:
    .skip 256 * 8
idt_end:
