# The only program of a Linux guest: walks MIB MiB of its memory. Each pass adds to one
# word of every page and ends with a dot on the console.

    .set SYS_WRITE, 1
    .set SYS_MMAP, 9
    .set WORK, 400                      # instructions between two pages, see walker.S

    .section .text
    .globl _start
_start:
    movl $SYS_MMAP, %eax
    xorl %edi, %edi
    movq $MIB << 20, %rsi
    movl $3, %edx                       # PROT_READ | PROT_WRITE
    movl $0x22, %r10d                   # MAP_PRIVATE | MAP_ANONYMOUS
    movq $-1, %r8
    xorl %r9d, %r9d
    syscall
    movq %rax, %rbx
    movl $1, %r12d
pass:
    movq %rbx, %rdi
    leaq MIB << 20(%rbx), %rsi
page:
    addl %r12d, (%rdi)
    movl $WORK / 2, %edx
spin:
    decl %edx
    jnz spin
    addq $4096, %rdi
    cmpq %rsi, %rdi
    jb page
    incl %r12d
    movl $SYS_WRITE, %eax
    movl $1, %edi
    leaq dot(%rip), %rsi
    movl $1, %edx
    syscall
    jmp pass

dot:
    .byte '.'
