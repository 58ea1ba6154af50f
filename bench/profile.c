// SPDX-License-Identifier: GPL-2.0
/*
 * A plugin for QEMU: which function of the kernel executes how many instructions
 * while uffd-wp-bench measures. The program says by a NOP of its own (mark() there)
 * when that begins and ends.
 *
 * map=FILE is the System.map of the kernel, out=FILE gets a line for each function:
 * the number of the row, the name, the instructions of the row's cheapest run.
 */
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* What is needed of qemu-plugin.h, which Debian does not have. */
struct qemu_plugin_tb;
struct qemu_plugin_insn;
enum { INLINE_ADD_U64 };
enum { NO_REGS };

void qemu_plugin_register_vcpu_tb_trans_cb(uint64_t id, void (*cb)(uint64_t, struct qemu_plugin_tb *));
void qemu_plugin_register_vcpu_insn_exec_inline(struct qemu_plugin_insn *insn, int op, void *counter,
						uint64_t add);
void qemu_plugin_register_vcpu_insn_exec_cb(struct qemu_plugin_insn *insn, void (*cb)(unsigned int, void *),
					    int flags, void *arg);
size_t qemu_plugin_tb_n_insns(const struct qemu_plugin_tb *tb);
struct qemu_plugin_insn *qemu_plugin_tb_get_insn(const struct qemu_plugin_tb *tb, size_t i);
const void *qemu_plugin_insn_data(const struct qemu_plugin_insn *insn);
size_t qemu_plugin_insn_size(const struct qemu_plugin_insn *insn);
uint64_t qemu_plugin_insn_vaddr(const struct qemu_plugin_insn *insn);

#define EXPORT	__attribute__((visibility("default")))

EXPORT int qemu_plugin_version = 1;

#define MAX	(1 << 18)

/* In the order of their addresses; the first is all that is below the kernel. */
static struct { uint64_t address; char name[64]; } functions[MAX] = { { 0, "(user space)" } };
static int nr = 1;
static uint64_t counts[MAX], before[MAX], best[MAX], least;
static FILE *out;
static int row;

static int function_at(uint64_t address)
{
	int low = 0, high = nr;

	while (high - low > 1) {
		int middle = (low + high) / 2;

		if (functions[middle].address <= address)
			low = middle;
		else
			high = middle;
	}
	return low;
}

static void marked(unsigned int cpu, void *what)
{
	uint64_t sum = 0;
	int i;

	switch ((uintptr_t)what) {
	case 'o':
		memcpy(before, counts, sizeof(before));
		break;
	case 'c':
		for (i = 0; i < nr; i++)
			sum += counts[i] - before[i];
		if (least && sum >= least)
			break;
		least = sum;
		for (i = 0; i < nr; i++)
			best[i] = counts[i] - before[i];
		break;
	case 'e':
		for (i = 0; i < nr; i++)
			if (best[i])
				fprintf(out, "%d\t%s\t%" PRIu64 "\n", row, functions[i].name, best[i]);
		fflush(out);
		memset(best, 0, sizeof(best));
		least = 0;
		row++;
	}
}

static void translated(uint64_t id, struct qemu_plugin_tb *tb)
{
	size_t i, n = qemu_plugin_tb_n_insns(tb);

	for (i = 0; i < n; i++) {
		struct qemu_plugin_insn *insn = qemu_plugin_tb_get_insn(tb, i);
		const unsigned char *bytes = qemu_plugin_insn_data(insn);

		qemu_plugin_register_vcpu_insn_exec_inline(insn, INLINE_ADD_U64,
			&counts[function_at(qemu_plugin_insn_vaddr(insn))], 1);
		if (qemu_plugin_insn_size(insn) == 8 && !memcmp(bytes, "\x0f\x1f\x84\0", 4) &&
		    !memcmp(bytes + 5, "uwp", 3))
			qemu_plugin_register_vcpu_insn_exec_cb(insn, marked, NO_REGS,
							       (void *)(uintptr_t)bytes[4]);
	}
}

EXPORT int qemu_plugin_install(uint64_t id, const void *info, int argc, char **argv)
{
	FILE *map = NULL;
	char type;
	int i;

	for (i = 0; i < argc; i++) {
		if (!strncmp(argv[i], "map=", 4))
			map = fopen(argv[i] + 4, "r");
		if (!strncmp(argv[i], "out=", 4))
			out = fopen(argv[i] + 4, "w");
	}
	if (!map || !out) {
		fprintf(stderr, "profile: map=FILE to read and out=FILE to write are needed\n");
		return 1;
	}
	while (nr < MAX && fscanf(map, "%" SCNx64 " %c %63s%*[^\n]", &functions[nr].address, &type,
				  functions[nr].name) == 3)
		if (strchr("tTwW", type) && functions[nr].address >> 63)
			nr++;
	fclose(map);
	qemu_plugin_register_vcpu_tb_trans_cb(id, translated);
	return 0;
}
