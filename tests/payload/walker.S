# A guest that walks its memory: multiboot, 32-bit. Interrupts are off, or (STI=1) on
# with none to come. With APF=1 too it is told of pages that the host has not, and halts
# until they are there. With DEVICE=1 it reads a device's register for each page instead, with
# CPUID=1 it executes that instruction. With
# WORK it executes that many instructions between two pages. With NESTED=1 a guest of its own walks
# (AMD's SVM alone): it gives that one a page where it wants one, and takes all of them after each pass.
#
# The command line says how many MiB to walk, from 2 MiB on, and how many of them, and
# every how many pages, from the second pass on, and how many of the first passes only read
# (`mib=64 hot=32 step=1 reads=0`). Each other pass adds to one word of a page, so a page is
# never zero and always dirty. A pass ends with a dot on the serial line.

    .set READY, 0x40                    # vector of "your page is there"
    .set TICK, 0x51                     # of a higher class, so that READY does not hold it back
    .set TICK_NS, 100000000             # KVM's local APIC counts nanoseconds

    .set VMCB_MISC2, 0x010              # offsets in AMD's virtual machine control block
    .set VMCB_ASID, 0x058
    .set VMCB_TLB_CONTROL, 0x05c
    .set VMCB_EXITCODE, 0x070
    .set VMCB_EXITINFO2, 0x080
    .set VMCB_NP_ENABLE, 0x090
    .set VMCB_N_CR3, 0x0b0
    .set VMCB_ES, 0x400
    .set VMCB_CS, 0x410
    .set VMCB_SS, 0x420
    .set VMCB_DS, 0x430
    .set VMCB_EFER, 0x4d0
    .set VMCB_CR0, 0x558
    .set VMCB_DR7, 0x560
    .set VMCB_DR6, 0x568
    .set VMCB_RFLAGS, 0x570
    .set VMCB_RIP, 0x578
    .set VMCB_RAX, 0x5f8
    .set VMCB_G_PAT, 0x668
    .set NESTED_TABLES, 17              # for 66 MiB
    .set EXIT_VMMCALL, 0x81
    .set EXIT_NPF, 0x400

# Instructions between two pages: in an emulated host, whose clock counts instructions, a page
# costs as much of the machine's time as hundreds of them.
    .macro work
    .if WORK
    movl $WORK / 2, %edx
spin\@:
    decl %edx
    jnz spin\@
    .endif
    .endm

# A flat segment of the nested guest.
    .macro segment offset, attributes
    movl $\attributes << 16 + 0x10, vmcb + \offset
    movl $-1, vmcb + \offset + 4
    .endm

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
    movl $16, %eax
    call number
    shll $20, %eax
    addl %ebp, %eax
    movl %eax, end
    subl %ebp, %eax
    shrl $20, %eax
    call number
    shll $20, %eax
    addl %ebp, %eax
    movl %eax, hot_end
    movl $1, %eax
    call number
    shll $12, %eax
    movl %eax, hot_step
    xorl %eax, %eax
    call number
    movl %eax, reads
    movl $4096, step
    movl end, %eax
    movl $1, %ecx
    .if STI
    pushl %eax
    pushl %ecx
    movl $idt, %edi
    movl $ignore, %eax                  # what comes all the same: see `ready`
    movl $256, %ecx
