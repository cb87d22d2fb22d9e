/* Registers of LiteX's cores and of VexRiscv; platform.h says what the functions do. */
#include "platform.h"

#define REGISTER(address) (*(volatile uint32_t *)(address))

/* --- console, cycles, end --------------------------------------------------------------------- */

static void put(char letter) {
    while (REGISTER(CSR_UART_TXFULL_ADDR)) {
    }
    REGISTER(CSR_UART_RXTX_ADDR) = (uint32_t)letter;
}

void print(const char *text) {
    while (*text) put(*text++);
}

void print_number(uint32_t number) {
    if (number >= 10u) print_number(number / 10u);
    put((char)('0' + number % 10u));
}

void print_hex(uint32_t word) {
    for (uint32_t nibble = 8; nibble-- > 0;) put("0123456789abcdef"[word >> 4 * nibble & 15u]);
}

uint32_t cycles(void) {
    REGISTER(CSR_TIMER0_UPTIME_LATCH_ADDR) = 1;
    return REGISTER(CSR_TIMER0_UPTIME_CYCLES_ADDR + 4); /* the low half comes second */
}

void stop(uint32_t status) {
    while (!REGISTER(CSR_UART_TXEMPTY_ADDR)) {
    }
    REGISTER(CSR_EXIT_STATUS_ADDR) = status;
    for (;;) {
    }
}

/* --- DMAs ------------------------------------------------------------------------------------- */

/* Offsets of a DMA's registers; the base has a high half before its low half. */
enum { DMA_BASE_HIGH = 0, DMA_BASE_LOW = 4, DMA_LENGTH = 8, DMA_ENABLE = 12, DMA_DONE = 16 };
#define DMA_POLLS 10000u

void dma_start(uint32_t dma, const volatile uint32_t *memory, uint32_t words) {
    REGISTER(dma + DMA_ENABLE) = 0;
    REGISTER(dma + DMA_BASE_HIGH) = 0;
    REGISTER(dma + DMA_BASE_LOW) = (uint32_t)memory;
    REGISTER(dma + DMA_LENGTH) = 4u * words;
    REGISTER(dma + DMA_ENABLE) = 1;
}

bool dma_wait(uint32_t dma) {
    for (uint32_t poll = 0; poll < DMA_POLLS; ++poll)
        if (REGISTER(dma + DMA_DONE)) return true;
    return false;
}

/* VexRiscv's instruction for this has no name. */
void cache_flush(void) { __asm__ volatile(".word 0x500f" : : : "memory"); }

/* --- interrupts ------------------------------------------------------------------------------- */

/* VexRiscv's own registers: which of LiteX's interrupts come, and which are there. */
#define IRQ_MASK "0xbc0"
#define IRQ_PENDING "0xfc0"
#define MSTATUS_MIE 8u
#define MIE_EXTERNAL 0x800u

static void (*accelerator_handler)(void);
static volatile bool interrupted, late;

void trap(void) __attribute__((interrupt("machine"), aligned(4)));

void trap(void) {
    uint32_t cause, pending, place;
    __asm__ volatile("csrr %0, mcause" : "=r"(cause));
    if (!(cause >> 31)) {
        __asm__ volatile("csrr %0, mepc" : "=r"(place));
        print("FAIL: exception ");
        print_number(cause);
        print(" at 0x");
        print_hex(place);
        print("\n");
        stop(2);
    }
    __asm__ volatile("csrr %0, " IRQ_PENDING : "=r"(pending));
    if (pending & 1u << ACCELERATOR_INTERRUPT) accelerator_handler();
    if (pending & 1u << TIMER0_INTERRUPT) {
        REGISTER(CSR_TIMER0_EN_ADDR) = 0;
        REGISTER(CSR_TIMER0_EV_PENDING_ADDR) = 1;
        late = true;
    }
    interrupted = true;
}

void interrupts_start(void (*handle)(void)) {
    accelerator_handler = handle;
    const uint32_t wanted = 1u << ACCELERATOR_INTERRUPT | 1u << TIMER0_INTERRUPT;
    REGISTER(CSR_TIMER0_EV_ENABLE_ADDR) = 1;
    __asm__ volatile("csrw " IRQ_MASK ", %0" : : "r"(wanted));
    __asm__ volatile("csrs mie, %0" : : "r"(MIE_EXTERNAL));
    __asm__ volatile("csrs mstatus, %0" : : "r"(MSTATUS_MIE));
}

uint32_t interrupt_sleep(void) {
    uint32_t slept = 0;
    /* an interrupt between the question and the sleep would be missed: it stays pending, and wakes */
    __asm__ volatile("csrc mstatus, %0" : : "r"(MSTATUS_MIE) : "memory");
    if (!interrupted) {
        const uint32_t begin = cycles();
        __asm__ volatile("wfi" : : : "memory");
        slept = cycles() - begin;
    }
    __asm__ volatile("csrs mstatus, %0" : : "r"(MSTATUS_MIE) : "memory");
    interrupted = false;
    return slept;
}

void timer_start(uint32_t limit) {
    REGISTER(CSR_TIMER0_EN_ADDR) = 0;
    REGISTER(CSR_TIMER0_LOAD_ADDR) = limit;
    REGISTER(CSR_TIMER0_RELOAD_ADDR) = 0;
    REGISTER(CSR_TIMER0_EV_PENDING_ADDR) = 1;
    late = false;
    REGISTER(CSR_TIMER0_EN_ADDR) = 1;
}

bool timer_late(void) { return late; }
