/* SPDX-License-Identifier: GPL-2.0 */
/*
 * What happens to page table entries in the uffd-wp tests. Each path proves that it
 * happened to all of the memory, or ends the row with the reason.
 */
#ifndef UFFD_WP_PATH_H
#define UFFD_WP_PATH_H

#include "uffd-wp-memory.h"

#define KSM		"/sys/kernel/mm/ksm/"
#define NUMAB_ON	"/proc/sys/kernel/numa_balancing"

/* A counter of /proc/vmstat, -1 if there is none */
long long vm_counter(const char *key);
/* How many units are there whose page has one of these flags */
int count_pages(const struct memory *mem, uint64_t flags);
void touch(const char *addr);

void set_prot(const struct memory *mem, int prot);
void mprotect_and_back(const struct memory *mem, int prot);

/* MADV_DONTNEED: what a file holds stays in the file. */
void zap(const struct memory *mem);

/* Migration. try_move_pages() is one call, and returns how many folios are there. */
void need_two_nodes(void);
int away_from(int node);
void must_be_on(const struct memory *mem, int node, const char *who);
int try_move_pages(const struct memory *mem, int node);
void move_pages_to(const struct memory *mem, int node);
void mbind_to(const struct memory *mem, int node);

/*
 * NUMA hinting faults are taken on the CPU of a node, see pin_to(). numa_arm() has
 * the scanner make the entries inaccessible, and then stops it: from here on, each
 * of numa_hint_faults that is counted during an access is of that access. @idle, if
 * it is not NULL, does what an access involves besides the memory.
 */
void pin_to(pid_t tid, int node);
void set_numa_knobs(bool hints);
void numa_arm(int scans, void (*idle)(int n));
/* Reads take a hinting fault in each folio. */
void take_hints(const struct memory *mem, void (*idle)(int n));

/*
 * ksm_merge() waits until @enough units are merged, to the zero page if that is asked
 * for; KSM goes on until ksm_pause().
 */
void set_ksm_knobs(bool zero);
void ksm_merge(const struct memory *mem, int enough, bool zero);
void ksm_pause(void);
/* By MADV_UNMERGEABLE, or of all processes at once */
void ksm_unmerge(const struct memory *mem, bool everywhere);

bool swap_is_on(void);
/* Brings all in that is swapped out. Returns an errno. */
int swap_off_and_on(void);
/* How many pages went out or came in, -1 if there is no swap space */
long swap_out_and_in(char *addr, size_t len);
/* How many pages went into the memory of test_hmm's device, -1 if there is none */
long move_to_device(char *addr, size_t len);
/* -1 if a huge page is larger than the memory */
int collapse(const struct memory *mem);

#endif