every:
    call set_gate
    loop every
    .if APF
    movl $idt + 14 * 8, %edi            # a page fault is a page that the host has not
    movl $not_present, %eax
    call set_gate
    movl $idt + READY * 8, %edi
    movl $ready, %eax
    call set_gate
    movl $idt + TICK * 8, %edi          # looks again at times: in an emulated host
    movl $ready, %eax                   # a guest was seen to halt for good
    call set_gate
    call paging_on                      # or it would not be told
    movl $0x1ff, 0xfee000f0             # the local APIC takes interrupts
    movl $0xb, 0xfee003e0               # and ticks: not divided, periodic
    movl $0x20000 + TICK, 0xfee00320
    movl $TICK_NS, 0xfee00380
    movl $0x4b564d06, %ecx              # MSR_KVM_ASYNC_PF_INT
    movl $READY, %eax
    xorl %edx, %edx
    wrmsr
    movl $0x4b564d02, %ecx              # MSR_KVM_ASYNC_PF_EN: at any privilege, by interrupt
    movl $apf + 0xb, %eax
    wrmsr
    .endif
    lidt idt_pointer
    movb $0xff, %al                     # masked at the PIC, so that none comes from there
    outb %al, $0x21
    outb %al, $0xa1
    popl %ecx
    popl %eax
    sti
    .endif
    .if NESTED
    cld
    pushl %eax
    call paging_on                      # nested paging wants it
    call nested_paging
    movl $0xc0000080, %ecx              # EFER
    rdmsr
    orl $0x1000, %eax                   # SVME
    wrmsr
    movl $0xc0010117, %ecx              # VM_HSAVE_PA
    movl $host_save, %eax
    xorl %edx, %edx
    wrmsr
    movl $0x3, vmcb + VMCB_MISC2        # vmrun and vmmcall come back
    movl $1, vmcb + VMCB_ASID
    movl $1, vmcb + VMCB_NP_ENABLE
    movl $nested_pages, vmcb + VMCB_N_CR3
    segment VMCB_ES, 0xc93
    segment VMCB_CS, 0xc9b
    segment VMCB_SS, 0xc93
    segment VMCB_DS, 0xc93
    movl $0x1000, vmcb + VMCB_EFER
    movl $0x11, vmcb + VMCB_CR0
    movl $0x400, vmcb + VMCB_DR7
    movl $0xffff0ff0, vmcb + VMCB_DR6
    movl $0x2, vmcb + VMCB_RFLAGS
    movl $pass, vmcb + VMCB_RIP
    movl $0x00070406, vmcb + VMCB_G_PAT
    movl $0x00070406, vmcb + VMCB_G_PAT + 4
    popl %eax
    movl %eax, vmcb + VMCB_RAX
    movl $1, %ecx
enter:
    movl $vmcb, %eax
    vmrun
    pushal                              # all but %eax and %esp are the nested guest's
    movl $0, vmcb + VMCB_TLB_CONTROL
    movl vmcb + VMCB_EXITCODE, %eax
    cmpl $EXIT_NPF, %eax
    je give_page
    cmpl $EXIT_VMMCALL, %eax
    je take_pages
failed:
    hlt
    jmp failed
give_page:
    movl vmcb + VMCB_EXITINFO2, %eax    # its address
    movl %eax, %edx
    shrl $12, %eax
    andl $0xfffff000, %edx
    orl $0x7, %edx                      # present, writable, for the guest
    movl %edx, nested_tables(, %eax, 4)
    popal
    jmp enter
take_pages:
    xorl %eax, %eax
    movl $nested_tables + 512 * 4, %edi
    movl end, %ecx
    shrl $12, %ecx
    subl $512, %ecx
    rep stosl
    movl $1, vmcb + VMCB_TLB_CONTROL    # flush
    addl $3, vmcb + VMCB_RIP            # behind vmmcall
    popal
    jmp enter
    .endif
pass:
    movl %ebp, %edi
    cmpl $0, reads
    jne read_page
page:
    .if DEVICE
    movl 0xfed000f0, %edx               # main counter of the HPET, which QEMU emulates
    .elseif CPUID
    pushal
    cpuid
    popal
    .else
    addl %ecx, (%edi)
    .endif
    work
    addl step, %edi
    cmpl %eax, %edi
    jb page
    incl %ecx
passed:
    movw $0x3f8, %dx
    movb $'.', %al
    outb %al, %dx
    .if NESTED
    vmmcall
    .endif
    movl hot_step, %eax
    movl %eax, step
    movl hot_end, %eax
    jmp pass
