// A guest that walks its memory on arm64, as walker.S does on x86: for QEMU's machine `virt`, without
// address translation and with interrupts masked. With DEVICE=1 it reads a device's register for each
// page instead. With IDLE=1 it halts until its timer fires, and says so after HALTS of them. With WORK
// it executes that many instructions between two pages.
//
// The command line is that of walker.S. It stands in the device tree, which QEMU puts at the beginning
// of memory for a kernel that is no Linux (`arm_load_kernel`, hw/arm/boot.c).

    .set TREE, 0x40000000
    .set FIRST, 0x42000000              // first byte walked
    .set UART, 0x09000000
    .set HALTS, 16
    .set DISTRIBUTOR, 0x08000000        // of the interrupt controller, a GICv3
    .set REDISTRIBUTOR, 0x080b0000      // its half for the CPU's own interrupts
    .set TIMER, 1 << 27                 // the virtual one's interrupt there

    .macro work
    .if WORK
    mov x12, #WORK / 2
spin\@:
    subs x12, x12, #1
    b.ne spin\@
    .endif
    .endm

    .text
    .globl _start
_start:
    mov x9, #UART
    .if IDLE
    ldr x1, =DISTRIBUTOR
    mov w2, #0x12                       // affinity routing, and interrupts of group 1
    str w2, [x1]
    ldr x1, =REDISTRIBUTOR
    ldr w2, =TIMER
    str w2, [x1, #0x80]                 // of group 1
    str w2, [x1, #0x100]                // enabled
    mov x2, #0xff
    msr S3_0_C4_C6_0, x2                // ICC_PMR_EL1: of any priority
    mov x2, #1
    msr S3_0_C12_C12_7, x2              // ICC_IGRPEN1_EL1
    mrs x3, cntfrq_el0
    mov x4, #100
    udiv x3, x3, x4                     // 10 ms
idle:
    mov w5, #HALTS
halt:
    msr cntv_tval_el0, x3
    mov x2, #1
    msr cntv_ctl_el0, x2
    isb
    wfi                                 // ends although interrupts are masked
    mrs x4, S3_0_C12_C12_0              // ICC_IAR1_EL1: taken
    msr cntv_ctl_el0, xzr
    isb
    msr S3_0_C12_C12_1, x4              // ICC_EOIR1_EL1: done
    isb
    subs w5, w5, #1
    b.ne halt
    mov w10, #'.'
    str w10, [x9]
    b idle
    .endif

    ldr x1, =TREE
find:
    mov x0, x1
    add x1, x1, #1
    adr x2, wanted
same:
    ldrb w3, [x2], #1
    cbz w3, found
    ldrb w4, [x0], #1
    cmp w3, w4
    b.ne find
    b same
wanted:
    .asciz "mib"
    .balign 4
found:
    ldr x1, =FIRST
    mov x8, #64
    bl number
    add x2, x1, x8, lsl #20             // end of all
    bl number
    add x3, x1, x8, lsl #20             // end of what is hot
    mov x8, #1
    bl number
    lsl x4, x8, #12                     // step there
    mov x8, #0
    bl number
    mov x5, x8                          // passes that only read
    mov x6, #4096                       // step
    mov x7, x2                          // end
    mov w11, #1
pass:
    mov x13, x1
    cbnz x5, read_page
page:
    .if DEVICE
    ldr w14, [x9, #0x18]                // flags of the UART, which QEMU emulates
    .else
    ldr w14, [x13]
    add w14, w14, w11
    str w14, [x13]
    .endif
    work
    add x13, x13, x6
    cmp x13, x7
    b.lo page
    add w11, w11, #1
passed:
    mov w10, #'.'
    str w10, [x9]
    mov x6, x4
    mov x7, x3
    b pass
read_page:
    ldr w14, [x13]
    work
    add x13, x13, x6
    cmp x13, x7
    b.lo read_page
    sub x5, x5, #1
    b passed

// The number behind the next `=` at x0; without one x8 stays.
number:
    ldrb w14, [x0]
    cbz w14, parsed
    add x0, x0, #1
    cmp w14, #'='
    b.ne number
    mov x8, #0
    mov x15, #10
digit:
    ldrb w14, [x0]
    sub w14, w14, #'0'
    cmp w14, #9
    b.hi parsed
    madd x8, x8, x15, x14
    add x0, x0, #1
    b digit
parsed:
    ret
    .ltorg
