# Begin: a stack at the end of the memory, traps, zeros in .bss; then main, which never returns.
    .section .start, "ax"
    .global _start
_start:
    la   sp, _stack
    la   t0, trap
    csrw mtvec, t0
    la   t0, _bss
    la   t1, _bss_end
1:  bgeu t0, t1, 2f
    sw   zero, 0(t0)
    addi t0, t0, 4
    j    1b
2:  call main
