// Answers the instruction `cpuid` as a CPU without some instruction sets would, in libraries whose `cpuid` were replaced
// by breakpoints (see held.py). Loaded by LD_PRELOAD, before any of them looks.
#define _GNU_SOURCE
#include <cpuid.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <ucontext.h>

static unsigned leaf7[4], leaf7_1[4];  // eax, ebx, ecx, edx: what is taken away
static struct sigaction before;

static void take(unsigned answer[4], const unsigned away[4]) {
    for (int place = 0; place < 4; ++place) answer[place] &= ~away[place];
}

static void answer(int number, siginfo_t *info, void *context) {
    greg_t *registers = ((ucontext_t *)context)->uc_mcontext.gregs;
    const unsigned char *next = (const unsigned char *)registers[REG_RIP];
    // int3, and the second byte that cpuid had: a breakpoint of ours.
    if (next[-1] != 0xCC || next[0] != 0xA2) {
        if (before.sa_flags & SA_SIGINFO) before.sa_sigaction(number, info, context);
        else abort();
        return;
    }
    unsigned leaf = (unsigned)registers[REG_RAX], part = (unsigned)registers[REG_RCX], found[4];
    __cpuid_count(leaf, part, found[0], found[1], found[2], found[3]);
    if (leaf == 7 && part == 0) take(found, leaf7);
    if (leaf == 7 && part == 1) take(found, leaf7_1);
    registers[REG_RAX] = found[0];
    registers[REG_RBX] = found[1];
    registers[REG_RCX] = found[2];
    registers[REG_RDX] = found[3];
    registers[REG_RIP] = (greg_t)(next + 1);
}

__attribute__((constructor)) static void start(void) {
    const char *isa = getenv("HELD_ISA");
    if (!isa) return;
    leaf7_1[0] = 1u << 4 | 1u << 5 | 1u << 21 | 1u << 23;      // AVX-VNNI, AVX512-BF16, AMX-FP16, AVX-IFMA
    leaf7_1[3] = 1u << 4 | 1u << 5 | 1u << 8 | 1u << 10 | 1u << 19;  // AVX-VNNI-INT8, NE-CONVERT, AMX-COMPLEX, VNNI-INT16, AVX10
    leaf7[2] = 1u << 11;                                       // AVX512-VNNI
    leaf7[3] = 1u << 22 | 1u << 24 | 1u << 25 | 1u << 23;      // AMX-BF16, AMX-TILE, AMX-INT8, AVX512-FP16
    if (!strcmp(isa, "avx2")) {
        leaf7[1] = 1u << 16 | 1u << 17 | 1u << 21 | 1u << 26 | 1u << 27 | 1u << 28 | 1u << 30 | 1u << 31;
        leaf7[2] |= 1u << 1 | 1u << 6 | 1u << 12 | 1u << 14;   // VBMI, VBMI2, BITALG, VPOPCNTDQ
        leaf7[3] |= 1u << 2 | 1u << 3 | 1u << 8;
    }
    struct sigaction action;
    memset(&action, 0, sizeof action);
    action.sa_sigaction = answer;
    action.sa_flags = SA_SIGINFO | SA_NODEFER;
    sigaction(SIGTRAP, &action, &before);
}