read_page:
    movl (%edi), %edx
    work
    addl step, %edi
    cmpl %eax, %edi
    jb read_page
    decl reads
    jmp passed

# The number behind the next `=` of the command line at %esi; without one %eax stays.
number:
    xorl %edx, %edx
find_digit:
    movb (%esi), %dl
    testb %dl, %dl
    jz parsed
    incl %esi
    cmpb $'=', %dl
    jne find_digit
    xorl %eax, %eax
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
    ret

    .if APF || NESTED
# Has all memory mapped as it is.
paging_on:
    movl $pages, %edi
    call map_all
    movl $pages, %eax
    movl %eax, %cr3
    movl $0x10, %eax                    # CR4.PSE
    movl %eax, %cr4
    movl %cr0, %eax
    orl $0x80000000, %eax               # CR0.PG
    movl %eax, %cr0
    ret

# Makes the page directory at %edi.
map_all:
    movl $0x87, %eax                    # present, writable, for all, 4 MiB
map:
    movl %eax, (%edi)
    addl $4, %edi
    addl $0x400000, %eax
    jnc map
    ret
    .endif

    .if NESTED
# Maps all but what is walked for the nested guest.
nested_paging:
    movl $nested_pages, %edi
    call map_all
    movl $nested_pages, %edi
    movl $nested_tables + 0x7, %eax
table:
    movl %eax, (%edi)
    addl $4, %edi
    addl $4096, %eax
    cmpl $nested_tables + 0x7 + NESTED_TABLES * 4096, %eax
    jb table
    movl $nested_tables, %edi
    movl $0x7, %eax
low_page:
    movl %eax, (%edi)
    addl $4, %edi
    addl $4096, %eax
    cmpl %ebp, %eax                     # the first byte walked
    jb low_page
    ret
    .endif

# Makes the gate at %edi one for the interrupt handler at %eax, and goes to the next.
set_gate:
    movl %eax, %edx
    movw $0x8e00, %dx
    movw %ax, (%edi)
    movw %cs, 2(%edi)
    movl %edx, 4(%edi)
    addl $8, %edi
    ret

ignore:
    iret

    .if APF
# The token of the page is in %cr2, as in Linux (kvm_async_pf_task_wait_schedule), whose
# task would now sleep.
not_present:
    pushl %eax
    movl $0, apf
    movl %cr2, %eax
halted:
    cmpl %eax, token
    je come
    sti
    hlt
    cli
    jmp halted
come:
    popl %eax
    addl $4, %esp                       # error code
    iret

ready:
    pushl %eax
    pushl %ecx
    pushl %edx
    movl apf + 4, %eax
    testl %eax, %eax                    # emulated SVM brings an interrupt twice now and then
    jz acknowledged
    movl %eax, token
    movl $0, apf + 4
    movl $0x4b564d07, %ecx              # MSR_KVM_ASYNC_PF_ACK
    movl $1, %eax
    xorl %edx, %edx
    wrmsr
acknowledged:
    movl $0, 0xfee000b0                 # end of interrupt
    popl %edx
    popl %ecx
    popl %eax
    iret
    .endif

    .align 4
idt_pointer:
    .word idt_end - idt - 1
    .long idt

    .section .bss
end:
    .skip 4
step:
    .skip 4
hot_end:
    .skip 4
hot_step:
    .skip 4
reads:
    .skip 4
    .if APF || NESTED
    .align 4096
pages:
    .skip 4096
    .endif
    .if NESTED
vmcb:
    .skip 4096
host_save:
    .skip 4096
nested_pages:
    .skip 4096
nested_tables:
    .skip NESTED_TABLES * 4096
    .endif
    .align 64
apf:                                    # struct kvm_vcpu_pv_apf_data
    .skip 64
idt:
    .skip 256 * 8
idt_end:
token:
    .skip 4
    .align 16
    .skip 1024
stack:
