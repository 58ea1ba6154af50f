/* SPDX-License-Identifier: GPL-2.0 */
/*
 * The kinds of memory that the uffd-wp tests know, and the ways to protect it.
 */
#ifndef UFFD_WP_MEMORY_H
#define UFFD_WP_MEMORY_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>
#include <linux/fs.h>
#include <linux/userfaultfd.h>

#include "vm_util.h"

#ifndef BIT
#define BIT(n)		(1UL << (n))
#endif

#define KPF_ANON		BIT_ULL(12)
#define KPF_HUGE		BIT_ULL(17)
#define KPF_KSM			BIT_ULL(21)
#define KPF_ZERO_PAGE		BIT_ULL(24)

#define THP		"/sys/kernel/mm/transparent_hugepage/"
#define NODES		"/sys/devices/system/node/"

/*
 * The machine: find_machine() asks for all of it, and ends the program if uffd-wp
 * cannot be tested here.
 */
extern size_t page_size, huge_size, pmd_size;
extern int nr_nodes, nodes[2], node_cpu[2];	/* with both memory and a CPU */
extern uint64_t uffd_features;

void find_machine(void);

enum {
	M_PRIVATE	= BIT(0),	/* MAP_PRIVATE, else MAP_SHARED */
	M_ANON		= BIT(1),	/* what is mapped are anonymous pages */
	M_FD		= BIT(2),	/* mapped from a file */
	M_HUGETLB	= BIT(3),
	M_THP		= BIT(4),	/* large folios, mapped by PMDs */
	M_MTHP		= BIT(5),	/* large folios, mapped by PTEs */
	M_TMPFS		= BIT(6),
	M_DISK		= BIT(7),	/* its filesystem wants to see first writes */
	M_LARGE		= M_THP | M_MTHP,
};

struct kind {
	const char *name;
	unsigned int flags;
};

struct mode {
	const char *name;
	bool async, rwp;
	bool unpop;		/* protected before there are pages */
	bool scan;		/* protected by PAGEMAP_SCAN */
	uint64_t features;
};

const struct kind *kind_named(const char *name);
const struct mode *mode_named(const char *name);

/* No file, no copy of one: only a write makes a page that is not the zero page. */
static inline bool is_private_anon(const struct kind *kind)
{
	return kind->flags & M_PRIVATE && !(kind->flags & (M_FD | M_HUGETLB));
}

/* Huge pages are to be had for memory of this kind, and for no other. */
void set_memory_knobs(const struct kind *kind);

struct memory {
	/* set before it is mapped */
	const struct kind *kind;
	const struct mode *mode;
	size_t len;
	size_t unit;		/* what the test deals in, if not pages */
	size_t file_len;	/* if not len */

	char *addr;
	size_t page;		/* the smallest that can be protected */
	size_t folio;
	size_t map_len;		/* of the mapping, >= len */
	int nr;			/* units in len */
	int fd, uffd;
};

void map_memory(struct memory *mem, int prot);
/* An address range that nobody else gets, aligned for all kinds of memory */
char *reserve(size_t len);
/* Writes to each page of the file; those of large folios are there then. */
void fill_file(const struct memory *mem);
/* Does the page at @addr, or the mapping, look as its kind says? Else it ends the row. */
void prove_page(const struct memory *mem, const char *addr);
void prove_mapping(const struct memory *mem);

/* The page of a unit that is looked at: not always its first one */
static inline char *target(const struct memory *mem, int i)
{
	return mem->addr + i * mem->unit +
	       (mem->unit > page_size ? (5 + i) * page_size : 0);
}

static inline int folio_index(const struct memory *mem, int i)
{
	return i * mem->unit / mem->folio;
}

/* Of their first unit */
static inline bool begins_folio(const struct memory *mem, int i)
{
	return !i || folio_index(mem, i) != folio_index(mem, i - 1);
}

/*
 * userfaultfd. What ends in _range returns an errno; the others end the row.
 */
int open_uffd(uint64_t features, int flags);
int register_range(int uffd, const void *addr, size_t len, uint64_t mode);
int protect_range(int uffd, const void *addr, size_t len, bool on);
int rwprotect_range(int uffd, const void *addr, size_t len, bool on);

/* Opens and registers it for its mode, with more features if need be. */
void arm(struct memory *mem, uint64_t features);
void set_protection(const struct memory *mem, size_t from, size_t len, bool on);

/*
 * What a page is, and where. Zero or -1 if that cannot be told.
 */
extern int pagemap_fd;

void look_at(pid_t pid);	/* From here on, pagemap is that of this process. */
uint64_t pagemap_entry(const char *addr);
uint64_t pfn_of(const char *addr);
uint64_t page_flags(uint64_t pfn);
int node_of(const char *addr);
int count_vmas(const char *addr, size_t len);
/* How much of it /proc/self/smaps has under @key */
size_t smaps_bytes(const char *addr, size_t len, const char *key);

/* PAGEMAP_SCAN for what is written, that is: not protected */
struct pm_scan_arg scan_arg(const void *addr, size_t len, uint64_t flags,
			    struct page_region *vec, size_t vec_len);
int scan_written(const char *addr);
int scan_protect(const void *addr, size_t len);

#endif
