/* SPDX-License-Identifier: GPL-2.0 */
/*
 * The runner of the uffd-wp tests. A test is a few tables and what a row does; a
 * row is an entry of each table. It runs in a process of its own, within a time
 * limit, with the knobs that it needs, and ends in one of
 *
 *   fail()   something is wrong
 *   skip()   it cannot be asked here
 *   again()  what it is about did not happen: once more, with fresh memory;
 *            a skip in the end
 *   return   passed
 */
#ifndef UFFD_WP_ROW_H
#define UFFD_WP_ROW_H

#include <pthread.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "../kselftest.h"

#define NR_TABLES	3

/* Entries begin with their name, a const char *. */
struct table {
	const void *entries;
	size_t len, size;	/* of all, of one */
};

#define TABLE(array)	{ array, sizeof(array), sizeof((array)[0]) }

struct row_id {
	const void *of[NR_TABLES];	/* the entries, */
	const char *word[NR_TABLES];	/* their names, */
	char name[96];			/* and all of these */
	int try;			/* how often it had to be run again */
};

struct test {
	struct table tables[NR_TABLES];
	int seconds;			/* that a row may take */
	/* Why there can be no such row, NULL if there can */
	const char *(*impossible)(const struct row_id *id);
	/* Does the row take something out of use that it cannot put back? */
	bool (*spoils)(const struct row_id *id);
	void (*setup)(void);		/* before the first row */
	void (*set_knobs)(const struct row_id *id);	/* before each row */
	void (*cleanup)(void);		/* at the end, or on a signal */
	void (*run)(const struct row_id *id);	/* in the row's process */
};

int run_test(const struct test *test, int argc, char **argv);

/* How the process of a row ended, which it shares with its parent. */
enum outcome { DIED, PASS, FAIL, SKIP, AGAIN };

struct report {
	enum outcome outcome;
	char step[64];
	char text[256];
};

extern struct report *report;

/* Calls @fn in a process of its own; *report says how that ended. */
void run_process(void (*fn)(const void *arg), const void *arg, int seconds);

__noreturn __printf(1, 2) void fail(const char *fmt, ...);
__noreturn __printf(1, 2) void skip(const char *fmt, ...);
__noreturn __printf(1, 2) void again(const char *fmt, ...);
/* For a step that should not fail: "setup: @what: " and the error */
void fail_if(bool failed, const char *what);

/* Where it is, in case that it dies or hangs there. */
void step(const char *name);

uint64_t now_ms(void);
pthread_t start_thread(void *(*fn)(void *arg), void *arg);

/*
 * Files in /proc and /sys. Those of vm_util.h end the program if there is no such
 * file, or read it once.
 */
ssize_t read_text(const char *path, char *buf, size_t size);
bool write_text(const char *path, const char *text);
long read_long(const char *path);
/* The number after @key in lines of "key value", -1 if there is none. */
long long field(const char *text, const char *key);

/*
 * Knobs are saved when they are first set, and put back at the end. A row may
 * change them: they are set again after it.
 */
bool set_knob(const char *path, const char *value);

#endif
