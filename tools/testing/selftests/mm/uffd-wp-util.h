/* SPDX-License-Identifier: GPL-2.0 */
/*
 * What the uffd-wp tests need to see and to set: newer uapi that older headers
 * lack, files and knobs in /proc and /sys, and what a page is and where. It
 * stands alone, so that a test can be built in older trees too.
 */
#ifndef UFFD_WP_UTIL_H
#define UFFD_WP_UTIL_H

#include <fcntl.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <linux/types.h>
#include <linux/userfaultfd.h>

#ifndef BIT
#define BIT(n)		(1UL << (n))
#endif
#ifndef BIT_ULL
#define BIT_ULL(n)	(1ULL << (n))
#endif
#ifndef ARRAY_SIZE
#define ARRAY_SIZE(a)	(sizeof(a) / sizeof((a)[0]))
#endif
#ifndef __printf
#define __printf(a, b)
#endif

#ifndef UFFD_FEATURE_WP_HUGETLBFS_SHMEM
#define UFFD_FEATURE_WP_HUGETLBFS_SHMEM	BIT(12)
#endif
#ifndef UFFD_FEATURE_WP_UNPOPULATED
#define UFFD_FEATURE_WP_UNPOPULATED	BIT(13)
#endif
#ifndef UFFD_FEATURE_WP_ASYNC
#define UFFD_FEATURE_WP_ASYNC		BIT(15)
#endif
#ifndef UFFD_FEATURE_RWP
#define UFFD_FEATURE_RWP		BIT(17)
#endif
#ifndef UFFD_PAGEFAULT_FLAG_RWP
#define UFFD_PAGEFAULT_FLAG_RWP		BIT(3)
#endif
#ifndef UFFDIO_REGISTER_MODE_RWP
#define UFFDIO_REGISTER_MODE_RWP	BIT_ULL(3)
#endif
#ifndef UFFDIO_RWPROTECT
#define UFFDIO_RWPROTECT	_IOWR(UFFDIO, 0x09, struct uffdio_writeprotect)
#define UFFDIO_RWPROTECT_MODE_RWP	BIT_ULL(0)
#endif
#ifndef MADV_SOFT_OFFLINE
#define MADV_SOFT_OFFLINE		101
#endif
#ifndef MADV_POPULATE_WRITE
#define MADV_POPULATE_WRITE		23
#endif
#ifndef MFD_HUGETLB
#define MFD_HUGETLB			0x0004U
#endif

/* PAGEMAP_SCAN; not from linux/fs.h, which clashes with libc's headers. */
struct scan_region {
	__u64 start;
	__u64 end;
	__u64 categories;
};

struct scan_arg {
	__u64 size;
	__u64 flags;
	__u64 start;
	__u64 end;
	__u64 walk_end;
	__u64 vec;
	__u64 vec_len;
	__u64 max_pages;
	__u64 category_inverted;
	__u64 category_mask;
	__u64 category_anyof_mask;
	__u64 return_mask;
};

#define SCAN_IOCTL		_IOWR('f', 16, struct scan_arg)
#define SCAN_WRITTEN		BIT(1)
#define SCAN_WP_MATCHING	BIT(0)	/* a flag */

/* /proc/PID/pagemap and /proc/kpageflags */
#define PM_PFN			(BIT_ULL(55) - 1)
#define PM_UFFD_WP		BIT_ULL(57)
#define PM_PRESENT		BIT_ULL(63)
#define KPF_ANON		BIT_ULL(12)
#define KPF_COMPOUND_HEAD	BIT_ULL(15)
#define KPF_COMPOUND_TAIL	BIT_ULL(16)
#define KPF_HUGE		BIT_ULL(17)
#define KPF_ZERO_PAGE		BIT_ULL(24)

#define THP		"/sys/kernel/mm/transparent_hugepage/"
#define KSM		"/sys/kernel/mm/ksm/"
#define NODES		"/sys/devices/system/node/"
#define NUMAB		"/sys/kernel/debug/sched/numa_balancing/"
#define NUMAB_ON	"/proc/sys/kernel/numa_balancing"
#define UNPOISON	"/sys/kernel/debug/hwpoison/unpoison-pfn"

