# The KV cache, with what a prefill stored; it begins at a word of the memory port, 128 bytes at most.
    .data
    .balign 128
    .global decode_memory
decode_memory:
    .incbin "memory.bin"
