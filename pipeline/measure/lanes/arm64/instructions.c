/* A TCG plugin of QEMU: counts the guest's instructions, and those of them that multiply int8.
 *
 * At every getppid of the guest it writes both counts so far to the file of the argument `out`.
 * They are those of one thread. The few declarations of QEMU's plugin interface, version 1, that
 * it needs are written out here, so that no header of QEMU is needed to compile it.
 */
#include <inttypes.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

#define EXPORT __attribute__((visibility("default")))

typedef uint64_t plugin_id;
struct qemu_plugin_tb;
struct qemu_plugin_insn;
enum qemu_plugin_op { QEMU_PLUGIN_INLINE_ADD_U64 };

typedef void (*tb_callback)(plugin_id, struct qemu_plugin_tb *);
typedef void (*syscall_callback)(plugin_id, unsigned int, int64_t, uint64_t, uint64_t, uint64_t,
                                 uint64_t, uint64_t, uint64_t, uint64_t, uint64_t);

void qemu_plugin_register_vcpu_tb_trans_cb(plugin_id, tb_callback);
void qemu_plugin_register_vcpu_syscall_cb(plugin_id, syscall_callback);
void qemu_plugin_register_vcpu_tb_exec_inline(struct qemu_plugin_tb *, enum qemu_plugin_op, void *,
                                              uint64_t);
size_t qemu_plugin_tb_n_insns(const struct qemu_plugin_tb *);
struct qemu_plugin_insn *qemu_plugin_tb_get_insn(const struct qemu_plugin_tb *, size_t);
const void *qemu_plugin_insn_data(const struct qemu_plugin_insn *);

EXPORT int qemu_plugin_version = 1;

enum { GETPPID = 173 };

static uint64_t instructions, products;
static FILE *out;

/* Vector instructions that multiply int8, of "A64 base and SIMD instructions" in Arm's manual. */
static const struct {
    uint32_t mask, value;
} kinds[] = {
    {0x9FE0FC00, 0x0E809400}, /* SDOT, UDOT (vector): 16 products, or 8 in half a register */
    {0x9FC0F400, 0x0F80E000}, /* SDOT, UDOT (by element) */
    {0xBFE0FC00, 0x0E809C00}, /* USDOT (vector) */
    {0xBF40F400, 0x0F00F000}, /* USDOT, SUDOT (by element) */
    {0xDFE0FC00, 0x4E80A400}, /* SMMLA, UMMLA: 32 products */
    {0xFFE0FC00, 0x4E80AC00}, /* USMMLA */
    {0x9FE0BC00, 0x0E208000}, /* SMLAL, UMLAL, SMULL, UMULL of bytes: 8 products */
    {0x9FE0BC00, 0x0E608000}, /* the same of 16-bit numbers, to which int8 was widened: 4 products */
    {0x9FC0B400, 0x0F40A000}, /* SMULL, UMULL of 16-bit numbers, by element */
    {0x9FC0B400, 0x0F402000}, /* SMLAL, UMLAL of 16-bit numbers, by element */
};

static bool multiplies(uint32_t word)
{
    for (size_t kind = 0; kind < sizeof kinds / sizeof kinds[0]; kind++)
        if ((word & kinds[kind].mask) == kinds[kind].value)
            return true;
    return false;
}

static void translated(plugin_id id, struct qemu_plugin_tb *tb)
{
    size_t count = qemu_plugin_tb_n_insns(tb), found = 0;
    for (size_t place = 0; place < count; place++) {
        uint32_t word;
        memcpy(&word, qemu_plugin_insn_data(qemu_plugin_tb_get_insn(tb, place)), sizeof word);
        found += multiplies(word);
    }
    qemu_plugin_register_vcpu_tb_exec_inline(tb, QEMU_PLUGIN_INLINE_ADD_U64, &instructions, count);
    if (found)
        qemu_plugin_register_vcpu_tb_exec_inline(tb, QEMU_PLUGIN_INLINE_ADD_U64, &products, found);
}

static void called(plugin_id id, unsigned int cpu, int64_t number, uint64_t a, uint64_t b,
                   uint64_t c, uint64_t d, uint64_t e, uint64_t f, uint64_t g, uint64_t h)
{
    if (number == GETPPID) {
        fprintf(out, "%" PRIu64 " %" PRIu64 "\n", instructions, products);
        fflush(out);
    }
}

EXPORT int qemu_plugin_install(plugin_id id, const void *info, int count, char **arguments)
{
    for (int place = 0; place < count; place++)
        if (!strncmp(arguments[place], "out=", 4))
            out = fopen(arguments[place] + 4, "w");
    if (!out)
        return 1;
    qemu_plugin_register_vcpu_tb_trans_cb(id, translated);
    qemu_plugin_register_vcpu_syscall_cb(id, called);
    return 0;
}