static size_t page_size, huge_size, pmd_size;
static int nr_nodes, nodes[2], node_cpu[2];
static int pagemap_fd = -1, kpageflags_fd = -1, vmstat_fd = -1;

static inline uint64_t now_ms(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return ts.tv_sec * 1000ULL + ts.tv_nsec / 1000000;
}

/*
 * Files
 */

static inline ssize_t read_file(const char *path, char *buf, size_t size)
{
	int fd = open(path, O_RDONLY | O_CLOEXEC);
	ssize_t n, len = 0;

	if (fd < 0)
		return -1;
	while ((n = read(fd, buf + len, size - 1 - len)) > 0)
		len += n;
	close(fd);
	if (n < 0)
		return -1;
	buf[len] = '\0';
	return len;
}

static inline bool write_file(const char *path, const char *text)
{
	int fd = open(path, O_WRONLY | O_CLOEXEC);
	ssize_t n;

	if (fd < 0)
		return false;
	n = write(fd, text, strlen(text));
	close(fd);
	return n == (ssize_t)strlen(text);
}

static inline long read_long(const char *path)
{
	char buf[32];

	return read_file(path, buf, sizeof(buf)) > 0 ? atol(buf) : -1;
}

/* The number after @key in lines of "key value", -1 if there is none. */
static inline long long field(const char *text, const char *key)
{
	const char *at = text, *end;

	while ((at = strstr(at, key))) {
		end = at + strlen(key);
		if ((at == text || at[-1] == '\n') && strspn(end, " :\t"))
			return atoll(end + strspn(end, " :\t"));
		at = end;
	}
	return -1;
}

static inline long long vm_counter(const char *key)
{
	static char buf[32 << 10];
	ssize_t n = pread(vmstat_fd, buf, sizeof(buf) - 1, 0);

	if (n <= 0)
		return -1;
	buf[n] = '\0';
	return field(buf, key);
}

/*
 * Knobs in /proc, /sys and debugfs: saved when first set, to be put back.
 */

struct knob {
	char path[128];
	char saved[64];
	char now[64];
};

static struct knob knobs[64];
static unsigned int nr_knobs;

static inline bool set_knob(const char *path, const char *value)
{
	char buf[256], *from, *to;
	struct knob *knob;
	unsigned int i;

	for (i = 0; i < nr_knobs; i++)
		if (!strcmp(knobs[i].path, path))
			break;
	if (i == ARRAY_SIZE(knobs))
		return false;
	knob = &knobs[i];
	if (i == nr_knobs) {
		if (read_file(path, buf, sizeof(buf)) < 0)
			return false;
		/* some say "this [that] other" */
		from = strchr(buf, '[');
		to = from ? strchr(from, ']') : strchr(buf, '\n');
		from = from ? from + 1 : buf;
		if (to)
			*to = '\0';
		snprintf(knob->path, sizeof(knob->path), "%s", path);
		snprintf(knob->saved, sizeof(knob->saved), "%.63s", from);
		snprintf(knob->now, sizeof(knob->now), "%.63s", from);
		nr_knobs++;
	}
	if (!strcmp(knob->now, value))
		return true;
	if (!write_file(path, value))
		return false;
	snprintf(knob->now, sizeof(knob->now), "%s", value);
	return true;
}

static inline void restore_knobs(void)
{
	while (nr_knobs) {
		nr_knobs--;
		write_file(knobs[nr_knobs].path, knobs[nr_knobs].saved);
	}
}

/*
 * What a page is, and where. Zero or -1 if that cannot be told.
 */

static inline uint64_t pagemap_entry(const char *addr)
{
	uint64_t entry;

	if (pread(pagemap_fd, &entry, 8, (uintptr_t)addr / page_size * 8) != 8)
		return 0;
	return entry;
}

static inline uint64_t pfn_of(const char *addr)
{
	uint64_t entry = pagemap_entry(addr);

	return entry & PM_PRESENT ? entry & PM_PFN : 0;
}

static inline uint64_t page_flags(uint64_t pfn)
{
	uint64_t flags;

	if (!pfn || pread(kpageflags_fd, &flags, 8, pfn * 8) != 8)
		return 0;
	return flags;
}

