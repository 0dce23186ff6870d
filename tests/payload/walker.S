# A guest that walks its memory: multiboot, 32-bit, no interrupts.
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
pass:
    movl %ebp, %edi
page:
    addl %ecx, (%edi)
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
