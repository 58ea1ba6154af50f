// SPDX-License-Identifier: GPL-2.0
/*
 * check DUMP: is this dump of the memory of guest.S of one moment?
 *
 * The guest counts its rounds, and adds one to the first byte of each page in
 * order. At any moment, the pages up to one of them have the rounds' number and
 * one, and those behind it just the number, both modulo 256. The pages that are
 * not so are counted, with the step where they are fewest.
 *
 * Prints the pages as runs, how many and how much above the number of rounds,
 * and then "<n> of <pages> pages are not of one moment, round <number>".
 * 0: it is of one moment, 1: it is not, 2: it is no dump of that guest.
 */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define PAGE	4096
#define FIRST	0x100000
#define END	0x6400000
#define ROUNDS	0x7000
#define BOOT	0x7c00
#define PAGES	((END - FIRST) / PAGE)

static _Noreturn void die(const char *file, const char *what)
{
	fprintf(stderr, "check: %s %s\n", file, what);
	exit(2);
}

/* How guest.S begins: enough to know it by. */
static const unsigned char boot[] = { 0xfa, 0x31, 0xc0, 0x8e, 0xd8 };

int main(int argc, char **argv)
{
	static unsigned char low[FIRST], page[PAGE];
	static uint8_t above[PAGES];
	int i, run, bad, least;
	uint32_t rounds;
	FILE *dump;

	if (argc != 2)
		die("usage:", "check DUMP");
	dump = fopen(argv[1], "rb");
	if (!dump)
		die(argv[1], "cannot be read");

	if (fread(low, 1, sizeof(low), dump) != sizeof(low))
		die(argv[1], "is too short for a dump of the guest's memory");
	if (memcmp(low + BOOT, boot, sizeof(boot)) || low[BOOT + 510] != 0x55 || low[BOOT + 511] != 0xaa)
		die(argv[1], "is no dump of this guest: its boot sector is not there");
	memcpy(&rounds, low + ROUNDS, sizeof(rounds));
	if (!rounds)
		die(argv[1], "shows nothing: the guest has not run a single round");

	for (i = 0; i < PAGES; i++) {
		if (fread(page, 1, PAGE, dump) != PAGE)
			die(argv[1], "is too short for a dump of the guest's memory");
		above[i] = page[0] - rounds;
	}
	fclose(dump);

	/* As if the step were before the first page; then behind each. */
	for (bad = 0, i = 0; i < PAGES; i++)
		bad += above[i] != 0;
	for (least = bad, i = 0; i < PAGES; i++) {
		bad += (above[i] != 1) - (above[i] != 0);
		if (bad < least)
			least = bad;
	}

	for (i = 0; i < PAGES; i += run) {
		for (run = 1; i + run < PAGES && above[i + run] == above[i]; run++)
			;
		printf("%d %d\n", run, above[i]);
	}
	printf("%d of %d pages are not of one moment, round %u\n", least, PAGES, rounds);
	return least != 0;
}