static inline int node_of(char *addr)
{
	void *page = (void *)((uintptr_t)addr & ~(page_size - 1));
	int status = -1;

	if (syscall(__NR_move_pages, 0, 1UL, &page, NULL, &status, 0))
		return -1;
	return status;
}

/* Does PAGEMAP_SCAN have the page at @addr as written? */
static inline int scan_written(const char *addr)
{
	struct scan_region region;
	struct scan_arg arg = {
		.size = sizeof(arg),
		.start = (uintptr_t)addr & ~(page_size - 1),
		.end = ((uintptr_t)addr & ~(page_size - 1)) + page_size,
		.vec = (uintptr_t)&region,
		.vec_len = 1,
		.category_mask = SCAN_WRITTEN,
		.return_mask = SCAN_WRITTEN,
	};

	return ioctl(pagemap_fd, SCAN_IOCTL, &arg);
}

/* Protects what is written, as PAGEMAP_SCAN has it: what is not protected. */
static inline int scan_protect(const char *addr, size_t len)
{
	struct scan_arg arg = {
		.size = sizeof(arg),
		.flags = SCAN_WP_MATCHING,
		.start = (uintptr_t)addr,
		.end = (uintptr_t)addr + len,
		.category_mask = SCAN_WRITTEN,
		.return_mask = SCAN_WRITTEN,
	};

	return ioctl(pagemap_fd, SCAN_IOCTL, &arg);
}

/* How many VMAs there are from @addr to @addr + @len */
static inline int count_vmas(const char *addr, size_t len)
{
	static char buf[64 << 10];
	unsigned long start, end;
	char *line = buf;
	int n = 0;

	if (read_file("/proc/self/maps", buf, sizeof(buf)) < 0)
		return -1;
	while (line && sscanf(line, "%lx-%lx", &start, &end) == 2) {
		if (start < (uintptr_t)addr + len && end > (uintptr_t)addr)
			n++;
		line = strchr(line, '\n');
		line = line ? line + 1 : NULL;
	}
	return n;
}

/* How much of it /proc/self/smaps has under @key */
static inline size_t smaps_bytes(const char *addr, size_t len, const char *key)
{
	static char buf[256 << 10];
	unsigned long start, end, kb;
	char *line = buf;
	bool inside = false;
	size_t sum = 0;

	if (read_file("/proc/self/smaps", buf, sizeof(buf)) < 0)
		return 0;
	while (line) {
		if (sscanf(line, "%lx-%lx ", &start, &end) == 2)
			inside = start < (uintptr_t)addr + len &&
				 end > (uintptr_t)addr;
		else if (inside && !strncmp(line, key, strlen(key)) &&
			 sscanf(line + strlen(key), ": %lu kB", &kb) == 1)
			sum += kb << 10;
		line = strchr(line, '\n');
		line = line ? line + 1 : NULL;
	}
	return sum;
}

/*
 * The machine
 */

/* The first two nodes that have both memory and a CPU */
static inline void find_nodes(void)
{
	char path[64], buf[4 << 10], *total;
	int node;

	for (node = 0; node < 1024 && nr_nodes < 2; node++) {
		snprintf(path, sizeof(path), NODES "node%d/meminfo", node);
		if (read_file(path, buf, sizeof(buf)) < 0)
			continue;
		total = strstr(buf, "MemTotal:");
		if (!total || !atol(total + strlen("MemTotal:")))
			continue;
		snprintf(path, sizeof(path), NODES "node%d/cpulist", node);
		if (read_file(path, buf, sizeof(buf)) < 0 || buf[0] == '\n')
			continue;
		node_cpu[nr_nodes] = atoi(buf);
		nodes[nr_nodes++] = node;
	}
}

static inline void find_sizes(void)
{
	static char buf[8 << 10];
	long size;

	page_size = sysconf(_SC_PAGESIZE);
	size = read_long(THP "hpage_pmd_size");
	pmd_size = size > 0 ? (size_t)size : page_size * (page_size / 8);
	huge_size = pmd_size;
	if (read_file("/proc/meminfo", buf, sizeof(buf)) > 0 &&
	    field(buf, "Hugepagesize") > 0)
		huge_size = field(buf, "Hugepagesize") << 10;
}

#endif
