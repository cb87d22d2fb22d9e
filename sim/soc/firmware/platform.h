/* The system around the accelerator: console, cycles, DMAs, interrupts, and the end. */
#ifndef PLATFORM_H
#define PLATFORM_H

#include <stdbool.h>
#include <stdint.h>

#include "soc.h" /* addresses and interrupts, of LiteX */

/* DMAs between memory and the accelerator's streams, by the address of their registers. */
#define DMA_TABLE CSR_ACCELERATOR_TABLE_BASE_ADDR
#define DMA_KEY_VALUE CSR_ACCELERATOR_KEY_VALUE_BASE_ADDR
#define DMA_QUERY CSR_ACCELERATOR_QUERY_BASE_ADDR
#define DMA_OUTPUT CSR_ACCELERATOR_OUTPUT_BASE_ADDR

/* Let a DMA move `words` words, one packet, from or to `memory`. */
void dma_start(uint32_t dma, const volatile uint32_t *memory, uint32_t words);

/* Return whether a DMA has moved all of its words, waiting for a while if it has not. */
bool dma_wait(uint32_t dma);

/* Forget what the processor's data cache holds: DMAs write the memory behind it. What the processor
 * writes is in the memory at once. */
void cache_flush(void);

/* Return the clock cycles since reset, modulo 2**32. */
uint32_t cycles(void);

/* Take interrupts of the accelerator: `handle` is called for each. */
void interrupts_start(void (*handle)(void));

/* Begin to measure a time; `timer_late` says whether more than so many cycles have passed. */
void timer_start(uint32_t cycles);
bool timer_late(void);

/* Sleep until the accelerator or the timer interrupts; not at all if one did since the last call.
 * Return the cycles of sleep. */
uint32_t interrupt_sleep(void);

/* Write text and numbers to the console. */
void print(const char *text);
void print_number(uint32_t number);
void print_hex(uint32_t word);

/* End the simulation. */
_Noreturn void stop(uint32_t status);

#endif
